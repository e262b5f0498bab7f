import dataclasses
import hashlib
import json
import shutil

import apache_beam as beam
import numpy as np
import power_cut
import pytest
import tensorflow as tf

from sigline import cli
from sigline.components.embed import manifest, transforms
from sigline.schemas import digests, record, tf_example
from sigline.schemas import examples as examples_manifest
from sigline.trainer import config
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import preprocess, shards
from sigline.trainer.models import two_tower
from sigline.trainer.training import loop, start, steps
from sigline.trainer.training.calls import Models
from sigline.trainer.weights import weight_folders
from sigline.trainer.weights.model_weights import Weights


@pytest.fixture(scope="module")
def tiny():
    return config.override(
        config.tiny(config.load_recipe("lit_b16")), ["steps=4", "image.depth=1", "text.depth=1"]
    )


@pytest.fixture(scope="module")
def weights(tiny):
    model = two_tower.build(dataclasses.replace(tiny, seed=3))
    return Weights(tiny, {n: v.numpy() for n, v in two_tower.named_variables(model).items()})


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, examples, weights):
    folder = tmp_path_factory.mktemp("embedded")
    weight_folders.save(folder / "weights", weights)
    arguments = ["--weights", folder / "weights", "--data", examples, "--output", folder / "out"]
    assert cli.main(["data", "embed", *map(str, arguments)]) == 0
    return folder / "out"


def _run(folder, transform):
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = pipeline | transform


def test_records_keep_all_but_the_image(embedded, examples, weights, tiny):
    model = two_tower.build(tiny)
    start.start_from(model, weights, tiny)
    for path in sorted((examples / "Split-train").iterdir()):
        before = list(tf_example.read_shard(str(path)))
        after = list(tf_example.read_shard(str(embedded / "Split-train" / path.name)))
        assert len(before) == len(after)
        for old, new in zip(before[:3], after[:3], strict=True):
            old, new = (tf.train.Example.FromString(x).features.feature for x in (old, new))
            assert set(old) - set(new) == {record.IMAGE}
            assert set(new) - set(old) == {record.IMAGE_EMBEDDING}
            assert all(old[name] == new[name] for name in set(old) & set(new))
            pixels = preprocess.load_image(
                tf.constant(old[record.IMAGE].bytes_list.value[0]), tiny.image, max_pixels=10**6
            )
            expected = model.embed_image(preprocess.to_model_range(pixels[None], tiny.image))[0]
            found = new[record.IMAGE_EMBEDDING].float_list.value
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_manifest_names_shards_and_tower(embedded, weights, tiny):
    content = json.loads((embedded / "manifest.json").read_text())
    listed = content["splits"]["train"]["shards"]
    assert sum(shard["records"] for shard in listed.values()) == 100
    for name, shard in listed.items():
        assert digests.file_digest(embedded / "Split-train" / name) == shard["sha256"]
        assert (embedded / "Split-train" / name).stat().st_size == shard["bytes"]
    model = two_tower.build(tiny)
    start.start_from(model, weights, tiny)
    assert content["embeddings"]["image_digest"] == saved_model.image_digest(model)
    assert shards.embeddings(embedded / "Split-train") == content["embeddings"]


