"""Runs of compiled packages other than the plain one: refused models, spans, frozen towers."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_model import FROZEN, OVERRIDES, write_weights

from sigline.components.scenes import generate
from sigline.pipeline import environment as environments
from sigline.schemas import signatures
from sigline.trainer.inputs import shards

pytestmark = [pytest.mark.tfx, pytest.mark.slow]

MOUNT = "/mnt/sigline"
# None of the recipe's thresholds that five steps do not reach.
ANY = {"above_chance": {"image_to_text_recall@10": None, "text_to_image_recall@10": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for span in (1, 2):
        generate.write_scenes(folder / f"volume/data/span-{span}", count=400, seed=span)
    return folder


def _package(folder: Path, name: str, **changes):
    from sigline.pipeline.kubeflow import compiling, packages

    values = {
        "pipeline_name": name,
        "root": f"{MOUNT}/{name}",
        "recipe": "siglip_small",
        "overrides": [*OVERRIDES, "run.checkpoint_steps=5"],
        "ingest": {"eval_share": 0.2},
        "data_gate": {"max_drift": {"source": 0.5}},
        "kubeflow": {"image": "registry.example.com/sigline:1", "claim": "sigline", "retries": 0},
    }
    path = folder / f"{name}-environment.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    compiling.compile_pipeline(environments.load(path), folder / f"{name}.yaml")
    return packages.read(folder / f"{name}.yaml").on(folder / "volume")


def _run(package, folder: Path, name: str, **parameters: str):
    from sigline.pipeline.kubeflow import dry_run

    run = dry_run.DryRun(package, folder / "logs", parameters=parameters, preload=True)
    state = run.run()
    assert state == "SUCCEEDED", {x.name: x.reason for x in run.tasks.values()}
    path = folder / "volume" / name / "runs" / run.name / "verdict.json"
    return run, json.loads(path.read_text())


def _stood_for(run, task: str, output: str) -> list[str]:
    found = run.tasks[task].artifacts[output]["metadata"]["stands_for"]
    return [item["uri"] for item in json.loads(found)]


@pytest.fixture(scope="module")
def spans(folder):
    """The package of a pipeline whose data come in spans."""
    return _package(folder, "spans", input_base=f"{MOUNT}/data/span-{{SPAN}}", window=2)


@pytest.fixture(scope="module")
def refused(spans, folder):
    """A run of the first span with a threshold that no model reaches."""
    gate = json.dumps(ANY | {"minimum": {"zero_shot_accuracy": 0.999}})
    return _run(spans, folder, "spans", span="1", steps="5", gate=gate)


def test_refused_model_is_not_published_and_the_run_says_why(refused, folder):
    run, verdict = refused
    assert verdict["verdict"] == "refused"
    assert verdict["failures"] == []
    assert any("zero_shot_accuracy" in reason for reason in verdict["refusals"])
    assert verdict["published"] == {}
    assert run.tasks["RecordVerdict"].parameters == {"verdict": "refused"}
    skipped = {name for name, task in run.tasks.items() if task.state == "SKIPPED"}
    assert skipped == {"PublishModel"}
    assert not (folder / "volume/spans/serving").exists()
    assert not (folder / "volume/spans/registry/models").exists()
    assert "refused" in run.tasks["ReportRun"].log.read_text()


def test_newest_span_is_trained_on_with_the_one_before(refused, spans, folder):
    first, _ = refused
    run, verdict = _run(spans, folder, "spans", steps="5", gate=json.dumps(ANY))
    assert verdict["verdict"] == "released"
    # The first span's data were accepted, though its model was not.
    earlier = _stood_for(run, "EarlierSpans", "examples")
    assert [first.name in uri for uri in earlier] == [True]
    assert _stood_for(run, "LastBlessedModel", "model") == []
    window = _stood_for(run, "Window", "examples")
    assert [x.name in uri for x, uri in zip((first, run), window, strict=True)] == [True, True]
    assets = folder / "volume/spans/serving/1" / signatures.ASSETS_DIR
    model = json.loads((assets / signatures.METADATA_FILE).read_text())
    folders = [Path(uri) / "Split-train" for uri in window]
    assert model["data_digest"] == shards.data_digest(folders)
    card = json.loads((assets / "model_card.json").read_text())
    assert [item["span"] for item in card["data"]["spans"]] == [1, 2]


def test_frozen_tower_embeds_the_images_once(folder):
    overrides = [*OVERRIDES, "run.checkpoint_steps=5", *FROZEN]
    given = write_weights(folder / "volume/weights", overrides)
    package = _package(
        folder,
        "lit",
        input_base=f"{MOUNT}/data/span-1",
        overrides=overrides,
        weights=f"{MOUNT}/weights",
        embed_images=True,
        gate=ANY,
    )
    run, verdict = _run(package, folder, "lit", steps="5")
    assert verdict["verdict"] == "released"
    assert verdict["training"]["model"]["weights_digest"] == given.digest()
    assert run.tasks["EmbedExamples"].state == run.tasks["ExportFrozenTower"].state == "SUCCEEDED"
    from sigline.schemas import record, tf_example

    embedded = Path(run.tasks["EmbedExamples"].artifacts["embedded"]["uri"])
    shard = next(iter(sorted((_volume(folder, embedded) / "Split-train").glob("*.gz"))))
    first = tf_example.features(next(iter(tf_example.read_shard(str(shard)))))
    assert record.IMAGE not in first
    assert len(first[record.IMAGE_EMBEDDING]) == 48


def _volume(folder: Path, uri: Path) -> Path:
    """Returns where an artifact of the package `lit` lies."""
    return folder / "volume/lit/artifacts" / str(uri).partition("/mlpipeline/")[2]
