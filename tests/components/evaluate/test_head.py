"""Classification by a head, and records without captions; against scikit-learn where it can."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from sigline.components.evaluate import evaluation, findings, results
from sigline.components.evaluate.predictions import EvalRecord, Predictions, decode, encode, merge
from sigline.components.evaluate.tasks import head
from sigline.components.evaluate.views import View

COUNT, CLASSES = 60, 7


def _record(i, label, text=()):
    language = ("en",) * len(text)
    return EvalRecord(f"{i:03d}", f"s{i % 2}", label, text, language, 64, 64, f"{i:064x}")


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    labels = [(int(rng.integers(CLASSES)),) for _ in range(COUNT)]
    # Some have several right classes, some none.
    labels[3], labels[4], labels[5] = (0, 1), (2, 3, 4), ()
    logits = rng.standard_normal((COUNT, CLASSES)).astype(np.float32)
    for i, label in enumerate(labels):
        logits[i, list(label)] += 1.5
    image = rng.standard_normal((COUNT, 4)).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    records = tuple(_record(i, label) for i, label in enumerate(labels))
    return Predictions(records, image, None, None, class_logits=logits)


def test_accuracy_counts_any_right_class_and_only_labelled_records(split):
    measured = evaluation.measures(View(split))
    labelled = [i for i, record in enumerate(split.records) if record.label]
    best = split.class_logits.argmax(1)
    right = [best[i] in split.records[i].label for i in labelled]
    accuracy = measured["classification_accuracy"]
    assert accuracy.value == pytest.approx(np.mean(right))
    assert len(accuracy.units) == COUNT - 1
    single = [i for i in labelled if len(split.records[i].label) == 1]
    truth = [split.records[i].label[0] for i in single]
    recall = sklearn_metrics.balanced_accuracy_score(truth, best[single])
    assert measured["classification_mean_class_recall"].value == pytest.approx(recall)
    order = np.argsort(-split.class_logits, axis=1)[:, :5]
    top = [bool(set(order[i]) & set(split.records[i].label)) for i in labelled]
    assert measured["classification_accuracy@5"].value == pytest.approx(np.mean(top))
    assert {"classification_accuracy/source=s0", "classification_all_labels"} <= set(measured)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_probabilities_are_those_of_the_loss(split, loss):
    logits = split.class_logits.astype(np.float64)
    expected = 1 / (1 + np.exp(-logits))
    if loss == "softmax":
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(head.probabilities(split.class_logits, loss), expected, rtol=1e-10)
    labelled = [i for i, record in enumerate(split.records) if record.label]
    came = np.zeros((COUNT, CLASSES))
    for i in labelled:
        came[i, list(split.records[i].label)] = 1
    brier = ((expected - came) ** 2).mean(1)[labelled].mean()
    measured = evaluation.measures(View(split, class_loss=loss))
    assert measured["classification_brier_score"].value == pytest.approx(brier)
    extreme = head.probabilities(np.array([[1e4, -1e4]]), loss)
    np.testing.assert_allclose(extreme, [[1.0, 0.0]])


def test_classes_of_a_tree_compete_within_the_levels_of_the_labels(split):
    levels = np.array([0, 1, 1, 0, 1, 1, 2])
    # Logits of different levels cannot be compared: no shift of one changes a measure.
    logits = split.class_logits + np.array([0.0, 50.0, -50.0])[levels].astype(np.float32)
    view = View(split, class_loss="semantic", levels=tuple(int(x) for x in levels))
    shifted = dataclasses.replace(view, split=dataclasses.replace(split, class_logits=logits))
    measured = evaluation.measures(view)
    assert "classification_mean_average_precision" in measured
    again = evaluation.measures(shifted)
    for name in (x for x in measured if x.startswith("classification")):
        assert again[name].value == pytest.approx(measured[name].value, rel=1e-5), name
    right, chances = [], []
    for record, row in zip(split.records, split.class_logits.astype(np.float64), strict=True):
        if not record.label:
            continue
        competing = np.isin(levels, levels[list(record.label)])
        score = np.full(CLASSES, -np.inf)
        for level in set(levels[competing]):
            at = levels == level
            score[at] = row[at] - np.log(np.exp(row[at]).sum())
        right.append(score.argmax() in record.label)
        chances.append(min(len(set(record.label)) / competing.sum(), 1.0))
    accuracy = measured["classification_accuracy"]
    assert accuracy.value == pytest.approx(np.mean(right))
    assert accuracy.chance == pytest.approx(np.mean(chances))
    _, probabilities = head.of_head(view, split.only(np.arange(3)))
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    shown = findings.collect(view, "abcdefg", {}, min_slice_examples=1)
    assert all(np.isfinite(score) for x in shown.worst for _, score in x.predictions)


def test_logits_of_a_tree_agree_with_no_teacher(split):
    teacher = View(split)
    view = View(split, class_loss="semantic", levels=(0, 0, 1, 1, 1, 2, 2), teacher=teacher)
    assert not [name for name in evaluation.measures(view) if name.startswith("teacher_")]


def test_nothing_of_texts_is_measured_of_a_model_that_reads_none(split):
    names = set(evaluation.measures(View(split)))
    assert {"image_norm", "image_effective_rank"} <= names
    assert not any("text" in name or "pair" in name or "zero_shot" in name for name in names)


def test_texts_are_measured_of_the_records_that_have_some(split):
    rng = np.random.default_rng(1)
    records = tuple(
        _record(i, record.label, (f"text {i}",) * (i % 2)) for i, record in enumerate(split.records)
    )
    count = sum(len(record.text) for record in records)
    text = rng.standard_normal((count, 4)).astype(np.float32)
    some = Predictions(records, split.image, text, text[:0], class_logits=split.class_logits)
    measured = evaluation.measures(View(some))
    captioned = [i for i, record in enumerate(records) if record.text]
    alone = Predictions(
        tuple(records[i] for i in captioned), split.image[captioned], text, text[:0]
    )
    expected = evaluation.measures(View(alone))
    for name in ("image_to_text_recall@5", "text_to_image_recall@5", "modality_gap", "text_norm"):
        assert measured[name].value == pytest.approx(expected[name].value), name
    assert len(measured["classification_accuracy"].units) == COUNT - 1


def test_label_beyond_the_head_is_named(split):
    records = (*split.records[:-1], _record(COUNT - 1, (CLASSES,)))
    with pytest.raises(ValueError, match=r"of which there are 7.*key=s1/059"):
        evaluation.measures(View(dataclasses.replace(split, records=records)))


def test_logits_that_are_not_finite_are_a_problem(split):
    logits = split.class_logits.copy()
    logits[2, 1] = np.nan
    (problem,) = dataclasses.replace(split, class_logits=logits).problems()
    assert "1 of 60 records have class logits that are not finite: s0/002" in problem


def test_predictions_are_kept_whole(split):
    again = decode(encode(split))
    np.testing.assert_array_equal(again.class_logits, split.class_logits)
    assert again.text is None
    parts = [split.only([i for i in range(COUNT) if i % 3 == k]) for k in range(3)]
    whole = merge(parts)
    places = [split.units.index(unit) for unit in whole.units]
    np.testing.assert_array_equal(whole.class_logits, split.class_logits[places])


def test_findings_are_those_of_the_head(split):
    view = View(split)
    measured = results.summarize(evaluation.measures(view), None)
    shown = findings.collect(view, (), measured, min_slice_examples=5)
    assert len(shown.worst) == 5
    assert shown.worst[0].expected[0] in map(str, range(CLASSES))
    assert shown.reliability
    assert shown.confusions
    assert shown.searches == shown.right == shown.wrong == ()
    bare = dataclasses.replace(split, class_logits=None)
    assert findings.collect(View(bare), (), measured, min_slice_examples=5).worst == ()


def test_head_is_compared_with_its_teachers(split):
    rng = np.random.default_rng(2)
    other = dataclasses.replace(
        split, class_logits=rng.standard_normal((COUNT, CLASSES)).astype(np.float32)
    )
    measured = evaluation.measures(View(split, teacher=View(other)))
    agrees = (split.class_logits.argmax(1) == other.class_logits.argmax(1)).mean()
    assert measured["teacher_agreement"].value == pytest.approx(agrees)
    corrupted = evaluation.measures(View(split, corrupted={"blur@3": other}))
    name = "classification_accuracy/corruption=blur@3"
    expected = evaluation.measures(View(other))["classification_accuracy"].value
    assert corrupted[name].value == pytest.approx(expected)