def test_precomputed_and_live_training_agree(
    embedded, examples, weights, tiny, vocabulary, tmp_path
):
    found = {}
    for name, folder in (("live", examples), ("precomputed", embedded)):
        result = loop.train(
            tiny,
            split_dir=folder / "Split-train",
            vocabulary=vocabulary,
            checkpoint_dir=tmp_path / name,
            weights=weights,
        )
        found[name] = result
    assert found["precomputed"].final_loss == pytest.approx(found["live"].final_loss, rel=1e-5)
    live = two_tower.named_variables(found["live"].model)
    for name, value in two_tower.named_variables(found["precomputed"].model).items():
        if name.endswith("attention/key/bias"):
            # Softmax leaves them no gradient but rounding, which AdamW scales up to whole steps.
            continue
        np.testing.assert_allclose(value, live[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_embeddings_of_another_tower_are_refused(embedded, weights, tiny):
    other = two_tower.build(tiny)
    with pytest.raises(ValueError, match=r"by another image tower.*embed them again"):
        start.check_embedded_by(other, shards.embeddings(embedded / "Split-train"), tiny)


def test_options_of_training_do_not_make_embeddings_stale(embedded, weights, tiny):
    dropping = config.override(tiny, ["image.token_dropout=0.5", "image.block.dropout=0.1"])
    model = two_tower.build(dropping)
    start.start_from(model, weights, dropping)
    start.check_embedded_by(model, shards.embeddings(embedded / "Split-train"), dropping)


def test_embeddings_for_a_tower_that_is_trained_are_refused(embedded, tiny):
    trained = config.override(tiny, ['optimizer.rates=[[".*", 1]]'])
    with pytest.raises(ValueError, match=r"frozen by optimizer\.rates"):
        start.check_embedded_by(
            two_tower.build(tiny), shards.embeddings(embedded / "Split-train"), trained
        )


def test_embedded_examples_are_not_embedded_again(embedded, tmp_path):
    transform = transforms.EmbedImages(str(embedded), str(embedded / "tower"), str(tmp_path))
    with pytest.raises(ValueError, match="hold embeddings already"):
        _run(tmp_path, transform)


def test_interrupted_run_keeps_its_shards(embedded, examples, tmp_path):
    shutil.copytree(embedded / "tower", tmp_path / "tower")
    first, second = sorted((embedded / "Split-train").iterdir())
    (tmp_path / "Split-train").mkdir()
    kept = shutil.copy2(first, tmp_path / "Split-train" / first.name)
    (tmp_path / f"tmp-0-train-{second.name}").write_bytes(b"half a shard")
    before = kept.stat().st_mtime_ns
    _run(tmp_path, transforms.EmbedImages(str(examples), str(tmp_path / "tower"), str(tmp_path)))
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "manifest.json").read_text() == (embedded / "manifest.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Split-train", "manifest.json", "tower"]


def test_cut_of_the_power_leaves_no_manifest_without_its_shards(embedded, examples, tmp_path):
    tower, output = embedded / "tower", tmp_path / "out"
    output.mkdir()

    def _embed():
        _run(output, transforms.EmbedImages(str(examples), str(tower), str(output / "in")))

    found = power_cut.states(output, _embed)
    named = [state for state in found if "in/manifest.json" in state]
    assert 0 < len(named) < len(found)
    for state in named:
        splits = json.loads(state["in/manifest.json"])["splits"]
        for name, shard in splits["train"]["shards"].items():
            content = state[f"in/Split-train/{name}"]
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]


def test_output_does_not_depend_on_the_run(embedded, examples, weights, tmp_path):
    weight_folders.save(tmp_path / "weights", weights)
    arguments = ["--weights", tmp_path / "weights", "--data", examples, "--output", tmp_path / "b"]
    assert cli.main(["data", "embed", *map(str, arguments)]) == 0
    for path in (embedded / "Split-train").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "Split-train" / path.name).read_bytes()


def test_records_without_captions_are_embedded(embedded, examples, tmp_path):
    name = "data_tfrecord-00000-of-00001.gz"
    path = tmp_path / "in" / "Split-train" / name
    path.parent.mkdir(parents=True)
    first = sorted((examples / "Split-train").iterdir())[0]
    records = [
        dataclasses.replace(tf_example.decode(item), text=(), language=())
        for item in list(tf_example.read_shard(str(first)))[:3]
    ]
    tf_example.write_shard(str(path), map(tf_example.encode, records))
    listed = {name: {"records": 3, "sha256": digests.file_digest(path)}}
    manifest_text = json.dumps({"splits": {"train": {"shards": listed}}})
    (tmp_path / "in" / "manifest.json").write_text(manifest_text)
    output = tmp_path / "out"
    tower = str(embedded / "tower")
    _run(tmp_path, transforms.EmbedImages(str(tmp_path / "in"), tower, str(output)))
    written = list(tf_example.read_shard(str(output / "Split-train" / name)))
    known = list(tf_example.read_shard(str(embedded / "Split-train" / first.name)))[:3]
    for item, other in zip(written, known, strict=True):
        item, other = (tf_example.features(x) for x in (item, other))
        assert item[record.TEXT] == item[record.LANGUAGE] == []
        np.testing.assert_allclose(
            item[record.IMAGE_EMBEDDING], other[record.IMAGE_EMBEDDING], atol=1e-6
        )


