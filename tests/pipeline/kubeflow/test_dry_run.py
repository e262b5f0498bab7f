"""The dry run of packages, on graphs of shell commands."""

import json

import pytest
import yaml

from sigline.pipeline.kubeflow import dry_run, packages

# Writes `word` of its input, and who it is, to the file that Kubeflow names.
_WRITE = (
    "import json, os, sys; given = json.loads(sys.argv[1]); "
    "word = given['inputs']['parameterValues'].get('word', ''); "
    "assert word != 'fail', 'no'; path = given['outputs']['outputFile']; "
    "os.makedirs(os.path.dirname(path), exist_ok=True); "
    "json.dump({'parameterValues': {'said': word + '!'}, 'artifacts': {}}, open(path, 'w'))"
)


def _package(tmp_path, tasks, *, parameters=None):
    names = {task["componentRef"]["name"] for task in tasks.values()}
    container = {"image": "x", "command": ["python", "-c", _WRITE], "args": ["{{$}}"]}
    strings = {"word": {"parameterType": "STRING"}}
    spec = {
        "pipelineInfo": {"name": "small"},
        "deploymentSpec": {
            "executors": {f"{name}_executor": {"container": container} for name in names}
        },
        "components": {
            name: {
                "executorLabel": f"{name}_executor",
                "inputDefinitions": {"parameters": strings},
                "outputDefinitions": {"parameters": {"said": {"parameterType": "STRING"}}},
            }
            for name in names
        },
        "root": {
            "dag": {"tasks": tasks},
            "inputDefinitions": {"parameters": parameters or {}},
        },
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(spec))
    return packages.read(path)


def _task(word=None, *, source=None, parameter=None, **more):
    given = {"runtimeValue": {"constant": word}}
    if source is not None:
        given = {"taskOutputParameter": {"producerTask": source, "outputParameterKey": "said"}}
    if parameter is not None:
        given = {"componentInputParameter": parameter}
    return {"componentRef": {"name": "say"}, "inputs": {"parameters": {"word": given}}, **more}


def test_outputs_become_inputs_in_the_order_of_the_graph(tmp_path):
    tasks = {"b": _task(source="a"), "a": _task("hello"), "c": _task("x", dependentTasks=["b"])}
    run = dry_run.DryRun(_package(tmp_path, tasks), tmp_path / "logs")
    assert run.run() == dry_run.SUCCEEDED
    assert list(run.tasks) == ["a", "b", "c"]
    assert run.tasks["b"].parameters == {"said": "hello!!"}


def test_failure_is_tried_again_then_stops_what_follows_but_not_what_comes_at_the_end(tmp_path):
    tasks = {
        "a": _task("fail", retryPolicy={"maxRetryCount": 2}),
        "b": _task(source="a"),
        "z": _task(
            "end",
            dependentTasks=["a"],
            triggerPolicy={"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
        ),
    }
    run = dry_run.DryRun(_package(tmp_path, tasks), tmp_path / "logs")
    assert run.run() == dry_run.FAILED
    failed = run.tasks["a"]
    assert (failed.state, failed.attempts, failed.reason) == (
        dry_run.FAILED,
        3,
        "AssertionError: no",
    )
    assert run.tasks["b"].state == dry_run.SKIPPED
    assert run.tasks["b"].reason == "a: failed"
    assert run.tasks["z"].state == dry_run.SUCCEEDED


@pytest.mark.parametrize(("wanted", "state"), [("a!", "SUCCEEDED"), ("b!", "SKIPPED")])
def test_condition_decides(tmp_path, wanted, state):
    condition = {"condition": f"inputs.parameter_values['word'] == '{wanted}'"}
    tasks = {"a": _task("a"), "b": _task(source="a", triggerPolicy=condition)}
    run = dry_run.DryRun(_package(tmp_path, tasks), tmp_path / "logs")
    # What is skipped does not fail the run.
    assert run.run() == dry_run.SUCCEEDED
    assert run.tasks["b"].state == state


def test_parameters_of_the_run_reach_tasks(tmp_path):
    defined = {"who": {"parameterType": "STRING", "defaultValue": "you"}}
    package = _package(tmp_path, {"a": _task(parameter="who")}, parameters=defined)
    for given, said in (({}, "you!"), ({"who": "me"}, "me!")):
        run = dry_run.DryRun(package, tmp_path / "logs", parameters=given)
        assert run.run() == dry_run.SUCCEEDED
        assert run.tasks["a"].parameters == {"said": said}
    with pytest.raises(ValueError, match="has the parameters who"):
        dry_run.DryRun(package, tmp_path / "logs", parameters={"whom": "x"})


def test_numbers_must_be_numbers(tmp_path):
    defined = {"steps": {"parameterType": "NUMBER_INTEGER", "defaultValue": 0.0}}
    package = _package(tmp_path, {"a": _task("x")}, parameters=defined)
    assert package.parameters({}) == {"steps": 0}
    assert package.parameters({"steps": "12"}) == {"steps": 12}
    with pytest.raises(ValueError, match="steps must be a NUMBER_INTEGER"):
        package.parameters({"steps": "many"})


def test_graph_that_cannot_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="need each other: a, b"):
        dry_run.DryRun(
            _package(tmp_path, {"a": _task(source="b"), "b": _task(source="a")}), tmp_path
        ).run()
    with pytest.raises(ValueError, match="has no tasks missing"):
        dry_run.DryRun(_package(tmp_path, {"a": _task(source="missing")}), tmp_path).run()


def test_folder_stands_for_the_volume(tmp_path):
    mount = {"exec": {"pvcMount": [{"constant": "claim", "mountPath": "/mnt/x"}]}}
    texts = ["/mnt/x", "/mnt/x/a", "/mnt/xy", "a/mnt/x", json.dumps({"root": "/mnt/x/b"})]
    moved = packages.Package({"texts": texts}, mount).on("/tmp/v").spec["texts"]
    assert moved == ["/tmp/v", "/tmp/v/a", "/mnt/xy", "a/mnt/x", json.dumps({"root": "/tmp/v/b"})]


@pytest.mark.parametrize("text", ["", "a: 1", "- 1", "hello"])
def test_other_files_are_no_packages(tmp_path, text):
    path = tmp_path / "other.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="package must be a compiled pipeline"):
        packages.read(path)


@pytest.mark.parametrize(
    ("state", "said", "code"),
    [
        (dry_run.SUCCEEDED, "released", 0),
        (dry_run.SUCCEEDED, "refused", 1),
        (dry_run.FAILED, "released", 2),
    ],
)
def test_exit_code_says_what_became_of_the_model(tmp_path, monkeypatch, state, said, code):
    from sigline import cli

    def run(self):
        self.tasks["RecordVerdict"] = dry_run.TaskRun(
            "RecordVerdict", "SUCCEEDED", parameters={"verdict": said}
        )
        return state

    monkeypatch.setattr(dry_run.DryRun, "run", run)
    _package(tmp_path, {"a": _task("hello")})
    mounted = {"say_executor": {"pvcMount": [{"constant": "x", "mountPath": "/mnt/x"}]}}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": mounted}}}}
    with open(tmp_path / "small.yaml", "a") as handle:
        handle.write("---\n" + yaml.safe_dump(platform))
    command = ["kubeflow", "dry-run", str(tmp_path / "small.yaml"), "--volume", str(tmp_path)]
    assert cli.main([*command, "--logs", str(tmp_path / "logs")]) == code
