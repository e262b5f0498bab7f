"""A pipeline that starts from weights reads by their vocabulary, whichever runner runs it."""

import dataclasses
import json

import numpy as np
import pytest
import yaml

from sigline import quiet

quiet.import_tfx()

from sigline.components.scenes import generate  # noqa: E402
from sigline.pipeline import environment as environments  # noqa: E402
from sigline.trainer import config  # noqa: E402
from sigline.trainer.weights import tokenizer_json, weight_folders  # noqa: E402
from sigline.trainer.weights.model_weights import Weights  # noqa: E402

pytestmark = [pytest.mark.tfx]

STARTS = ['pretrained=[".*"]']
LIT = ['pretrained=["image/.*"]']


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vocabulary):
    folder = tmp_path_factory.mktemp("pipeline")
    generate.write_scenes(folder / "data", count=20, seed=0)
    settings = config.override(config.load_recipe("siglip_demo"), ["text.length=24"])
    names = ("image/positions", "text/positions", "text/tokens")
    values = {name: np.zeros(1, np.float32) for name in names}
    weight_folders.save(folder / "weights", Weights(settings, values, vocabulary))
    weight_folders.save(folder / "silent", Weights(settings, values))
    return folder


def _environment(folder, **changes):
    values = {
        "pipeline_name": "words",
        "root": str(folder / "root"),
        "input_base": str(folder / "data"),
        "recipe": "siglip_demo",
        "ingest": {"eval_share": 0.2},
    }
    path = folder / "environment.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return environments.load(path)


def _node(environment, name="TrainVocabulary"):
    from sigline.pipeline import wiring

    return {node.id: node for node in wiring.build(environment).components}[name]


def test_vocabulary_node_hands_on_that_of_the_weights(folder, vocabulary, tmp_path, capsys):
    from sigline.components.shared.artifact_types import Vocabulary

    environment = _environment(folder, weights=str(folder / "weights"), overrides=STARTS)
    node = _node(environment)
    # The key of the cache.
    digest = tokenizer_json.digest(vocabulary)
    assert node.exec_properties["weights_vocabulary"] == digest
    assert json.loads(node.exec_properties["recipe"])["length"] == 24
    assert "From the weights: text.length=24 (the recipe: 16)" in capsys.readouterr().err
    trained = json.loads(_node(environment, "Trainer").exec_properties["config"])
    assert trained["text"]["length"] == 24
    artifact = Vocabulary()
    artifact.uri = str(tmp_path)
    inputs = {"examples": []}
    node.executor_spec.executor_class().Do(
        inputs, {"vocabulary": [artifact]}, dict(node.exec_properties)
    )
    assert (tmp_path / "sentencepiece.model").read_bytes() == vocabulary


def test_vocabulary_that_changed_since_the_plan_is_refused(folder, tmp_path):
    from sigline.components.vocabulary import component

    output = str(tmp_path / "sentencepiece.model")
    for name, received in (("weights", tokenizer_json.digest(b"x")[:12]), ("silent", "none")):
        with pytest.raises(ValueError, match=f"must not change during a run.*{received}"):
            component._hand_on(str(folder / name), tokenizer_json.digest(b"x"), output)
    assert not list(tmp_path.iterdir())


def test_nodes_of_a_run_without_pretrained_tokens_are_as_they_were(folder):
    plain = _node(_environment(folder)).exec_properties
    assert set(plain) == {"code_digest", "recipe"}
    frozen = _environment(folder, weights=str(folder / "silent"), overrides=LIT)
    properties = _node(frozen).exec_properties
    assert properties["weights_vocabulary"] == ""
    assert properties["recipe"] == plain["recipe"]


def test_weights_without_their_vocabulary_fail_before_anything_runs(folder):
    environment = _environment(folder, weights=str(folder / "silent"), overrides=STARTS)
    with pytest.raises(ValueError, match="have a token table and no vocabulary"):
        _node(environment)


def test_package_for_kubeflow_hands_it_on_too(folder):
    from sigline.pipeline.kubeflow import compiling

    environment = dataclasses.replace(
        _environment(folder),
        root="/mnt/sigline/root",
        input_base="/mnt/sigline/data",
        serving_dir="",
        index_dir="",
        kubeflow={"image": "registry.example.com/sigline:1", "claim": "sigline"},
    )
    tasks = {}
    for name, weights in (("plain", ""), ("starts", "/mnt/sigline/weights")):
        changed = dataclasses.replace(environment, weights=weights, serving_dir="", index_dir="")
        spec = compiling.compile_pipeline(changed, folder / f"{name}.yaml")
        dag = spec["components"][compiling.packages.GRAPH]["dag"]
        tasks[name] = dag["tasks"]["TrainVocabulary"]["inputs"]["parameters"]
    assert set(tasks["plain"]) == {"code_digest", "recipe"}
    assert tasks["starts"]["weights_vocabulary"]["taskOutputParameter"] == {
        "outputParameterKey": "vocabulary_digest",
        "producerTask": "PlanRun",
    }
    assert "weights" in tasks["starts"]


def test_task_that_plans_a_run_on_a_cluster_finds_the_vocabulary(folder, vocabulary):
    from sigline.pipeline import planning

    environment = _environment(folder, weights=str(folder / "weights"), overrides=STARTS)
    found = planning.plan(environment)
    assert found.vocabulary_digest == tokenizer_json.digest(vocabulary)
