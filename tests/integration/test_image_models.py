"""Models of images alone go through the whole pipeline: labelled, distilled, served and asked."""

import dataclasses
import io
import json

import image_models
import numpy as np
import pytest
import yaml
from PIL import Image

from sigline.components.scenes import grammar
from sigline.pipeline import environment as environments
from sigline.schemas import signatures, versions

pytestmark = [pytest.mark.tfx, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    image_models.write_pictures(folder / "data", count=1500, seed=3)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    """A run of the classifier, a FlexiViT of two grids."""
    from sigline.pipeline import local_run

    # Labels are those of all pictures but the held-out ones.
    changes = ["objectives.classify.unlabelled=skip", "data.mixup=0"]
    # Each grid is drawn for half of the steps.
    changes += ["image.grids=[2,4]", "steps=400"]
    values = image_models.environment(
        folder,
        "vit_s16",
        overrides=[*image_models.SIZES, *changes],
        gate={
            "minimum": {"classification_accuracy": 0.15},
            "slice_minimum": {"classification_accuracy": {"grid": 0.15}},
        },
        evaluation={"probes": True, "corrupt": ["blur@3"]},
    )
    path = folder / "environment.yaml"
    path.write_text(yaml.safe_dump(values))
    return local_run.run(environments.load(path))


def test_classifier_is_trained_gated_and_published(report, folder):
    assert report.verdict["blessed"], report.verdict
    assert versions.verify(folder / "root/serving/1") is not None
    assert report.counts["written"] + report.counts["rejected"] == report.counts["input"] == 1500
    assert report.counts["rejected"] == 0
    names = {node.name for node in report.nodes}
    assert "TrainVocabulary" not in names
    assert {"Trainer", "EvaluateModel", "CheckServing", "PublishModel"} <= names
    metrics = report.metrics
    assert metrics["classification_accuracy"]["value"] > 0.15
    assert metrics["classification_accuracy"]["chance"] == pytest.approx(1 / 36, rel=0.01)
    assert "classification_mean_class_recall" in metrics
    assert "classification_calibration_error" in metrics
    assert "classification_accuracy/corruption=blur@3" in metrics
    assert "linear_probe_accuracy" in metrics
    assert not any("text" in name or "zero_shot" in name for name in metrics)
    checked = {check["metric"] for check in report.verdict["checks"]}
    assert {"parity_max_difference/image", "parity_max_difference/class_logits"} <= checked
    assert {f"classification_accuracy/grid={grid}" for grid in (2, 4)} <= checked
    assert "classification_accuracy_difference/grid=2" in metrics
    assert metrics["latency_ms/embed_image@1/grid=2"]["value"] > 0
    # Five of the default grid, and four of each grid.
    assert report.infra["signatures_run"] == 13.0


def test_report_and_card_say_what_it_is(folder):
    assets = folder / "root/serving/1" / signatures.ASSETS_DIR
    page = (assets / "model_card.md").read_text()
    assert page.startswith("# vit_s16")
    assert "An image model of" in page
    assert "its head tells 36 classes apart" in page
    assert "| classification_accuracy |" in page
    card = json.loads((assets / "model_card.json").read_text())
    assert card["model"]["classes"] == 36
    (report,) = folder.glob("root/artifacts/EvaluateModel/evaluation/*/report.html")
    text = report.read_text()
    assert "The five worst examples" in text
    assert "What is taken for what" in text
    assert "Calibration" in text
    assert "By number of patches" in text
    assert "Captions found for images" not in text
    name = grammar.label_set().names[0].split()[-1]
    assert name in text


def test_it_is_served_and_asked(report, folder, capsys):
    from sigline import cli
    from sigline.serving.checks import infra_check
    from sigline.serving.client import Client

    picture = folder / "one.png"
    picture.write_bytes(_a_picture())
    names = set(grammar.label_set().names)
    with infra_check.running_server(folder / "root/serving") as address:
        client = Client(address, timeout_seconds=120)
        answer = client.predict(
            signatures.CLASSIFY, {signatures.IMAGE_BYTES: [picture.read_bytes()]}
        )
        client.close()
        coarse = Client(address, timeout_seconds=120, grid=2)
        other = coarse.predict(
            signatures.CLASSIFY, {signatures.IMAGE_BYTES: [picture.read_bytes()]}
        )
        coarse.close()
        arguments = ["ask", "--target", address, "--image", str(picture)]
        assert cli.main([*arguments, "--grid", "3"]) == 1
        assert "--grid must be one of" in capsys.readouterr().err
        assert cli.main([*arguments, "--grid", "2"]) == 0
        asked_coarsely = capsys.readouterr().out
        assert cli.main(arguments) == 0
    classes = [name.decode() for name in answer[signatures.CLASSES][0]]
    assert len(classes) == 5
    assert set(classes) <= names
    assert np.all(np.diff(answer[signatures.SCORES][0]) <= 0)
    best = float(other[signatures.SCORES][0][0])
    assert best != float(answer[signatures.SCORES][0][0])
    assert asked_coarsely.split()[0] == f"{best:.4f}"
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 5
    assert lines[0].endswith(classes[0])


def _a_picture():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def test_student_is_distilled_on_a_cluster(report, folder, tmp_path):
    """From the classifier that was published, by the package for Kubeflow."""
    from sigline.pipeline.kubeflow import compiling, dry_run, packages
    from sigline.trainer import sources
    from sigline.trainer.weights import weight_folders

    mount = "/mnt/sigline"
    volume = tmp_path / "volume"
    image_models.write_pictures(volume / "data", count=600, seed=4)
    weight_folders.save(volume / "teacher", sources.load(folder / "root/serving/1"))
    values = image_models.environment(
        folder,
        "distill_vit_s16",
        root=f"{mount}/root",
        input_base=f"{mount}/data",
        teachers={"vit": f"{mount}/teacher"},
        overrides=[*image_models.SIZES, "steps=5", "data.mixup=0"],
        gate={"above_chance": {"classification_accuracy": None}},
        kubeflow={"image": "registry.example.com/sigline:1", "claim": "sigline", "retries": 0},
    )
    path = tmp_path / "environment.yaml"
    path.write_text(yaml.safe_dump(values))
    environment = environments.load(path)
    compiling.compile_pipeline(environment, tmp_path / "package.yaml")
    package = packages.read(tmp_path / "package.yaml").on(volume)
    run = dry_run.DryRun(package, tmp_path / "logs", preload=True)
    assert run.run() == "SUCCEEDED", {x.name: x.reason for x in run.tasks.values()}
    assert "TrainVocabulary" not in run.tasks
    verdict = json.loads((volume / "root/runs" / run.name / "verdict.json").read_text())
    assert verdict["verdict"] == "released", verdict
    assets = volume / "root/serving/1" / signatures.ASSETS_DIR
    model = json.loads((assets / signatures.METADATA_FILE).read_text())
    assert "teacher_digest/vit" in model
    # Another kind of recipe has other tasks.
    other = dry_run.DryRun(
        package, tmp_path / "other", parameters={"recipe": "siglip_demo"}, preload=True
    )
    assert other.run() == "FAILED"
    assert "must have a text tower if that of the package" in other.tasks["PlanRun"].log.read_text()


def test_recipe_that_reads_has_its_vocabulary(folder):
    from sigline.pipeline import checks

    given = environments.load(folder / "environment.yaml")
    assert not checks.reads_texts(given)
    assert checks.reads_texts(dataclasses.replace(given, recipe="siglip_small", overrides=()))
    assert checks.reads_texts(dataclasses.replace(given, recipe="nobodys.recipe"))
