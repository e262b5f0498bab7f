"""`sigline gate`, as continuous integration calls it."""

import io
import json
import shutil
import tarfile
from xml.etree import ElementTree

import pytest
from PIL import Image

from sigline import cli
from sigline.components.scenes import grammar

ACCURACY = "zero_shot_accuracy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_without_classes):
    """A model and gates that it passes and does not."""
    folder = tmp_path_factory.mktemp("gate")
    shutil.copytree(model_without_classes, folder / "model")
    (folder / "classes.json").write_text(grammar.label_set().to_json())
    (folder / "passes.yaml").write_text(f"minimum: {{{ACCURACY}: 0}}")
    (folder / "fails.yaml").write_text(f"minimum: {{{ACCURACY}: 0.99}}")
    return folder


@pytest.fixture
def gate(folder, tmp_path):
    def run(data, limits, *more):
        arguments = ["gate", "--model", str(folder / "model"), "--data", str(data)]
        arguments += ["--gate", str(folder / limits), "--output", str(tmp_path / "out"), *more]
        code = cli.main(arguments)
        found = tmp_path / "out" / "metrics.json"
        return code, json.loads(found.read_text()) if found.is_file() else {}

    return run


def _archive(folder, records, members):
    """Writes records as the only shard of a test split in CLIP_benchmark's layout."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for number, record in enumerate(records):
            buffer = io.BytesIO()
            Image.open(io.BytesIO(record.image)).save(buffer, "WEBP", lossless=True)
            for suffix, content in {"webp": buffer.getvalue(), **members(record)}.items():
                member = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def test_refused_model_is_said_in_every_form(gate, folder, split_dir, tmp_path, capsys):
    labels = ["--split", "train", "--labels", str(folder / "classes.json")]
    code, _ = gate(split_dir, "fails.yaml", *labels)
    assert code == 1
    said = capsys.readouterr().out
    assert f"FAIL  {ACCURACY}" in said
    assert said.rstrip().endswith("Not blessed.")
    (suite,) = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    assert suite.get("failures") == "1"
    assert ACCURACY in (tmp_path / "out" / "summary.md").read_text()
    assert "Not blessed" in (tmp_path / "out" / "report.html").read_text()


def test_classes_of_a_benchmark_are_judged_as_ours(
    gate, folder, split_dir, scene_records, tmp_path
):
    labelled = [record for record in scene_records if record.label]
    labels = grammar.label_set()
    theirs = _archive(
        tmp_path / "scenes", labelled, lambda record: {"cls": str(record.label[0]).encode()}
    )
    (theirs / "classnames.txt").write_text("\n".join(labels.names) + "\n")
    templates = [template.replace("{}", "{c}") for template in labels.templates]
    (theirs / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    code, found = gate(theirs, "passes.yaml")
    assert code == 0
    shown = list((tmp_path / "out" / "clip_benchmark").iterdir())
    assert [json.loads(path.read_text())["task"] for path in shown] == ["zeroshot_classification"]
    assert not any("image_to_text" in name for name in found)
    own = ["--split", "train", "--labels", str(folder / "classes.json")]
    _, ours = gate(split_dir, "passes.yaml", *own)
    for name in (ACCURACY, "zero_shot_mean_class_recall"):
        assert found[name]["examples"] == ours[name]["examples"] == len(labelled)
        assert found[name]["value"] == ours[name]["value"]
        assert found[name]["chance"] == ours[name]["chance"]


def test_captions_of_a_benchmark_are_judged_as_ours(
    gate, folder, scene_records, split_dir, tmp_path
):
    theirs = _archive(
        tmp_path / "scenes", scene_records, lambda record: {"txt": "\n".join(record.text).encode()}
    )
    (theirs / "dataset_type.txt").write_text("retrieval\n")
    (folder / "recall.yaml").write_text("minimum: {text_to_image_recall@1: 0}")
    code, found = gate(theirs, "recall.yaml")
    assert code == 0
    _, ours = gate(split_dir, "recall.yaml", "--split", "train")
    recalls = [name for name in ours if "recall@" in name and "/" not in name]
    assert len(recalls) == 6
    for name in recalls:
        assert found[name]["value"] == ours[name]["value"]


def test_mistake_is_one_line(gate, tmp_path, capsys):
    code, _ = gate(tmp_path, "passes.yaml")
    assert code == 2
    error = capsys.readouterr().err
    assert "--data must be a folder of TFRecord shards" in error
    assert len(error.splitlines()) == 1