def test_image_that_does_not_decode_is_named(embedded, examples, tmp_path):
    folder = tmp_path / "examples"
    shutil.copytree(examples, folder)
    shard = sorted((folder / "Split-train").iterdir())[0]
    records = [tf_example.decode(item) for item in tf_example.read_shard(str(shard))]
    records[5] = dataclasses.replace(records[5], image=records[5].image[:40])
    tf_example.write_shard(str(shard), map(tf_example.encode, records))
    transform = transforms.EmbedImages(str(folder), str(embedded / "tower"), str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match=f"do not decode.*'{records[5].key}'"):
        _run(tmp_path, transform)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_lost_records_are_an_error():
    of_examples = json.dumps({"splits": {"train": {"shards": {"a.gz": {"records": 3}}}}})
    written = {("train", "a.gz"): {"records": 2, "sha256": ""}}
    with pytest.raises(RuntimeError, match=r"train/a\.gz with 2 records instead of 3"):
        manifest.embedded(of_examples, written, ("train",), {"image_digest": "x"})


def test_model_that_does_not_name_its_tower_is_refused():
    with pytest.raises(ValueError, match="has no 'image_digest'; export it again"):
        manifest.tower({"embedding_dim": 3})


def test_examples_without_a_manifest_are_refused(embedded, split_dir, tmp_path):
    with pytest.raises(ValueError, match=r"There is no manifest\.json"):
        transforms.EmbedImages(str(split_dir.parent), str(embedded / "tower"), str(tmp_path))


@pytest.mark.parametrize(
    ("splits", "name", "message"),
    [
        (("trian",), "a.gz", r"Unknown splits. Received: trian. Known splits: train"),
        (("train",), "../../a.gz", r"must name files of its splits. Received: '\.\./\.\./a\.gz'"),
    ],
)
def test_wrong_splits_and_names_are_refused(splits, name, message):
    examples = json.dumps({"splits": {"train": {"shards": {name: {"records": 3}}}}})
    with pytest.raises(ValueError, match=message):
        examples_manifest.shards(examples, splits)


def test_interrupted_run_with_another_tower_is_in_the_way(
    embedded, examples, weights, tmp_path, capsys
):
    shutil.copytree(embedded / "tower", tmp_path / "out.partial" / "tower")
    other = {name: value + 1 for name, value in weights.parameters.items()}
    weight_folders.save(tmp_path / "weights", dataclasses.replace(weights, parameters=other))
    arguments = [
        "--weights",
        tmp_path / "weights",
        "--data",
        examples,
        "--output",
        tmp_path / "out",
    ]
    assert cli.main(["data", "embed", *map(str, arguments)]) == 2
    assert "another image tower is in the way; remove it" in capsys.readouterr().err


def test_recipe_decides_the_resolution(examples, weights, tiny, vocabulary, tmp_path):
    weight_folders.save(tmp_path / "weights", weights)
    size = f"image.size={2 * tiny.image.size}"
    arguments = [
        "--weights",
        tmp_path / "weights",
        "--data",
        examples,
        "--output",
        tmp_path / "out",
    ]
    assert cli.main(["data", "embed", *map(str, arguments), "--set", size]) == 0
    larger = config.override(tiny, [size, "steps=1"])
    loop.train(
        larger,
        split_dir=tmp_path / "out" / "Split-train",
        vocabulary=vocabulary,
        checkpoint_dir=tmp_path / "ck",
        weights=weights,
    )


def test_microbatches_of_embeddings_give_the_same_gradients(weights, tiny):
    model = two_tower.build(tiny)
    parameters = {n: tf.convert_to_tensor(v) for n, v in two_tower.named_variables(model).items()}
    vectors = two_tower.normalize(tf.random.stateless_normal((8, tiny.image.output_dim), (0, 0)))
    ids = tf.random.stateless_uniform((8, 16), (0, 1), 1, 500, tf.int32)
    inputs = {"image": vectors, "text": ids}
    whole, parts = (
        steps.forward_backward(
            parameters,
            inputs,
            tf.zeros((), tf.int64),
            models=Models.of(dataclasses.replace(tiny, microbatches=number), model, embedded=True),
        ).gradients
        for number in (1, 2)
    )
    assert set(whole) == set(parts)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


def test_claim_changes_with_examples_and_tower():
    examples = '{"splits": {}}'
    claims = {
        manifest.claim(examples, {"image_digest": "a"}),
        manifest.claim(examples, {"image_digest": "b"}),
        manifest.claim('{"splits": {"train": {}}}', {"image_digest": "a"}),
    }
    assert len(claims) == 3
