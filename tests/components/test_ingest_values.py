"""What a value of a source means: labels, lists in cells, words for nothing, languages."""

import dataclasses
import decimal
import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sigline.components.ingest import (
    cells,
    class_labels,
    filters,
    readers,
    reasons,
    remarks,
    rules,
    sources,
)
from sigline.components.ingest.options import IngestConfig


def _png():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()
CLASSES = class_labels.ClassNames(["cat", "Hot Dog", "2019", "mole", "MOLE"])


class Memory(dict):
    """Files by path, in memory."""

    def open(self, path):
        if path not in self:
            raise FileNotFoundError(2, "No such file or directory", path)
        return io.BytesIO(self[path])

    def find(self, folder):
        return sorted(path for path in self if path.startswith(folder + "/"))


def _examine(pair, classes=None, **options):
    config = IngestConfig(filters=filters.FilterConfig(**options))
    found = rules.examine(pair, config, (0, 0), classes)
    return found if isinstance(found, rules.Rejection) else found[0]


def _row(classes=None, **fields):
    values = {"key": "k", "source": "s", "shard": "s.tar", "image": PNG, "text": b"a"}
    return _examine(sources.RawPair(**(values | fields)), classes)


def _read(path, content, name=None, **options):
    files, config = Memory({path: content}), sources.SourceConfig(**options)
    reader = readers.READERS[name or path.rpartition(".")[2].replace("jsonl", "table")]
    return [
        pair
        for part in reader.parts(path, files, config)
        for pair in reader.scan(part, files, config, 100_000)
    ]


def _captions_of_cell(text):
    """Returns the captions of a cell of text, or the reason of the pair's rejection."""
    (pair,) = _read("t.jsonl", json.dumps({"image": "a.png", "caption": text}).encode())
    pair = sources.RawPair(key="k", source="s", shard="t", image=PNG, captions=pair.captions)
    row = _examine(pair)
    return row.reason if isinstance(row, rules.Rejection) else list(row.text)


