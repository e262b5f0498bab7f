import dataclasses

import numpy as np
import pytest

from sigline.components.evaluate import evaluation
from sigline.components.evaluate.predictions import EvalRecord, Predictions
from sigline.components.evaluate.texts import distinct_texts
from sigline.components.evaluate.views import Scale, View

AXES = np.eye(4, dtype=np.float32)
NONE = np.empty((0, 4), np.float32)


def _record(key, source, label, texts, language="en", side=64, **more):
    return EvalRecord(
        key=key,
        source=source,
        label=label,
        text=texts,
        language=(language,) * len(texts),
        width=side,
        height=side,
        image_sha256="00",
        **more,
    )


def _split():
    records = (
        _record("1", "a", (0,), ("cat",)),
        _record("2", "a", (1,), ("dog", "a dog")),
        _record("3", "b", (2, 3), ("bird",)),
        _record("4", "b", (), ("cat",), language="de", side=300),
    )
    return Predictions(records, AXES[[0, 1, 3, 0]], AXES[[0, 1, 1, 2, 0]], NONE)


def _values(view):
    return {name: measure.value for name, measure in evaluation.measures(view).items()}


def test_zero_shot_is_over_labelled_records():
    found = evaluation.measures(View(_split(), {"": AXES}))
    accuracy = found["zero_shot_accuracy"]
    assert accuracy.units == ("a/1", "a/2", "b/3")
    assert accuracy.value == pytest.approx(1.0)
    # Two records with one label of four and one with two.
    assert accuracy.chance == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    assert "zero_shot_accuracy@5" not in found


def test_records_of_several_labels_have_metrics_of_their_own():
    found = _values(View(_split(), {"": AXES}))
    # The image is the last of its two classes and ties with two others for the first one.
    assert found["zero_shot_all_labels"] == pytest.approx(0.0)
    assert found["zero_shot_mean_class_recall"] == pytest.approx(1.0)
    # Class 2 ranks the bird among four that tie at 0; the others come first.
    assert found["zero_shot_mean_average_precision"] == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)


def test_prompts_of_other_languages_are_named():
    found = _values(View(_split(), {"": AXES, "de": AXES[::-1]}))
    assert found["zero_shot_accuracy"] == pytest.approx(1.0)
    assert found["zero_shot_accuracy/prompts=de"] == pytest.approx(0.0)


def test_label_without_a_class_is_refused():
    with pytest.raises(ValueError, match=r"there are 3. Received: label=\[2, 3\], key=b/3"):
        evaluation.measures(View(_split(), {"": AXES[:3]}))


def test_equal_captions_are_one_text_for_all_their_images():
    found = evaluation.measures(View(_split()))
    recall = found["text_to_image_recall@1"]
    assert recall.units == ("cat", "dog", "a dog", "bird")
    # cat finds both its images; both dogs find theirs; the bird's image lies elsewhere.
    assert recall.value == pytest.approx(3 / 4)
    assert found["image_to_text_recall@1"].value == pytest.approx(3 / 4)
    assert not any(name.startswith("zero_shot") for name in found)


def test_caption_that_a_record_has_twice_is_one():
    record = _record("1", "a", (), ("cat", "cat"))
    found = _values(View(Predictions((record,), AXES[:1], AXES[[0, 0]], NONE)))
    assert found["image_to_text_recall@1"] == 1.0
    assert found["text_to_image_median_rank"] == 1.0


def test_means_are_sliced():
    found = _values(View(_split(), {"": AXES}))
    assert found["zero_shot_accuracy/source=a"] == pytest.approx(1.0)
    assert found["image_to_text_recall@1/source=b"] == pytest.approx(0.5)
    assert found["image_to_text_recall@1/image_size=225-384px"] == pytest.approx(1.0)
    assert found["image_to_text_recall@1/language=de"] == pytest.approx(1.0)
    assert found["text_to_image_recall@1/source=b"] == pytest.approx(0.0)
    # All captions are short: that dimension says nothing.
    assert not any("caption_words" in name for name in found)


def test_more_results_than_entries_find_everything():
    found = evaluation.measures(View(_split()))
    assert found["text_to_image_recall@5"].value == 1.0
    assert found["text_to_image_recall@5"].chance == 1.0


def test_sigmoid_probabilities_are_calibrated_pair_by_pair():
    scale = Scale(temperature=10.0, bias=-5.0)
    found = _values(View(_split(), {"": AXES}, scale))
    sure = 1 / (1 + np.exp(-5.0))
    # Eleven of twelve pairs are as sure as they should be; one of the bird's labels is not found.
    wrong = ((1 - sure) * 11 + sure) / 12
    assert found["zero_shot_brier_score"] == pytest.approx(
        (11 * (1 - sure) ** 2 + sure**2) / 12, rel=1e-6
    )
    assert 0 < found["zero_shot_calibration_error"] <= wrong


def test_softmax_probabilities_add_up_to_one():
    scale = Scale(temperature=100.0, bias=0.0, softmax=True)
    np.testing.assert_allclose(scale.probabilities(AXES).sum(axis=1), 1.0)
    assert Scale(1.0, 0.0).probabilities(np.array([-800.0, 800.0])).tolist() == [0.0, 1.0]


