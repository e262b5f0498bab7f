import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from sigline.schemas import tf_example
from sigline.trainer import config
from sigline.trainer.inputs import data, preprocess, shards
from sigline.trainer.inputs.needs import of_pairs
from sigline.trainer.inputs.views import View


@pytest.fixture(scope="module")
def tiny():
    return config.tiny(config.load_recipe("siglip_demo"))


@pytest.fixture(scope="module")
def tokenizer(vocabulary, tiny):
    return preprocess.Tokenizer(vocabulary, tiny.text)


def _batches(split_dir, tiny, tokenizer, count, first_step=0):
    dataset = data.training_batches(
        split_dir, tiny, of_pairs(tiny.image, tokenizer), first_step=first_step
    )
    batches = itertools.islice(dataset.as_numpy_iterator(), count)
    return [(batch["image"], batch["text"]) for batch in batches]


@pytest.fixture(scope="module")
def whole(split_dir, tiny, tokenizer):
    """The first batches of an uninterrupted stream."""
    return _batches(split_dir, tiny, tokenizer, 33)


def test_batches_have_static_shapes(whole, tiny):
    image, ids = whole[0]
    assert image.shape == (8, tiny.image.size, tiny.image.size, 3)
    assert image.dtype == np.uint8
    assert ids.shape == (8, 16)


# 100 records in batches of 8: step 12 stands inside the first epoch, 13 across its end, 30 later.
@pytest.mark.parametrize("first_step", [1, 12, 13, 30])
def test_stream_from_a_step_on_equals_the_uninterrupted_one(
    split_dir, tiny, tokenizer, whole, first_step
):
    resumed = _batches(split_dir, tiny, tokenizer, 3, first_step)
    expected = whole[first_step : first_step + 3]
    for (image, ids), (other_image, other_ids) in zip(expected, resumed, strict=True):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(ids, other_ids)


@pytest.fixture(scope="module")
def cropped(split_dir, tiny, tokenizer):
    """A configuration with random crops, and batches from step 5 on."""
    settings = config.override(tiny, ["data.crop_min_area=0.1"])
    return settings, _batches(split_dir, settings, tokenizer, 3, 5)


@pytest.mark.parametrize("threads", [1, 7])
def test_number_of_input_threads_changes_nothing(split_dir, cropped, tokenizer, threads):
    settings, expected = cropped
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    dataset = data.training_batches(
        split_dir, settings, of_pairs(settings.image, tokenizer), first_step=5
    )
    found = itertools.islice(dataset.with_options(options).as_numpy_iterator(), 3)
    for (image, ids), batch in zip(expected, found, strict=True):
        np.testing.assert_array_equal(batch["image"], image)
        np.testing.assert_array_equal(batch["text"], ids)


@pytest.mark.parametrize("first_step", [0, 13])
def test_hosts_share_every_global_batch(split_dir, tiny, tokenizer, whole, first_step):
    hosts = [
        data.training_batches(
            split_dir,
            tiny,
            of_pairs(tiny.image, tokenizer),
            first_step=first_step,
            num_hosts=2,
            host=host,
            batch_size=2,
        )
        for host in range(2)
    ]
    # A host feeds two replicas of 2 from each global batch of 8.
    parts = [
        np.stack([b["image"] for b in itertools.islice(h.as_numpy_iterator(), 6)]) for h in hosts
    ]
    for number, (image, _) in enumerate(whole[first_step : first_step + 3]):
        for host in range(2):
            mine = parts[host][2 * number : 2 * number + 2].reshape(4, *image.shape[1:])
            np.testing.assert_array_equal(mine, image[4 * host : 4 * host + 4])


def test_an_epoch_visits_every_record_once(split_dir, tiny, tokenizer, scene_records):
    four = dataclasses.replace(tiny, global_batch_size=25)
    seen = np.concatenate([image for image, _ in _batches(split_dir, four, tokenizer, 4)])
    expected = [
        preprocess.load_image(tf.constant(item.image), tiny.image, max_pixels=10**6).numpy()
        for item in scene_records
    ]
    assert sorted(x.tobytes() for x in seen) == sorted(x.tobytes() for x in expected)


def test_epochs_and_seeds_have_different_orders(split_dir, tiny, tokenizer):
    whole = dataclasses.replace(tiny, global_batch_size=100)
    first, second = (image for image, _ in _batches(split_dir, whole, tokenizer, 2))
    assert (first != second).any()
    other_seed = dataclasses.replace(whole, seed=1)
    assert (first != _batches(split_dir, other_seed, tokenizer, 1)[0][0]).any()


def test_every_caption_is_drawn_in_time(tmp_path, scene_records, tiny, tokenizer):
    one = scene_records[0]
    folder = tmp_path / "Split-train"
    folder.mkdir()
    tf_example.write_shard(str(folder / "a.gz"), [tf_example.encode(one)])
    ids = np.concatenate([ids for _, ids in _batches(folder, tiny, tokenizer, 8)])
    expected = tokenizer(tf.constant(one.text)).numpy()
    assert {row.tobytes() for row in ids} == {row.tobytes() for row in expected}


