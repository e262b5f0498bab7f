import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save

from sigline.components.evaluate import predictions
from sigline.components.evaluate.predictions import EvalRecord, Predictions
from sigline.schemas.record import ImageTextRecord


def _record(key, texts=("a",), meta="{}"):
    return EvalRecord.of(
        ImageTextRecord(
            key=key,
            image=b"",
            text=texts,
            language=("en",) * len(texts),
            source="s",
            width=3,
            height=2,
            image_sha256=b"\x01" * 32,
            image_phash=-5,
            label=(1,),
            meta=meta,
        )
    )


def _split(keys, seed=0):
    rng = np.random.default_rng(seed)
    records = tuple(
        _record(key, ("a",) * (i + 1), json.dumps({"negatives": ["x"] * i, "group": key}))
        for i, key in enumerate(keys)
    )
    counts = len(keys), sum(len(x.text) for x in records), sum(len(x.negative) for x in records)
    arrays = (rng.standard_normal((count, 3)).astype(np.float32) for count in counts)
    return Predictions(records, *arrays, ("s/bad",))


def test_split_survives_bytes():
    split = _split(["b", "a"])
    found = predictions.decode(predictions.encode(split))
    assert found.records == split.records
    assert found.unreadable == split.unreadable
    np.testing.assert_array_equal(found.image, split.image)
    np.testing.assert_array_equal(found.text, split.text)
    np.testing.assert_array_equal(found.negative, split.negative)
    assert predictions.encode(found) == predictions.encode(split)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", predictions.encode(_split(["a"]))[:-3], save({"image": np.zeros(3)})],
    ids=["empty", "nonsense", "cut", "other"],
)
def test_what_is_no_split_is_refused(content):
    with pytest.raises(ValueError, match="no predictions of this version"):
        predictions.decode(content)


def test_older_format_is_refused(monkeypatch):
    content = predictions.encode(_split(["a"]))
    monkeypatch.setattr(predictions, "FORMAT", "predictions-0")
    with pytest.raises(ValueError, match="Received: format='predictions-1'"):
        predictions.decode(content)


def test_parts_are_merged_in_the_same_order_whatever_theirs():
    one, two = _split(["b", "d"], 1), _split(["c", "a"], 2)
    found = predictions.merge([one, two])
    assert found.units == ("s/a", "s/b", "s/c", "s/d")
    np.testing.assert_array_equal(found.image[1], one.image[0])
    np.testing.assert_array_equal(found.text[:2], two.text[1:])
    assert predictions.encode(found) == predictions.encode(predictions.merge([two, one]))


def test_split_without_records_is_refused():
    with pytest.raises(ValueError, match="holds no records"):
        predictions.merge([dataclasses.replace(_split([]), unreadable=())])


def test_keys_that_repeat_are_refused():
    with pytest.raises(ValueError, match="Two records have the same key"):
        predictions.merge([_split(["a"]), _split(["a"])])


def test_some_records_keep_their_captions():
    split = _split(["a", "b", "c"])
    found = split.only([2, 0])
    assert found.units == ("s/c", "s/a")
    np.testing.assert_array_equal(found.text, split.text[[3, 4, 5, 0]])
    np.testing.assert_array_equal(found.negative, split.negative[[1, 2]])


def test_rows_that_do_not_fit_are_refused():
    split = _split(["a"])
    with pytest.raises(ValueError, match="Received: 2 rows of text, for 1"):
        Predictions(split.records, split.image, np.zeros((2, 3), np.float32), split.negative)


@pytest.mark.parametrize(
    "meta", ["{}", "[]", "nonsense", '{"negatives": 3}', '{"negatives": null}']
)
def test_metadata_of_another_kind_has_no_negatives(meta):
    assert _record("a", meta=meta).negative == ()


def test_negatives_and_group_come_from_the_metadata():
    record = _record("a", meta='{"negatives": ["b", 1], "group": 7}')
    assert (record.negative, record.group) == (("b", "1"), "7")


def test_problems_name_keys():
    split = _split([f"{i}" for i in range(7)])
    split.text[:] = np.inf
    problems = split.problems()
    assert problems[0].endswith("not finite: s/0, s/1, s/2, s/3, s/4 and 2 more")
    assert problems[1] == "1 images could not be decoded by the model: s/bad"
