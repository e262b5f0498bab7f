"""Lineage of models that several runs judged: the verdict is that by which each was published."""

import json

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from sigline import cli
from sigline.components.publish import publishing

pytestmark = pytest.mark.tfx


class _Store:
    """A metadata store that is written as TFX's runners write it."""

    def __init__(self, path):
        from sigline.pipeline import run_report

        self._store = run_report.open_store(str(path))
        self._nodes = self._store.put_context_type(mlmd.ContextType(name="node"))

    def artifact(self, kind, uri, **properties):
        type_id = self._store.put_artifact_type(mlmd.ArtifactType(name=kind))
        artifact = mlmd.Artifact(type_id=type_id, uri=str(uri))
        for name, value in properties.items():
            field = "int_value" if isinstance(value, int) else "string_value"
            setattr(artifact.custom_properties[name], field, value)
        return artifact

    def run(self, node, inputs, outputs):
        """Records an execution; artifacts by key, which are told their ids."""
        kind = self._store.put_execution_type(mlmd.ExecutionType(name=node))
        execution = mlmd.Execution(type_id=kind, last_known_state=mlmd.Execution.COMPLETE)
        events = [
            (artifact, mlmd.Event(type=direction), key)
            for direction, artifacts in ((mlmd.Event.INPUT, inputs), (mlmd.Event.OUTPUT, outputs))
            for key, artifact in artifacts.items()
        ]
        for _, event, key in events:
            event.path.steps.add().key = key
        name = f"p.{node}"
        known = self._store.get_context_by_type_and_name("node", name)
        context = known or mlmd.Context(type_id=self._nodes, name=name)
        _, ids, _ = self._store.put_execution(execution, [x[:2] for x in events], [context])
        for (artifact, _, _), number in zip(events, ids, strict=True):
            artifact.id = number


@pytest.fixture
def store(tmp_path):
    return _Store(tmp_path / "metadata.sqlite")


@pytest.fixture
def model(store, tmp_path):
    """A trained model: its artifact and its folder."""
    folder = tmp_path / "model" / "Format-Serving"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    artifact = store.artifact("Model", tmp_path / "model")
    store.run("Trainer", {}, {"model": artifact})
    return artifact, folder


def _judge(store, model, name, blessed):
    blessing = store.artifact("ModelBlessing", name, blessed=int(blessed))
    store.run(
        "EvaluateModel",
        {"model": model},
        {"evaluation": store.artifact("Evaluation", name), "blessing": blessing},
    )
    return blessing


def _publish(store, model, blessing, published):
    pushed = store.artifact(
        "PushedModel",
        published.uri,
        model_digest=published.digest,
        pushed_version=str(published.version),
        copied=int(published.copied),
    )
    store.run(
        "PublishModel", {"model": model, "model_blessing": blessing}, {"pushed_model": pushed}
    )


def _verdict(path, capsys):
    assert cli.main(["lineage", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluation"]
    return found["blessed"], found["uri"]


def test_version_has_the_verdict_by_which_it_was_published(store, model, tmp_path, capsys):
    artifact, folder = model
    base = tmp_path / "serving"
    _judge(store, artifact, "refused", False)
    blessing = _judge(store, artifact, "blessed", True)
    published = publishing.publish(folder, base)
    _publish(store, artifact, blessing, published)
    assert _verdict(published.path, capsys) == (True, "blessed")
    # It stands there already when a later run judges it again.
    again = _judge(store, artifact, "again", True)
    _publish(store, artifact, again, publishing.publish(folder, base))
    _judge(store, artifact, "stricter", False)
    assert _verdict(published.path, capsys) == (True, "blessed")
    # What was not published is what the last run said of it.
    assert _verdict(tmp_path / "model", capsys) == (False, "stricter")


def test_same_model_under_two_numbers_has_the_verdict_of_each(store, model, tmp_path, capsys):
    artifact, folder = model
    first = publishing.publish(folder, tmp_path / "one")
    _publish(store, artifact, _judge(store, artifact, "first", True), first)
    other = tmp_path / "other"
    other.mkdir()
    (other / "saved_model.pb").write_bytes(b"another")
    publishing.publish(other, tmp_path / "two")
    second = publishing.publish(folder, tmp_path / "two")
    _publish(store, artifact, _judge(store, artifact, "second", True), second)
    assert _verdict(first.path, capsys) == (True, "first")
    assert _verdict(second.path, capsys) == (True, "second")
