import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sigline.components.scenes import draw, generate, grammar


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes")
    generate.write_scenes(path, count=100, seed=5, faults={generate.CORRUPT: 0.1})
    return path


def test_same_arguments_give_the_same_bytes(folder, tmp_path):
    generate.write_scenes(tmp_path, count=100, seed=5, faults={generate.CORRUPT: 0.1})
    assert _files(folder) == _files(tmp_path)


def test_other_seed_gives_other_scenes(folder, tmp_path):
    generate.write_scenes(tmp_path, count=100, seed=6)
    name = "scenes-00000.tar"
    assert (folder / name).read_bytes() != (tmp_path / name).read_bytes()


def test_held_out_combinations_are_never_in_the_training_source(folder):
    held_out = {f"{color} {shape}" for color, shape in grammar.HELD_OUT}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            captions = [
                archive.extractfile(m).read().decode() for m in archive if m.name.endswith("txt")
            ]
        shown = [any(name in caption for name in held_out) for caption in captions]
        assert all(shown) if path.name.startswith("scenes-heldout") else not any(shown)


def test_planted_faults_are_listed(folder):
    planted = json.loads((folder / generate.FAULTS_FILE).read_text())
    # A tenth of the 95 pairs that are not held out, rounded.
    assert list(planted.values()) == [generate.CORRUPT] * 10


def test_every_color_and_shape_is_seen_and_held_out_once():
    assert len(grammar.HELD_OUT) == len(grammar.COLORS) == len(grammar.SHAPES)
    assert {color for color, _ in grammar.SEEN} == set(grammar.COLORS)
    assert {shape for _, shape in grammar.SEEN} == set(grammar.SHAPES)


def test_captions_agree_with_the_scene():
    scene = grammar.Scene(
        (grammar.Item("red", "ring", "small"), grammar.Item("blue", "star", "large")), "above"
    )
    assert "a red ring above a blue star" in scene.captions()
    assert "a blue star below a red ring" in scene.captions()
    assert scene.label is None


@pytest.mark.parametrize("shape", grammar.SHAPES)
@pytest.mark.parametrize("color", grammar.COLORS)
def test_object_has_its_color(color, shape):
    scene = grammar.Scene((grammar.Item(color, shape, "large"),))
    pixels = np.asarray(draw.draw_scene(scene, np.random.default_rng(0)), np.int16)
    distance = np.abs(pixels - np.array(draw._RGB[color])).max(axis=2)
    assert (distance <= draw._COLOR_NOISE + 2).mean() > 0.05


@pytest.mark.parametrize("relation", grammar.RELATIONS)
def test_objects_stand_as_the_relation_says(relation):
    items = (grammar.Item("red", "circle", "small"), grammar.Item("blue", "circle", "small"))
    scene = grammar.Scene(items, relation)
    pixels = np.asarray(draw.draw_scene(scene, np.random.default_rng(1)), np.int16)
    red, blue = (
        np.argwhere(np.abs(pixels - np.array(draw._RGB[c])).max(axis=2) < 20).mean(axis=0)
        for c in ("red", "blue")
    )
    axis = 1 if relation in ("left of", "right of") else 0
    first_is_near = relation in ("left of", "above")
    assert (red[axis] < blue[axis]) == first_is_near


def test_reencoded_duplicate_is_nearly_its_original(tmp_path):
    generate.write_scenes(tmp_path, count=60, seed=0, faults={generate.REENCODED_DUPLICATE: 0.1})
    planted = json.loads((tmp_path / generate.FAULTS_FILE).read_text())
    images = {}
    with tarfile.open(tmp_path / "scenes-00000.tar") as archive:
        for member in archive:
            key, suffix = member.name.split(".")
            if suffix in ("png", "jpg"):
                content = archive.extractfile(member).read()
                images[key] = np.asarray(Image.open(io.BytesIO(content)), np.int16)
    assert planted
    for key in planted:
        nearest = min(np.abs(images[key] - v).mean() for k, v in images.items() if k != key)
        assert nearest < 4


def test_shuffled_captions_belong_to_other_images(tmp_path):
    generate.write_scenes(tmp_path / "a", count=100, seed=0)
    generate.write_scenes(tmp_path / "b", count=100, seed=0, faults={generate.SHUFFLED_CAPTIONS: 1})

    def _captions(folder):
        with tarfile.open(folder / "scenes-00000.tar") as archive:
            return {m.name: archive.extractfile(m).read() for m in archive if "txt" in m.name}

    before, after = _captions(tmp_path / "a"), _captions(tmp_path / "b")
    assert sorted(before.values()) == sorted(after.values())
    assert sum(before[name] != after[name] for name in before) > 80


def test_parse_faults_reads_shares():
    assert generate.parse_faults("corrupt=0.1,empty_text=1") == {"corrupt": 0.1, "empty_text": 1.0}


@pytest.mark.parametrize("text", ["corupt=0.1", "corrupt", "corrupt=2", "corrupt=-1"])
def test_wrong_faults_are_refused(text):
    with pytest.raises(ValueError, match=r"NAME=SHARE.*Known names: corrupt"):
        generate.parse_faults(text)


def test_too_few_scenes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 20"):
        generate.write_scenes(tmp_path, count=5, seed=0)