@pytest.mark.parametrize(
    "value",
    [
        *(3, 3.0, "3", "3.0", " 3 ", "3.", "+3", "3e0", "03", b"3\n", b"3.0", [3], "[3]", "[3.0]"),
        *(np.int64(3), np.float32(3), np.array([3]), decimal.Decimal("3.00"), ["3.0"], "['3']"),
    ],
    ids=repr,
)
def test_whole_number_of_any_kind_is_a_class_id(value):
    row = _row(label=value)
    assert (row.label, row.meta, row.remarks) == ((3,), "{}", ())


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), np.float64("nan"), decimal.Decimal("nan"), -1, -1.0, "-1", "-1.0", b"-1"),
        *("nan", "NaN", "None", "NULL", "<NA>", "", " ", [float("nan")], [-1], [None], "[nan]"),
    ],
    ids=repr,
)
def test_label_that_stands_for_none_is_none(value):
    row = _row(label=value)
    assert (row.label, row.meta, row.remarks) == ((), "{}", (remarks.LABELS_MISSING,))


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (2.5, 2.5),
        ("2.5", "2.5"),
        ("1e30", "1e30"),
        (1e30, 1e30),
        (2**63, 2**63),
        (float("inf"), None),
        (-2, -2),
        ("abc", "abc"),
        ("1_000", "1_000"),
        (True, True),
        ("9" * 5000, "9" * 5000),
        ("1e999999999", "1e999999999"),
        (b"\xff", "1 bytes"),
        ({"id": 3}, {"id": 3}),
        (["abc", 2.5], ["abc", 2.5]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_label_that_is_no_class_is_kept_in_the_metadata(value, kept):
    row = _row(label=value)
    assert (row.label, json.loads(row.meta)) == ((), {"label": kept})
    assert set(row.remarks) == {remarks.LABELS_IN_META}


@pytest.mark.parametrize(
    ("value", "ids", "kept"),
    [
        ("cat", (0,), None),
        (b"cat\n", (0,), None),
        ("CAT", (0,), None),
        ("hot  dog", (1,), None),
        ("mole", (3,), None),
        ("MOLE", (4,), None),
        ("Mole", (), "Mole"),
        (["cat", "hot dog", 3.0], (0, 1, 3), None),
        ('["cat", "lynx", null]', (0,), "lynx"),
        # A number is an id where there is such a class, and else may be a name.
        (2, (2,), None),
        ("2019", (2,), None),
        (2019, (2,), None),
        (5, (), 5),
        ("7.0", (), "7.0"),
        (True, (), True),
    ],
    ids=repr,
)
def test_class_names_are_looked_up(value, ids, kept):
    row = _row(CLASSES, label=value)
    assert (row.label, json.loads(row.meta).get("label")) == (ids, kept)


def test_truth_values_are_names():
    names = class_labels.ClassNames(["false", "true"])
    assert class_labels.resolve([True, False, "TRUE"], names).ids == (1, 0, 1)


def test_labels_beside_an_image_and_of_columns_are_both_kept():
    row = _row(label="7", metadata=b'{"label": "lynx"}', extra={"label": "own"})
    assert row.label == (7,)
    assert json.loads(row.meta) == {"label": "own", "class_label": "lynx"}
    row = _row(label=float("nan"), metadata=b'{"label": 2.0}')
    assert row.label == (2,)
    row = _row(label=1, metadata=b'{"label": 2}')
    assert (row.label, json.loads(row.meta)) == ((1,), {"label": 2})


def _parquet(columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def test_labels_of_parquet_are_as_pandas_leaves_them():
    labels = [3.0, float("nan"), None, 2.5]
    columns = {"jpg": [PNG] * 4, "caption": ["a"] * 4, "label": pa.array(labels, pa.float64())}
    rows = [_examine(pair) for pair in _read("t.parquet", _parquet(columns))]
    assert [row.label for row in rows] == [(3,), (), (), ()]
    assert [json.loads(row.meta) for row in rows] == [{}, {}, {}, {"label": 2.5}]
    columns["label"] = pa.array([decimal.Decimal("3.0")] * 4, pa.decimal128(5, 2))
    assert [_examine(pair).label for pair in _read("t.parquet", _parquet(columns))] == [(3,)] * 4


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["a dog", "one dog"]', ["a dog", "one dog"]),
        ("['a dog', 'one dog']", ["a dog", "one dog"]),
        ("""["a dog's bed", 'one "big" dog',]""", ["a dog's bed", 'one "big" dog']),
        ("[ 'a, dog' ,\n'one [dog]' ]", ["a, dog", "one [dog]"]),
        (r"['a dog\'s bed', 'd\u00f6g', 'a\\b']", ["a dog's bed", "dög", r"a\b"]),
        ("['a dog' 'one dog'\n 'two dogs']", ["a dog", "one dog", "two dogs"]),
        ("[u'a dog', None, nan]", ["a dog"]),
        ('["a dog", null, "NaN"]', ["a dog"]),
        ('[["a dog"], ["one dog"]]', ["a dog", "one dog"]),
        ("  ['a dog']  ", ["a dog"]),
        ("[tags] a cat", ["[tags] a cat"]),
        ("[a cat]", ["[a cat]"]),
        ("['", ["['"]),
        ("['a dog'", ["['a dog'"]),
        ("['a dog', she said]", ["['a dog', she said]"]),
        ("['a' + 'b']", ["['a' + 'b']"]),
        ("[__import__('os')]", ["[__import__('os')]"]),
        ("[1]", ["[1]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("('a dog',)", ["('a dog',)"]),
        ('{"en": "a dog"}', ['{"en": "a dog"}']),
        ("[]", reasons.MISSING_TEXT),
        ("[None]", reasons.MISSING_TEXT),
        ("['nan']", reasons.MISSING_TEXT),
        ("['']", reasons.EMPTY_TEXT),
        ('["a", 3]', reasons.INVALID_METADATA),
        ("[" * 200_000 + "]" * 200_000, reasons.TEXT_TOO_LONG),
        ("[" + "'" * 200_001 + "]", reasons.TEXT_TOO_LONG),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_cell_that_holds_a_list_is_one(cell, expected):
    assert _captions_of_cell(cell) == expected


def test_cell_of_a_quoted_table_may_hold_a_list():
    table = 'image,caption\na.png,"[""a dog"", \'one, dog\']"\n'
    (pair,) = _read("t.csv", table.encode(), "table")
    assert pair.captions == (("a dog", None), ("one, dog", None))


def test_languages_go_with_the_captions_of_a_cell():
    table = "image,caption,lang\n" + 'a.png,"[\'a dog\', \'ein Hund\']","[""en"", ""de""]"\n'
    (pair,) = _read("t.csv", table.encode(), "table")
    assert pair.captions == (("a dog", "en"), ("ein Hund", "de"))
    line = b'{"image": "a.png", "caption": {"en": ["a dog", "one dog"], "de": "ein Hund"}}'
    (pair,) = _read("t.jsonl", line)
    assert pair.captions == (("a dog", "en"), ("one dog", "en"), ("ein Hund", "de"))


def test_languages_that_do_not_match_the_captions_are_counted():
    line = b'{"image": "a.png", "caption": ["a", "b", "c"], "language": ["en", "de"]}'
    (pair,) = _read("t.jsonl", line)
    row = _row(text=None, captions=pair.captions, remarks=pair.remarks)
    assert row.language == ("und",) * 3
    assert rules.remarks_on(row) == [remarks.LANGUAGES_UNMATCHED] * 2
    (pair,) = _read("t.jsonl", b'{"image": "a.png", "caption": "a", "language": NaN}')
    assert pair.captions == (("a", None),)


MISSING = ["nan", "NaN", "None", "none", "NULL", "null", "<NA>", "N/A", "n/a", "NA", "#N/A", "NaT"]
INVISIBLE = [
    "\u200b",
    "\ufeff",
    "\u00ad",
    "\u200d\u200c",
    "\u2060\u180e",
    "\ufe0f",
    "\U000e0100",
    "\U000e0041\U000e007f",
    "\u3164",
    "\u115f\u1160",
    "\uffa0",
    "\u2800",
    "\u00a0\u3000\u2028",
    "\u0301",
    "\u20e3",
    "\u202e\u202c",
    "\x00\x1f\x7f\x85",
    "\u17b4",
    "\u061c",
    "\ufffc",
    "\U0001d159",
]


def _everywhere(text):
    """Yields what becomes of a caption in files, metadata, and tables of four kinds."""
    yield _row(text=text.encode())
    yield _row(text=None, metadata=json.dumps({"caption": text}).encode())
    yield _row(text=None, metadata=json.dumps({"captions": [text]}).encode())
    yield _row(text=None, metadata=json.dumps({"captions": {"en": text}}).encode())
    line = json.dumps({"image": "a.png", "caption": text}).encode()
    table = {"jpg": [PNG], "caption": [text]}
    arrow = io.BytesIO()
    with pa.ipc.new_stream(arrow, pa.table(table).schema) as writer:
        writer.write_table(pa.table(table))
    for path, content, name in (
        ("t.jsonl", line, "table"),
        ("t.tsv", f"image\tcaption\na.png\t{text}\n".encode(), "table"),
        ("t.parquet", _parquet(table), "parquet"),
        ("d/t.arrow", arrow.getvalue(), "huggingface"),
    ):
        if path == "t.tsv" and set(text) & set("\x00\n\r\x85\u2028"):
            continue
        pair = _read(path, content, name)[0]
        yield _row(text=None, captions=pair.captions)


@pytest.mark.parametrize("text", MISSING)
def test_words_for_a_missing_value_are_no_caption(text):
    for rejection in _everywhere(text):
        assert rejection.reason == reasons.MISSING_TEXT
        assert repr(text) in rejection.detail


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_caption_of_invisible_characters_is_empty(text):
    for rejection in _everywhere(text):
        assert rejection.reason == reasons.EMPTY_TEXT


@pytest.mark.parametrize(
    "text",
    ["Nan", "nan bread", "Null Island", "❤️", "🏳️‍🌈", "1️⃣", ".", "क्", "한", "\uf8ff", "🫩", "⠁"],
)
def test_caption_that_is_seen_is_one(text):
    for row in _everywhere(text):
        assert row.text == (text,)


def test_captions_left_out_beside_others_are_counted():
    captions = [
        ("a dog", None),
        ("nan", None),
        (None, None),
        (float("nan"), None),
        ("\u200b", "en"),
    ]
    row = _row(text=None, captions=tuple(captions))
    assert row.text == ("a dog",)
    assert rules.remarks_on(row) == [remarks.CAPTIONS_MISSING, remarks.CAPTIONS_EMPTY]


def test_key_that_is_not_a_number_is_none():
    (pair,) = _read("t.jsonl", b'{"image": "a.png", "caption": "a", "uid": NaN}')
    assert pair.key == ""


def test_missing_words_are_those_of_pandas_and_their_cases():
    """Those of pandas are copied from the documentation of `read_csv`, `na_values`."""
    pandas = (
        '"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", '
        '"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"'
    )
    assert set(json.loads(f"[{pandas}]")) <= cells.MISSING_WORDS


CAPTIONS = {
    "de": ["Gorilla", "Affe"],
    "en": ["gorilla", "Gorilla"],
    "es": ["Gorilla"],
    "EN": ["gorilla"],
    "und": ["Affe"],
}


def test_caption_that_is_equal_in_several_languages_keeps_them_all():
    row = _row(text=b"Affe", metadata=json.dumps({"captions": CAPTIONS}).encode())
    assert list(zip(row.text, row.language, strict=True)) == [
        ("Affe", "de"),
        ("Gorilla", "de"),
        ("Gorilla", "en"),
        ("Gorilla", "es"),
        ("gorilla", "en"),
    ]
    assert rules.remarks_on(row) == [remarks.CAPTIONS_IN_FURTHER_LANGUAGES] * 2
    profile = rules.profile(row)
    assert profile.count(("captions", "3")) == 1
    assert sorted(v for k, v in profile if k == "language") == ["de", "de", "en", "en", "es"]
    assert sum(k == "words" for k, _ in profile) == 3


def test_kept_language_is_one_of_several():
    pair = sources.RawPair(
        "k", "s", "s.tar", image=PNG, captions=(("Gorilla", "de"), ("Gorilla", "en"))
    )
    row = _examine(pair, languages=("en",))
    assert (row.text, row.language, rules.remarks_on(row)) == (("Gorilla",), ("en",), [])


def test_records_with_a_caption_in_several_languages_are_read_as_they_were_written():
    from sigline.schemas import tf_example, tfrecord

    row = _row(metadata=json.dumps({"captions": CAPTIONS}).encode())
    written = row.to_record(PNG)
    assert tf_example.decode(tf_example.encode(written)) == written
    (pair,) = _read("t.tfrecord", tfrecord.framed(tf_example.encode(written)), "tfrecord")
    again = _row(text=None, captions=pair.captions)
    assert (again.text, again.language) == (row.text, row.language)


def test_maps_of_parquet_are_captions_by_language_and_other_structs_are_refused():
    by_language = pa.map_(pa.string(), pa.list_(pa.string()))
    captions = pa.array([[("en", ["a dog"]), ("pt-BR", ["um c\u00e3o"])]], by_language)
    (pair,) = _read("t.parquet", _parquet({"jpg": [PNG], "caption": captions}))
    assert pair.captions == (("a dog", "en"), ("um c\u00e3o", "pt-BR"))
    structs = [{"en": "a dog", "fr": None}]
    (pair,) = _read("t.parquet", _parquet({"jpg": [PNG], "caption": structs}))
    assert _examine(pair).text == ("a dog",)
    other = [{"tokens": ["a", "dog"], "sentence": "a dog"}]
    (pair,) = _read("t.parquet", _parquet({"jpg": [PNG], "caption": other}))
    assert _examine(pair).reason == reasons.INVALID_METADATA


def test_class_folders_are_looked_up_among_the_names_of_classes():
    """Folders in order are `cat`, `hot_dog`, `lynx`; the classes stand in another order."""
    names = class_labels.ClassNames(["Hot Dog", "cat"])
    files = {f"d/{name}/a.png": PNG for name in ("cat", "hot_dog", "lynx")}
    reader, config = readers.READERS["images"], sources.SourceConfig(class_folders=True)
    (part,) = reader.parts("d", Memory(files), config)
    pairs = list(reader.scan(part, Memory(files), config, 100_000))
    pairs = pickle.loads(pickle.dumps([dataclasses.replace(pair, image=PNG) for pair in pairs]))
    assert [_examine(pair).label for pair in pairs] == [(0,), (1,), (2,)]
    assert [_examine(pair).text for pair in pairs] == [("cat",), ("hot dog",), ("lynx",)]
    rows = [_examine(pair, names) for pair in pairs]
    assert [row.label for row in rows] == [(1,), (0,), ()]
    assert [row.meta for row in rows] == ["{}", "{}", '{"label": "lynx"}']


def test_folder_whose_name_is_a_number_is_that_class():
    """MNIST as folders: with `2` left out, places are not numbers."""
    names = class_labels.ClassNames([str(number) for number in range(10)])
    label = sources.FolderClass.of(2, "3")
    assert class_labels.resolve(label, names).ids == (3,)
    assert class_labels.resolve(label, class_labels.ClassNames()).ids == (2,)