def test_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no TFRecord shards.*Received: split_dir="):
        shards.shard_files(tmp_path)


def test_missing_shard_of_the_manifest_is_refused(tmp_path, scene_records):
    folder = tmp_path / "Split-train"
    folder.mkdir()
    tf_example.write_shard(str(folder / "a.gz"), [tf_example.encode(scene_records[0])])
    listed = {name: {"records": 1, "sha256": ""} for name in ("a.gz", "b.gz")}
    manifest = {"splits": {"train": {"shards": listed, "sources": {}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"must hold the 2 shards.*with 1 shards"):
        shards.shard_files(folder)


def test_data_digest_is_the_same_with_and_without_the_sizes_of_shards(examples, tmp_path):
    """Manifests of earlier versions have no sizes, and runs on them go on."""
    shutil.copytree(examples, tmp_path / "examples")
    path = tmp_path / "examples" / "manifest.json"
    manifest = json.loads(path.read_text())
    for shard in manifest["splits"]["train"]["shards"].values():
        shard["bytes"] = 1
    path.write_text(json.dumps(manifest))
    first, second = (x / "Split-train" for x in (examples, tmp_path / "examples"))
    assert shards.data_digest(first) == shards.data_digest(second)


def test_data_digest_follows_the_bytes(tmp_path, scene_records):
    encoded = [tf_example.encode(item) for item in scene_records[:3]]
    tf_example.write_shard(str(tmp_path / "a.gz"), encoded)
    first = shards.data_digest(tmp_path)
    tf_example.write_shard(str(tmp_path / "a.gz"), encoded[:2])
    assert shards.data_digest(tmp_path) != first


def _images(split_dir, settings, tokenizer, count=1, first_step=0):
    batches = _batches(split_dir, settings, tokenizer, count, first_step)
    return np.concatenate([image for image, _ in batches])


def test_flip_mirrors_about_half_of_the_images(split_dir, tiny, tokenizer, whole):
    plain = np.concatenate([image for image, _ in whole[:12]])
    flipped = _images(split_dir, config.override(tiny, ["data.flip=true"]), tokenizer, 12)
    mirrored = [(a[:, ::-1] == b).all() for a, b in zip(plain, flipped, strict=True)]
    same = [(a == b).all() for a, b in zip(plain, flipped, strict=True)]
    assert all(x or y for x, y in zip(mirrored, same, strict=True))
    assert 0.3 < np.mean(same) < 0.7


def test_crops_differ_from_epoch_to_epoch_and_are_the_same_after_a_resume(
    split_dir, tiny, tokenizer
):
    whole = config.override(tiny, ["global_batch_size=100", "data.shuffle_records=1"])
    cropped = config.override(whole, ["data.crop_min_area=0.05", "data.flip=true"])
    twice = _images(split_dir, cropped, tokenizer, 2)
    assert len({image.tobytes() for image in twice}) > 150
    np.testing.assert_array_equal(twice[100:], _images(split_dir, cropped, tokenizer, 1, 1))


def test_crops_keep_the_asked_share_and_shape():
    # Each pixel holds its own place, so that a crop can be read off its corners.
    y, x = np.mgrid[:200, :200]
    image = np.stack([y, x, np.zeros_like(y)], -1).astype(np.uint8)
    encoded = tf.io.encode_png(image)
    tower = config.ImageTowerConfig(size=100, patch=4)
    options = config.DataConfig(crop_min_area=0.25)
    shares, aspects = [], []
    for number in range(60):
        found = preprocess.load_views(
            encoded, {"image": View(tower)}, options, seed=tf.constant([number, 0])
        )["image"].numpy()
        # Without antialiasing the outer pixels are half a step inside of the crop.
        height, width = (float(np.ptp(found[..., axis])) / 99 * 100 for axis in (0, 1))
        shares.append(height * width / 200**2)
        aspects.append(width / height)
    assert min(shares) > 0.22
    assert max(shares) <= 1.05
    assert np.std(shares) > 0.1
    assert 0.7 < min(aspects) < 0.9 < 1.1 < max(aspects) < 1.4


def test_embedded_images_cannot_be_cropped(tmp_path, tiny, tokenizer, split_dir):
    (tmp_path / "Split-train").mkdir()
    counts = {"embeddings": {"dim": 3}, "splits": {"train": {"shards": {"a.gz": {"records": 1}}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(counts))
    with pytest.raises(ValueError, match="cannot be cropped, flipped"):
        data.training_batches(
            tmp_path / "Split-train",
            config.override(tiny, ["data.flip=true"]),
            of_pairs(tiny.image, tokenizer),
            first_step=0,
        )


@pytest.mark.parametrize("kept", [0, 49])
def test_shard_that_is_shorter_than_the_manifest_says_stops_the_run(
    split_dir, tiny, tokenizer, tmp_path, kept
):
    folder = shutil.copytree(split_dir, tmp_path / "Split-train")
    first, second = sorted(folder.iterdir())
    records = list(tf_example.read_shard(str(second)))
    tf_example.write_shard(str(second), records[:kept])
    listed = {path.name: {"records": 50} for path in (first, second)}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": {"train": {"shards": listed}}}))
    with pytest.raises(tf.errors.OpError) as caught:
        _batches(folder, tiny, tokenizer, 14)
    message = str(shards.unreadable(folder, caught.value))
    assert f"{second.name} has {kept} records instead of 50" in message
    assert first.name not in message


def test_damaged_shard_without_a_manifest_is_named(split_dir, tmp_path):
    folder = shutil.copytree(split_dir, tmp_path / "Split-train")
    shard = sorted(folder.iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(tf.errors.OpError) as caught:
        shards.open_split(folder)
    message = str(shards.unreadable(folder, caught.value))
    assert re.search(rf"{shard.name} after \d+ whole records", message)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, scene_records):
    """Splits of 30, 20 and 10 records."""
    found = []
    for name, part in (("a", slice(0, 30)), ("b", slice(30, 50)), ("c", slice(50, 60))):
        folder = tmp_path_factory.mktemp(name) / "Split-train"
        folder.mkdir()
        encoded = [tf_example.encode(item) for item in scene_records[part]]
        tf_example.write_shard(str(folder / f"{name}.gz"), encoded)
        found.append(folder)
    return found


def _keys(folders, settings, steps):
    return [data.batch_keys(folders, settings, number=step) for step in steps]


def test_every_batch_holds_the_asked_numbers_of_each_folder(folders, tiny):
    settings = config.override(tiny, ["data.mixture=[1, 2, 1]"])
    batches = _keys(folders, settings, range(1, 21))
    for keys in batches:
        numbers = [int(key) // 10 for key in keys]
        assert [sum(n in part for n in numbers) for part in ((0, 1, 2), (3, 4), (5,))] == [2, 4, 2]
    # In another order each time, and each folder's records once an epoch.
    assert len({tuple(int(key) >= 30 for key in keys) for keys in batches}) > 10
    of_a = [key for keys in batches for key in keys if int(key) < 30]
    assert sorted(of_a[:30]) == [f"{i:03d}" for i in range(30)]


def test_mixture_without_weights_follows_the_records(folders, tiny):
    settings = config.override(tiny, ["global_batch_size=6"])
    keys = [int(key) for key in _keys(folders, settings, [3])[0]]
    assert [sum(a <= k < b for k in keys) for a, b in ((0, 30), (30, 50), (50, 60))] == [3, 2, 1]


@pytest.fixture(scope="module")
def mixed(folders, tiny, tokenizer):
    """A configuration with a mixture, and the first batches of an uninterrupted stream."""
    settings = config.override(tiny, ["data.mixture=[3, 1, 1]"])
    return settings, _batches(folders, settings, tokenizer, 42)


@pytest.mark.parametrize("first_step", [1, 7, 40])
def test_mixture_from_a_step_on_equals_the_uninterrupted_one(folders, mixed, tokenizer, first_step):
    settings, batches = mixed
    resumed = _batches(folders, settings, tokenizer, 2, first_step)
    expected = batches[first_step : first_step + 2]
    for (image, ids), (other_image, other_ids) in zip(expected, resumed, strict=True):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(ids, other_ids)


def test_shares_are_the_weights_rounded():
    assert data.shares([1, 1, 1], 8) == [3, 3, 2]
    assert data.shares([0.5, 0.25, 0.25], 8) == [4, 2, 2]
    with pytest.raises(ValueError, match="must have an example in every batch"):
        data.shares([100, 1], 8)


def test_mixture_needs_a_weight_for_each_folder(folders, tiny):
    settings = config.override(tiny, ["data.mixture=[1, 2]"])
    with pytest.raises(ValueError, match=r"a weight for each folder.*folders=3"):
        data.batch_keys(folders, settings, number=1)


def test_folders_that_are_embedded_otherwise_are_refused(folders, tmp_path):
    (tmp_path / "Split-train").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({"embeddings": {"dim": 3}}))
    with pytest.raises(ValueError, match="embedded by the same tower, or none"):
        shards.embeddings([folders[0], tmp_path / "Split-train"])


def test_record_that_cannot_be_used_is_one_sentence(split_dir, tiny):
    small = config.override(tiny, ["data.max_image_pixels=10"])
    dataset = data.training_batches(split_dir, small, of_pairs(small.image, None), first_step=0)
    with pytest.raises(tf.errors.OpError) as caught:
        next(iter(dataset))
    assert "A record cannot be used." in str(shards.unreadable(split_dir, caught.value))
