"""A run reports itself, whatever other runs do at the same time."""

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sigline.pipeline import environment as environments
from sigline.pipeline import run_lock
from sigline.schemas import artifacts

pytestmark = pytest.mark.tfx

_HOLDER = """
import sys
from sigline.pipeline import run_lock
with run_lock.alone(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def _record_run(metadata_path: Path, name: str, blessed: bool, folder: Path) -> None:
    """Puts a run into a store: one node, the evaluation, with a verdict."""
    from ml_metadata.proto import metadata_store_pb2 as mlmd

    from sigline.pipeline import run_report

    store = run_report.open_store(str(metadata_path))
    uri = folder / name
    uri.mkdir(parents=True)
    (uri / artifacts.VERDICT_FILE).write_text(json.dumps({"blessed": blessed}))
    types = {
        kind: store.put_context_type(mlmd.ContextType(name=kind))
        for kind in ("pipeline_run", "node")
    }
    contexts = [mlmd.Context(type_id=types["pipeline_run"], name=name)]
    node = store.get_context_by_type_and_name("node", "p.EvaluateModel")
    contexts.append(node or mlmd.Context(type_id=types["node"], name="p.EvaluateModel"))
    execution = mlmd.Execution(
        type_id=store.put_execution_type(mlmd.ExecutionType(name="EvaluateModel")),
        last_known_state=mlmd.Execution.COMPLETE,
    )
    artifact = mlmd.Artifact(
        type_id=store.put_artifact_type(mlmd.ArtifactType(name="Evaluation")), uri=str(uri)
    )
    event = mlmd.Event(type=mlmd.Event.OUTPUT)
    event.path.steps.add().key = "evaluation"
    store.put_execution(execution, [(artifact, event)], contexts)


def test_run_reports_its_own_verdict_though_another_ended_later(tmp_path):
    from sigline.pipeline import run_report

    path = tmp_path / "metadata.sqlite"
    _record_run(path, "mine", False, tmp_path)
    _record_run(path, "others", True, tmp_path)
    assert run_report.run_ids(str(path)) == {"mine", "others"}
    assert run_report.read_report(str(path), "mine").verdict == {"blessed": False}
    assert run_report.read_report(str(path), "others").verdict == {"blessed": True}
    with pytest.raises(ValueError, match="Received: run_id=third"):
        run_report.read_report(str(path), "third")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment whose pipeline is never built."""
    from sigline.pipeline import wiring

    monkeypatch.setattr(wiring, "build", lambda environment: None)
    data = tmp_path / "data"
    data.mkdir()
    return environments.Environment(
        pipeline_name="p", root=str(tmp_path / "root"), input_base=str(data), recipe="siglip_demo"
    )


def test_refused_run_is_refused_though_another_publishes_meanwhile(
    environment, tmp_path, monkeypatch
):
    from sigline.pipeline import local_run
    from sigline.pipeline.narrated_runner import NarratedRunner

    path = Path(environment.metadata_path)

    def _run(runner, pipeline):
        runner.run_id = "mine"
        _record_run(path, "mine", False, tmp_path)
        _record_run(path, "others", True, tmp_path)

    monkeypatch.setattr(NarratedRunner, "run", _run)
    outcome = local_run.run(environment)
    assert outcome is not None
    assert outcome.verdict == {"blessed": False}


class _Runner:
    """A runner of somebody else's, which does not say the names of its runs."""

    def __init__(self, path: Path, folder: Path, names: tuple[str, ...]):
        self._path, self._folder, self._names = path, folder, names

    def run(self, pipeline) -> None:
        for name in self._names:
            _record_run(self._path, name, True, self._folder)


def test_run_of_another_runner_is_the_one_that_is_new(environment, tmp_path):
    from sigline.pipeline import local_run

    path = Path(environment.metadata_path)
    Path(environment.root).mkdir()
    _record_run(path, "before", False, tmp_path)
    outcome = local_run.run(environment, _Runner(path, tmp_path, ("mine",)))
    assert outcome is not None
    assert outcome.verdict == {"blessed": True}
    assert local_run.run(environment, _Runner(path, tmp_path, ())) is None
    with pytest.raises(RuntimeError, match="Received: a, b"):
        local_run.run(environment, _Runner(path, tmp_path, ("a", "b")))


def test_names_of_runs_differ_though_they_begin_at_the_same_time(monkeypatch):
    import types

    from sigline.pipeline import narrated_runner

    now = datetime.datetime(2026, 1, 1)
    still = types.SimpleNamespace(datetime=types.SimpleNamespace(now=lambda: now))
    monkeypatch.setattr(narrated_runner, "datetime", still)
    names = {narrated_runner.new_run_id() for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("2026-01-01T00:00:00") for name in names)


def test_second_run_on_a_root_is_refused_and_told_the_first(environment, tmp_path):
    from sigline.pipeline import local_run

    Path(environment.root).mkdir()
    first = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, environment.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="Another run is at work on this root") as refused:
        local_run.run(environment, _Runner(Path(environment.metadata_path), tmp_path, ()))
    assert f"process {first.pid} on " in str(refused.value)
    assert f"root={environment.root}" in str(refused.value)
    assert local_run.main(lambda: environment) == local_run.EXIT_FAILED
    # One that was killed holds nothing.
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert (
        local_run.run(environment, _Runner(Path(environment.metadata_path), tmp_path, ())) is None
    )


def test_root_is_free_after_a_run_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match="failed"), run_lock.alone(str(tmp_path)):
        raise RuntimeError("failed")
    with run_lock.alone(str(tmp_path)):
        pass
