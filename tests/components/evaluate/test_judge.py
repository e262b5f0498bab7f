"""A model is judged from files to files: embeddings, parity, leaks, verdict and report."""

import dataclasses
import io
import json
import shutil

import apache_beam as beam
import numpy as np
import pytest
from PIL import Image

from sigline.components.evaluate import judge, predictions
from sigline.components.evaluate.corruptions import Corruption
from sigline.components.evaluate.inputs import Inputs
from sigline.components.scenes import grammar
from sigline.schemas import tf_example
from sigline.schemas.gate import Gate
from sigline.schemas.labels import LabelSet
from sigline.trainer.export import parity, saved_model
from sigline.trainer.models import two_tower

LOOSE = Gate(minimum={"image_to_text_recall@10": 0.0}, maximum={"leaked_share": 0.0})


@pytest.fixture(scope="module")
def trained(contract_config):
    """What was exported as the model of the contract: its seed makes the same."""
    return two_tower.build(contract_config)


@pytest.fixture(scope="module")
def model_dir(contract_base):
    return contract_base / "3"


@pytest.fixture(scope="module")
def bare_dir(tmp_path_factory, trained, vocabulary, contract_config):
    """The model without classes, which takes pictures of 64 times 64 pixels and no larger ones."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    data = dataclasses.replace(contract_config.data, max_image_pixels=64 * 64)
    settings = dataclasses.replace(contract_config, data=data)
    saved_model.export(folder, trained, config=settings, vocabulary=vocabulary)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _judge(split_dir, model_dir, cache, output, limits=LOOSE, **more):
    inputs = Inputs(str(split_dir), str(model_dir), str(cache), **more)
    pipeline = beam.Pipeline(argv=["--runner=FnApiRunner"])
    return judge.judge(inputs, limits, str(output), pipeline)


def test_model_is_judged_with_a_baseline_and_a_support(split_dir, model_dir, cache, tmp_path):
    found = _judge(
        split_dir,
        model_dir,
        cache,
        tmp_path,
        baseline_dir=str(model_dir),
        support_dir=str(split_dir),
    )
    assert found.verdict.blessed is False  # leaked_share is missing: nothing was said of training.
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    recall = metrics["image_to_text_recall@1"]
    assert (recall["difference"], recall["difference_low"], recall["difference_high"]) == (0, 0, 0)
    assert metrics["knn_accuracy@20"]["examples"] > 0
    assert metrics["model_bytes"]["value"] == metrics["model_bytes"]["baseline"] > 10_000
    assert metrics["latency_ms/embed_image@1"]["value"] > 0
    report = (tmp_path / "report.html").read_text()
    assert "Not blessed" in report
    assert "data:image/png;base64," in report
    assert json.loads((tmp_path / "verdict.json").read_text()) == found.verdict.to_dict()
    assert not (tmp_path / ".embedded").exists()


def test_embeddings_are_kept_by_model_and_shard(split_dir, model_dir, tmp_path):
    cache = tmp_path / "cache"
    _judge(split_dir, model_dir, cache, tmp_path / "one")
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 2
    # A file that was cut is made again; the other one is taken as it is.
    cut, kept = sorted(files)
    cut.write_bytes(cut.read_bytes()[:-1])
    _judge(split_dir, model_dir, cache, tmp_path / "two")
    assert sorted(cache.iterdir()) == sorted(files)
    assert kept.stat().st_mtime_ns == files[kept]
    assert predictions.decode(cut.read_bytes()).records
    one, two = (json.loads((tmp_path / x / "metrics.json").read_text()) for x in ("one", "two"))
    measured = [name for name in one if one[name]["examples"]]
    assert {name: one[name] for name in measured} == {name: two[name] for name in measured}


def test_records_do_not_depend_on_how_they_are_sharded(
    split_dir, scene_records, model_dir, cache, tmp_path
):
    whole = tmp_path / "whole"
    whole.mkdir()
    encoded = [tf_example.encode(item) for item in reversed(scene_records)]
    tf_example.write_shard(str(whole / "data_tfrecord-00000-of-00001.gz"), encoded)
    one = _judge(split_dir, model_dir, cache, tmp_path / "one")
    two = _judge(whole, model_dir, cache, tmp_path / "two")
    assert one.views["Candidate"].split.units == two.views["Candidate"].split.units
    recall = "image_to_text_recall@5"
    assert one.results[recall] == two.results[recall]


def test_leaked_records_are_refused(split_dir, model_dir, cache, tmp_path):
    found = _judge(split_dir, model_dir, cache, tmp_path, train_dirs=(str(split_dir),))
    assert found.verdict.failures() == ["leaked_share fails: 1, at most: 0"]


def test_tower_of_nan_is_refused_with_the_keys(
    split_dir, contract_config, vocabulary, cache, tmp_path
):
    broken = two_tower.build(contract_config)
    two_tower.named_variables(broken)["image/embedding/bias"].assign(
        np.full(contract_config.image.width, np.nan)
    )
    saved_model.export(tmp_path / "m", broken, config=contract_config, vocabulary=vocabulary)
    found = _judge(split_dir, tmp_path / "m", cache, tmp_path / "o")
    (reason, *_) = found.verdict.failures()
    assert "100 of 100 records have image embeddings that are not finite: scenes/000" in reason
    assert found.results == {}
    assert "not finite" in (tmp_path / "o" / "report.html").read_text()


def test_picture_that_does_not_decode_is_named_and_costs_no_other(
    scene_records, model_dir, cache, tmp_path
):
    folder = tmp_path / "split"
    folder.mkdir()
    broken = dataclasses.replace(scene_records[0], key="broken", image=b"\xff\xd8\xffnonsense")
    encoded = [tf_example.encode(item) for item in [broken, *scene_records[:9]]]
    tf_example.write_shard(str(folder / "data_tfrecord-00000-of-00001.gz"), encoded)
    found = _judge(folder, model_dir, cache, tmp_path / "o")
    assert found.verdict.failures()[0] == (
        "model fails: 1 images could not be decoded by the model: scenes/broken"
    )


@pytest.fixture(scope="module")
def trainer_made(tmp_path_factory, trained, vocabulary, split_dir, contract_config):
    path = tmp_path_factory.mktemp("parity") / "parity.safetensors"
    assert parity.write(path, trained, contract_config, vocabulary, split_dir) == 100
    return path


def test_exported_model_equals_the_one_in_the_trainer(
    split_dir, model_dir, cache, tmp_path, trainer_made
):
    limits = Gate(minimum={"image_to_text_recall@10": 0.0}, max_parity_difference=1e-6)
    found = _judge(
        split_dir, model_dir, cache, tmp_path / "o", limits, parity_file=str(trainer_made)
    )
    assert found.verdict.blessed, found.verdict.failures()


@pytest.mark.parametrize("mistake", ["tokenizer", "resize", "weights"])
def test_model_that_is_not_the_trained_one_is_refused(
    split_dir, trained, vocabulary, cache, tmp_path, trainer_made, contract_config, mistake
):
    from sigline.components.vocabulary.vocabulary import train_vocabulary

    model, settings, words = trained, contract_config, vocabulary
    if mistake == "tokenizer":
        words = train_vocabulary(["other words of a vocabulary"] * 20, vocabulary_size=30)
    elif mistake == "resize":
        settings = dataclasses.replace(
            contract_config,
            image=dataclasses.replace(
                contract_config.image, antialias=not contract_config.image.antialias
            ),
        )
    else:
        model = two_tower.build(dataclasses.replace(contract_config, seed=contract_config.seed + 1))
    saved_model.export(tmp_path / "m", model, config=settings, vocabulary=words)
    found = _judge(split_dir, tmp_path / "m", cache, tmp_path / "o", parity_file=str(trainer_made))
    failed = {check.metric for check in found.verdict.checks if not check.passed}
    towers = {"tokenizer": {"text"}, "resize": {"image"}, "weights": {"image", "text"}}[mistake]
    assert {f"parity_max_difference/{tower}" for tower in towers} == failed - {"leaked_share"}
    (reason, *_) = found.verdict.failures()
    assert "of 100 records, the first scenes/" in reason


def test_parity_with_other_records_is_refused(
    split_dir, scene_records, trained, vocabulary, model_dir, cache, tmp_path, contract_config
):
    folder = tmp_path / "other"
    folder.mkdir()
    item = dataclasses.replace(scene_records[0], key="other")
    tf_example.write_shard(str(folder / "a.gz"), [tf_example.encode(item)])
    path = tmp_path / "parity"
    parity.write(path, trained, contract_config, vocabulary, folder)
    found = _judge(split_dir, model_dir, cache, tmp_path / "o", parity_file=str(path))
    assert "parity fails: the trainer embedded 1 records" in found.verdict.failures()[0]


def test_damaged_parity_file_is_an_error(split_dir, model_dir, cache, tmp_path):
    path = tmp_path / "parity"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="The trainer's answers cannot be read"):
        _judge(split_dir, model_dir, cache, tmp_path / "o", parity_file=str(path))


def test_folder_without_shards_is_refused(model_dir, cache, tmp_path):
    with pytest.raises(ValueError, match=r"no TFRecord shards \(\*.gz\). Received"):
        _judge(tmp_path, model_dir, cache, tmp_path / "o")


def test_cut_shard_is_named(split_dir, model_dir, cache, tmp_path):
    shutil.copytree(split_dir, tmp_path / "split")
    shard = next((tmp_path / "split").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=f"{shard.name} cannot be read; write it again"):
        _judge(tmp_path / "split", model_dir, cache, tmp_path / "o")


@pytest.mark.tfx
def test_tfma_reads_the_same_means_and_slices(split_dir, model_dir, cache, tmp_path):
    inputs = Inputs(str(split_dir), str(model_dir), str(cache))
    pipeline = beam.Pipeline(argv=["--runner=FnApiRunner"])
    found = judge.judge(inputs, LOOSE, str(tmp_path), pipeline, with_tfma=True)
    import tensorflow_model_analysis as tfma

    slices = dict(tfma.load_eval_result(str(tmp_path)).slicing_metrics)
    captions = dict(tfma.load_eval_result(str(tmp_path / "captions")).slicing_metrics)

    def of(table, key, name):
        return table[key][""][""][name]["doubleValue"]

    labelled = found.results["zero_shot_accuracy"]
    assert of(slices, (), "example_count") == 100 > labelled.examples
    for name in ("zero_shot_accuracy", "image_to_text_recall@5", "image_to_text_mean_rank"):
        assert of(slices, (), name) == pytest.approx(found.results[name].value)
    name = "text_to_image_recall@10"
    assert of(captions, (), name) == pytest.approx(found.results[name].value)
    words = "caption_words"
    parts = [x for x in found.results if x.startswith(f"image_to_text_recall@1/{words}=")]
    assert len(parts) > 1
    for part in parts:
        key = ((words, part.partition("=")[2]),)
        assert of(slices, key, "image_to_text_recall@1") == pytest.approx(found.results[part].value)
    assert any(key and key[0][0] == "class" for key in slices)


def test_picture_that_only_the_baseline_cannot_read_is_left_out_for_both(
    split_dir, scene_records, model_dir, bare_dir, cache, tmp_path, trainer_made
):
    buffer = io.BytesIO()
    Image.new("RGB", (65, 65), "red").save(buffer, "PNG")
    large = dataclasses.replace(scene_records[0], key="large", image=buffer.getvalue())
    folder = tmp_path / "split"
    shutil.copytree(split_dir, folder)
    tf_example.write_shard(str(folder / "more.gz"), [tf_example.encode(large)])
    options = {"baseline_dir": str(bare_dir), "parity_file": str(trainer_made)}
    found = _judge(folder, model_dir, cache, tmp_path / "o", **options)
    assert {check.metric for check in found.verdict.checks if not check.passed} == {"leaked_share"}
    assert found.results["image_to_text_recall@1"].examples == 100
    assert found.results["image_to_text_recall@1"].baseline is not None


def test_model_that_reads_no_picture_is_refused(
    split_dir, trained, vocabulary, cache, tmp_path, contract_config
):
    data = dataclasses.replace(contract_config.data, max_image_pixels=16)
    settings = dataclasses.replace(contract_config, data=data)
    saved_model.export(tmp_path / "m", trained, config=settings, vocabulary=vocabulary)
    found = _judge(split_dir, tmp_path / "m", cache, tmp_path / "o")
    assert "100 images could not be decoded by the model" in found.verdict.failures()[0]


def test_split_smaller_than_a_batch_is_timed_by_the_same_names(
    scene_records, model_dir, cache, tmp_path
):
    folder = tmp_path / "split"
    folder.mkdir()
    tf_example.write_shard(str(folder / "a.gz"), [])
    tf_example.write_shard(str(folder / "b.gz"), [tf_example.encode(scene_records[0])])
    found = _judge(folder, model_dir, cache, tmp_path / "o")
    assert found.results["latency_ms/embed_image@16"].value > 0


def test_corrupted_pictures_and_a_teacher_are_judged_too(split_dir, model_dir, cache, tmp_path):
    more = {"corruptions": (Corruption("blur", 3),), "teacher_dir": str(model_dir)}
    found = _judge(split_dir, model_dir, cache, tmp_path, **more)
    blurred = found.results["image_to_text_recall@1/corruption=blur@3"]
    assert blurred.examples == 100
    assert found.results["teacher_agreement"].value == 1.0
    assert found.results["teacher_divergence"].value == pytest.approx(0.0, abs=1e-9)
    assert "corruption=blur@3" in (tmp_path / "report.html").read_text()


def test_prompts_in_other_languages_stand_beside_the_models_own(
    split_dir, model_dir, cache, tmp_path
):
    own = grammar.label_set()
    shouted = LabelSet(tuple(name.upper() for name in own.names), ("EIN BILD VON {}",))
    found = _judge(split_dir, model_dir, cache, tmp_path, labels={"de": shouted}).results
    assert "zero_shot_accuracy" in found
    assert found["zero_shot_accuracy/prompts=de"].examples == found["zero_shot_accuracy"].examples


def test_prompts_of_other_classes_are_refused(split_dir, model_dir, bare_dir, cache, tmp_path):
    with pytest.raises(ValueError, match=r"same classes.* de: 1"):
        _judge(split_dir, model_dir, cache, tmp_path, labels={"de": LabelSet(("Hund",))})
    with pytest.raises(ValueError, match="must have one without a name"):
        _judge(split_dir, bare_dir, cache, tmp_path, labels={"de": grammar.label_set()})
