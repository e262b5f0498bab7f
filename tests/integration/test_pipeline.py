"""The whole pipeline in one process: run, cache, refuse, publish."""

import dataclasses
import getpass
import json
import os
import shutil
from pathlib import Path

import pytest
from forked import Forked
from tiny_model import FROZEN, OVERRIDES, write_weights
from whole_run import write_environment

from sigline.components.scenes import generate
from sigline.pipeline import environment as environments
from sigline.schemas import signatures, versions

pytestmark = [pytest.mark.tfx, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def _states(report):
    return {node.name: node.state for node in report.nodes}


@pytest.fixture(scope="module")
def folder(whole_run):
    return whole_run.folder


@pytest.fixture(scope="module")
def run():
    from sigline.pipeline import local_run

    return local_run


@pytest.fixture(scope="module")
def first(whole_run):
    return whole_run.report


def test_first_run_publishes_a_gated_model(first, folder):
    assert first.verdict["blessed"], first.verdict
    assert first.published == {
        "path": str(folder / "root/serving/1"),
        "version": 1,
        "copied": True,
    }
    assert versions.verify(folder / "root/serving/1") is not None
    assert first.counts["input"] == 1000 == first.counts["written"] + first.counts["rejected"]
    assert first.infra["signatures_run"] == 6.0
    assert set(_states(first).values()) == {"done"}


def test_first_run_publishes_an_index_of_its_records(first, folder):
    from sigline.components.index.search import LocalIndex

    path = folder / "root/index/1"
    assert first.index == {"path": str(path), "version": 1, "copied": True}
    assert versions.verify(path) is not None
    index = LocalIndex(path, folder / "root/serving/1")
    assert index.about["records"] == first.counts["written"]
    assert index.about["recall"] == 1.0
    found = index.by_text("a large red circle", top=5)
    assert sum("red" in " ".join(match.text) for match in found) >= 3, found


def test_model_says_what_produced_it(first, folder):
    assets = folder / "root/serving/1" / signatures.ASSETS_DIR
    metadata = json.loads((assets / signatures.METADATA_FILE).read_text())
    assert metadata["recipe"] == "siglip_small"
    for name in (
        "data_digest",
        "code_digest",
        "config_digest",
        "vocabulary_digest",
        "model_digest",
    ):
        assert len(metadata[name]) == 64


def test_card_says_what_the_model_was_made_of_and_is_worth(first, folder, tmp_path, capsys):
    from sigline import cli

    version = folder / "root/serving/1"
    assets = version / signatures.ASSETS_DIR
    card = json.loads((assets / "model_card.json").read_text())
    model = json.loads((assets / signatures.METADATA_FILE).read_text())
    assert card["model"]["model_digest"] == model["model_digest"]
    assert card["training"]["code_digest"] == model["code_digest"]
    assert card["training"]["config"]["steps"] == 150
    (span,) = card["data"]["spans"]
    assert span["records"] == first.counts["splits"]
    assert len(card["data"]["input_digest"]) == 64
    assert card["evaluation"]["blessed"] is True
    assert card["evaluation"]["judged_against"] is None
    shown = card["evaluation"]["metrics"]["zero_shot_accuracy"]
    assert shown["value"] == first.metrics["zero_shot_accuracy"]["value"]
    # Nothing that differs from run to run.
    assert not any("latency" in name for name in card["evaluation"]["metrics"])
    page = (assets / "model_card.md").read_text()
    assert model["model_digest"] in page
    assert f"| {shown['value']:.1%} |" in page
    assert str(folder) not in page
    # Away from the metadata store it is what `sigline lineage` has.
    copy = tmp_path / "copy"
    shutil.copytree(version, copy)
    assert cli.main(["lineage", str(copy)]) == 0
    assert model["model_digest"] in capsys.readouterr().out


def test_lineage_tells_what_the_model_was_made_of(first, folder, capsys):
    from sigline import cli

    model = folder / "root/serving/1"
    assert cli.main(["lineage", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    metadata = json.loads((model / signatures.ASSETS_DIR / signatures.METADATA_FILE).read_text())
    assert found["model"]["model_digest"] == metadata["model_digest"]
    (data,) = found["data"]
    assert data["input_base"] == str(folder / "data")
    assert len(data["input_digest"]) == 64
    assert data["records"] == first.counts["splits"]
    assert found["training"]["code"] == metadata["code_digest"]
    assert found["training"]["config"]["steps"] == 150
    assert found["evaluation"]["blessed"]
    assert found["parents"] == []
    artifact = next(node for node in first.nodes if node.name == "Trainer").outputs["model"]
    assert cli.main(["lineage", artifact]) == 0
    text = capsys.readouterr().out
    assert str(folder / "data") in text
    assert "blessed" in text
    assert cli.main(["lineage", str(folder / "root/index/1"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == [data]
    # What somebody changed is no model of this pipeline.
    shutil.copytree(model, folder / "changed")
    (folder / "changed" / "saved_model.pb").write_bytes(b"changed")
    database = str(folder / "root/metadata.sqlite")
    assert cli.main(["lineage", str(folder / "changed"), "--metadata", database]) == 2
    assert "does not know this model" in capsys.readouterr().err
    assert cli.main(["lineage", str(folder / "changed")]) == 2
    assert "files must be those that were published" in capsys.readouterr().err
    (folder / "changed" / signatures.ASSETS_DIR / "model_card.md").unlink()
    assert cli.main(["lineage", str(folder / "changed")]) == 2
    assert "give --metadata" in capsys.readouterr().err


def test_statistics_see_images_and_validation_finds_no_anomalies(first):
    from tensorflow_metadata.proto.v0 import statistics_pb2

    outputs = {node.name: node.outputs for node in first.nodes}
    path = Path(outputs["StatisticsGen"]["statistics"]) / "Split-train" / "FeatureStats.pb"
    statistics = statistics_pb2.DatasetFeatureStatisticsList.FromString(path.read_bytes())
    features = {item.path.step[0]: item for item in statistics.datasets[0].features}
    custom = {item.name for item in features["image"].custom_stats}
    assert "image_format_histogram" in custom
    problems = Path(outputs["ReportData"]["report"]) / "problems.json"
    assert json.loads(problems.read_text()) == []
    assert "found nothing wrong" in problems.with_name("report.html").read_text()


def test_what_is_shown_to_others_names_no_folder_of_the_machine(first, folder):
    shown = [path for path in (folder / "root/serving/1").rglob("*") if path.is_file()]
    shown += [folder / "root/reports.html", *(folder / "root/artifacts").glob("*/*/*/*.html")]
    assert {path.name for path in shown} >= {"model_card.json", "report.html", "reports.html"}
    for path in shown:
        content = path.read_bytes()
        for name in (str(folder), f"{getpass.getuser()}@"):
            assert name.encode() not in content, f"{path} names {name}"


def test_tfx_honours_the_blessing(first, folder):
    from tfx.components.pusher import executor as pusher
    from tfx.dsl.input_resolution.strategies import latest_blessed_model_strategy as latest
    from tfx.orchestration import metadata

    config = metadata.sqlite_metadata_connection_config(str(folder / "root/metadata.sqlite"))
    with metadata.Metadata(config) as handle:
        (context,) = handle.store.get_contexts_by_type("pipeline")

        def _artifacts(kind):
            return handle.get_qualified_artifacts([context], kind)

        models, blessings = _artifacts("Model"), _artifacts("ModelBlessing")
        infra = _artifacts("InfraBlessing")
    found = latest.LatestBlessedModelStrategy().resolve_artifacts(
        None, {"model": models, "model_blessing": blessings}
    )
    assert [model.uri for model in found["model"]] == [models[0].uri]
    inputs = {"model_blessing": blessings, "infra_blessing": infra}
    assert pusher.Executor().CheckBlessing(inputs)


def test_unchanged_rerun_is_answered_from_the_cache(first, folder, run):
    again = run.run(environments.load(folder / "environment.yaml"))
    states = _states(again)
    # Resolvers are never cached; the publisher looks at the serving folder every time.
    assert {name for name, state in states.items() if state != "cached"} <= {
        "PublishModel",
        "PublishIndex",
        "LastBlessedModel",
        "LastAcceptedData",
    }
    assert again.published["version"] == 1
    assert not again.published["copied"]


def test_lost_serving_folder_is_published_again(first, folder, run):
    shutil.rmtree(folder / "root/serving")
    again = run.run(environments.load(folder / "environment.yaml"))
    assert again.published == first.published
    assert versions.verify(folder / "root/serving/1") is not None


def test_runner_that_tfx_is_given_runs_the_environment(first, folder, tmp_path):
    # What `tfx run create --engine local` starts; `test_new_project.py` has the command itself.
    variables = os.environ | {environments.VARIABLE: str(folder / "environment.yaml")}
    script = str(ROOT / "pipeline" / "local_runner.py")
    process = Forked([script], tmp_path, cwd=folder, variables=variables)
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert "Blessed; published before as" in output


def test_changed_recipe_trains_again_against_the_last_blessed_model(first, folder, run):
    # It starts from weights, too, whose digest the model then names, and the frozen image tower
    # embeds the images before.
    overrides = [*OVERRIDES, "steps=160", *FROZEN]
    given = write_weights(folder / "weights", overrides)
    weights = str(folder / "weights")
    write_environment(folder, overrides=overrides, weights=weights, embed_images=True)
    changed = run.run(environments.load(folder / "environment.yaml"))
    states = _states(changed)
    assert changed.training["model"]["weights_digest"] == given.digest()
    assert states["ExportFrozenTower"] == states["EmbedExamples"] == "done"
    assert states["IngestExamples"] == "cached"
    assert states["Trainer"] == states["EvaluateModel"] == "done"
    from sigline.pipeline import lineage

    trained = next(node for node in changed.nodes if node.name == "Trainer").outputs["model"]
    found = lineage.trace(trained, folder / "root/metadata.sqlite")
    parents = {item["role"]: item for item in found["parents"]}
    assert parents["weights"]["digest"] == given.digest()
    assert parents["weights"]["path"] == weights
    assert parents["judged against"]["path"] == next(
        node.outputs["model"] for node in first.nodes if node.name == "Trainer"
    )
    # Through the examples whose images were embedded.
    assert [item["input_base"] for item in found["data"]] == [str(folder / "data")]
    rules = [check["rule"] for check in changed.verdict["checks"]]
    assert any("last blessed model" in rule for rule in rules)


def test_what_does_not_change_the_tower_embeds_nothing_again(folder):
    from sigline.pipeline import wiring

    def _tower(*overrides):
        environment = environments.load(folder / "environment.yaml")
        changed = dataclasses.replace(environment, overrides=(*environment.overrides, *overrides))
        nodes = {node.id: node for node in wiring.build(changed).components}
        return nodes["ExportFrozenTower"].exec_properties

    assert _tower() == _tower("steps=7", "optimizer.learning_rate=1", "text.depth=1")
    assert _tower() != _tower("image.antialias=true")
    with pytest.raises(ValueError, match=r"frozen by optimizer\.rates"):
        _tower('optimizer.rates=[[".*", 1]]')
    with pytest.raises(ValueError, match="cannot be cropped, flipped"):
        _tower("data.flip=true")


def test_changed_input_bytes_are_ingested_again(first, folder, tmp_path):
    from sigline.components.ingest.filters import FilterConfig
    from sigline.components.ingest.options import IngestConfig
    from sigline.pipeline import planning

    # Also those of what is evaluated on, and of a vocabulary.
    shutil.copytree(folder / "data", tmp_path / "evaluated")
    plain = IngestConfig()
    assert planning.input_digest(str(folder / "data"), plain) == planning.input_digest(
        str(tmp_path / "evaluated"), plain
    ), "the same pairs elsewhere"
    vocabulary = tmp_path / "vocabulary.model"
    vocabulary.write_bytes(bytes(1000))
    config = IngestConfig(
        eval_sets=(str(tmp_path / "evaluated"),),
        filters=FilterConfig(vocabulary=str(vocabulary), max_tokens=64),
    )
    name = "scenes-00000.tar"
    before = planning.input_digest(str(folder / "data"), config)
    for path in (folder / "data" / name, tmp_path / "evaluated" / name, vocabulary):
        content = bytearray(path.read_bytes())
        content[600] ^= 1
        stat = path.stat()
        path.write_bytes(bytes(content))
        # Neither the size nor the time gives the change away.
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert planning.input_digest(str(folder / "data"), config) != before
        content[600] ^= 1
        path.write_bytes(bytes(content))
        assert planning.input_digest(str(folder / "data"), config) == before


def test_tfx_checks_the_model_on_a_cluster_if_it_is_asked_to(first, folder):
    from tfx.dsl.compiler import compiler
    from tfx.proto.orchestration import pipeline_pb2

    from sigline.pipeline import wiring

    environment = environments.load(folder / "environment.yaml")
    built = wiring.build(dataclasses.replace(environment, infra="tfx"))
    compiled = compiler.Compiler().compile(built)
    nodes = {x.pipeline_node.node_info.id: x.pipeline_node for x in compiled.nodes}
    checked = nodes["CheckServing"]
    assert checked.node_info.type.name == "tfx.components.infra_validator.component.InfraValidator"
    spec = checked.parameters.parameters["serving_spec"].field_value.string_value
    assert json.loads(spec)["tensorflow_serving"] == {"tags": ["2.20.0"]}
    assert "kubernetes" in json.loads(spec)
    # Publishing waits for its blessing.
    assert "CheckServing" in nodes["PublishModel"].upstream_nodes
    assert isinstance(compiled, pipeline_pb2.Pipeline)


def test_changed_code_changes_the_parameters_of_its_nodes(folder, tmp_path, monkeypatch):
    from sigline.pipeline import planning, wiring

    copy = tmp_path / "package"
    for name in ("schemas", "trainer", "components", "serving", "pipeline", "sigline"):
        shutil.copytree(ROOT / name, copy / name)
    environment = environments.load(folder / "environment.yaml")
    monkeypatch.setattr(planning, "PACKAGE", copy)

    def _digests():
        return {
            node.id: node.exec_properties["code_digest"]
            for node in wiring.build(environment).components
            if "code_digest" in getattr(node, "exec_properties", {})
        }

    for path, nodes in (
        ("trainer/losses/pair_losses.py", {"ExportFrozenTower", "Trainer", "TrainVocabulary"}),
        ("components/evaluate/gate.py", {"EvaluateModel"}),
        ("components/shared/served_model.py", {"EmbedExamples", "EvaluateModel", "IndexCorpus"}),
        (
            "components/shared/files.py",
            {"IngestExamples", "EmbedExamples", "EvaluateModel", "IndexCorpus"},
        ),
        ("components/index/options.py", {"IndexCorpus"}),
        ("components/shared/outputs.py", {"IngestExamples"}),
    ):
        before = _digests()
        with open(copy / path, "a") as handle:
            handle.write("\n")
        after = _digests()
        assert {name for name in before if before[name] != after[name]} == nodes, path


def test_shuffled_captions_are_refused(tmp_path, run, capsys):
    faults = {generate.SHUFFLED_CAPTIONS: 1.0}
    generate.write_scenes(tmp_path / "data", count=300, seed=1, faults=faults)
    path = write_environment(tmp_path, overrides=[*OVERRIDES, "steps=10"])
    code = run.main(lambda: environments.load(path))
    assert code == run.EXIT_NOT_BLESSED
    error = capsys.readouterr().err
    assert "Not blessed; nothing was published" in error
    assert "text_to_image_recall@10 fails: 0." in error
    assert "at least 2 times chance" in error
    assert not (tmp_path / "root/serving").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": ["steps=abc"]}, "steps must be a whole number. Received: steps=abc"),
        ({"ingest": {"eval_sources": 3}}, "ingest.eval_sources must be a list"),
        ({"ingest": {"eval_shaer": 0.1}}, "Known keys: ingest.eval_share"),
        ({"recipe": "siglip_bse"}, "Known recipes"),
        ({"weights": "w"}, "must be given together. Received: weights='"),
        ({"overrides": ['pretrained=[".*"]']}, "must be given together. Received: weights=''"),
        ({"index": {"kinds": "exact"}}, "Known keys: index.kind, index.top"),
        ({"index": {"splits": ["test"]}}, "index.splits must name some of train, eval"),
        ({"embed_images": True}, "`embed_images` needs `weights`"),
        ({"teachers": {"a": "x"}}, "must be those of the recipe. Received: a; the recipe's: none"),
    ],
)
def test_mistake_in_the_environment_is_one_clear_message(
    folder, tmp_path, run, capsys, changes, message
):
    path = write_environment(tmp_path, **({"input_base": str(folder / "data")} | changes))
    assert run.main(lambda: environments.load(path)) == run.EXIT_FAILED
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_bad_data_stops_the_pipeline_with_every_reason(tmp_path, run, capsys):
    generate.write_scenes(tmp_path / "data", count=100, seed=1, faults={generate.CORRUPT: 0.4})
    path = write_environment(tmp_path, data_gate={"min_records": 30})
    assert run.main(lambda: environments.load(path)) == run.EXIT_NOT_BLESSED
    error = capsys.readouterr().err
    assert "The data gate stopped the pipeline" in error
    assert "38.0% of 100 pairs were rejected, the limit is 10.0% (corrupt_image 38)" in error
    assert "split eval holds" in error
    page = Path(error.split("The page about the data, with pictures: ")[1].split()[0])
    assert "38.0% of 100 pairs were rejected" in page.read_text()
    assert not list((tmp_path / "root/artifacts").glob("Trainer"))