def test_probes_learn_from_the_support():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    image = AXES[labels] + 0.1 * rng.standard_normal((60, 4)).astype(np.float32)
    records = tuple(_record(f"{i:02d}", "s", (int(x),), (f"t{i}",)) for i, x in enumerate(labels))
    support = Predictions(records, image, image, NONE)
    found = _values(View(support.only(range(20)), support=support.only(range(20, 60))))
    for name in ("knn_accuracy@20", "nearest_mean_accuracy", "linear_probe_accuracy"):
        assert found[name] == pytest.approx(1.0)
    assert found["few_shot_accuracy@10"] == pytest.approx(1.0)
    assert not any("accuracy" in name for name in _values(View(support)))


def test_embeddings_that_are_not_finite_are_an_error_with_the_keys():
    split = _split()
    image = split.image.copy()
    image[2, 0] = np.nan
    broken = Predictions(split.records, image, split.text, NONE)
    with pytest.raises(ValueError, match=r"1 of 4 records have image embeddings.*: b/3"):
        evaluation.measures(View(broken))


def test_single_record_has_no_pairs_of_records():
    found = _values(View(_split().only([0])))
    assert found["image_to_text_recall@1"] == 1.0
    assert "image_mean_similarity" not in found


def test_caption_is_told_from_those_that_nearly_fit():
    records = (
        _record("1", "a", (), ("cat",), negative=("dog", "cow")),
        _record("2", "a", (), ("dog",), negative=("cat",)),
        _record("3", "a", (), ("cow",)),
    )
    # The second one prefers what does not fit.
    negative = AXES[[1, 2, 0]]
    split = Predictions(records, AXES[[0, 0, 2]], AXES[[0, 1, 2]], negative)
    found = evaluation.measures(View(split))["negative_caption_accuracy"]
    assert found.units == ("a/1", "a/2")
    assert found.value == pytest.approx(0.5)
    assert found.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_groups_of_two_are_scored_as_winogrounds():
    records = tuple(
        _record(f"{i}", "a", (), (f"text {i}",), group=group) for i, group in enumerate("xxyyz")
    )
    image, text = AXES[[0, 1, 2, 2, 3]], AXES[[0, 1, 2, 3, 3]]
    found = evaluation.measures(View(Predictions(records, image, text, NONE)))
    # In the second group both images are those of the first text; the last record is alone.
    assert found["winoground_acc"].units == ("x", "y")
    values = [found[f"winoground_{name}"].value for name in ("text_acc", "image_acc", "acc")]
    assert values == [0.5, 0.5, 0.5]
    assert found["winoground_acc"].chance == pytest.approx(1 / 6)


def test_corrupted_images_are_measured_beside_clean_ones():
    split = _split()
    view = View(
        split,
        {"": AXES},
        corrupted={"blur@3": dataclasses.replace(split, image=AXES[[1, 1, 3, 0]])},
    )
    found = _values(view)
    assert found["zero_shot_accuracy"] == pytest.approx(1.0)
    assert found["zero_shot_accuracy/corruption=blur@3"] == pytest.approx(2 / 3)
    assert found["image_to_text_recall@1/corruption=blur@3"] == pytest.approx(0.5)


def test_student_is_compared_with_its_teacher():
    teacher = View(_split(), {"": AXES}, Scale(2.0, 0.0))
    found = _values(View(_split(), {"": AXES[[1, 0, 2, 3]]}, Scale(2.0, 0.0), teacher=teacher))
    # Cats and dogs are taken for each other: three of four.
    assert found["teacher_agreement"] == pytest.approx(0.25)
    p = np.exp([2.0, 0.0, 0.0, 0.0])
    p /= p.sum()
    expected = (p[0] - p[1]) * 2.0
    assert found["teacher_divergence"] == pytest.approx(0.75 * expected)


def test_caption_of_several_languages_is_in_the_slices_of_them_all():
    """`cat` is French, too, say; without that tag the slice of French would hold one text less."""
    records = (
        EvalRecord("1", "a", (), ("cat", "cat", "chat"), ("en", "fr", "fr"), 64, 64, "00"),
        EvalRecord("2", "a", (), ("dog", "chien"), ("en", "fr"), 64, 64, "01"),
    )
    split = Predictions(records, AXES[[0, 1]], AXES[[0, 0, 2, 1, 0]], NONE)
    texts = distinct_texts(split)
    assert texts.text == ("cat", "chat", "dog", "chien")
    assert texts.slices["language"] == [("en", "fr"), "fr", "en", "fr"]
    found = evaluation.measures(View(split))
    # `cat` and `dog` are found; `chat` ties with both images, and `chien` is like the cat.
    assert found["text_to_image_recall@1/language=en"].value == pytest.approx(1.0)
    assert found["text_to_image_recall@1/language=en"].units == ("cat", "dog")
    assert found["text_to_image_recall@1/language=fr"].units == ("cat", "chat", "chien")
    assert found["text_to_image_recall@1/language=fr"].value == pytest.approx(1 / 3)
    # An image's first caption counts.
    assert found["image_to_text_recall@1/language=fr"].units == ("a/1",)
