"""Runs that are started and followed through Kubeflow's own client, at a stand-in for its API."""

import http.server
import json
import threading

import pytest
import yaml

from sigline import cli
from sigline.pipeline.kubeflow import cluster

RUN, EXPERIMENT = "5f7b0c6e", "e1"
STAMP = "2026-01-01T00:00:00Z"
TASKS = [
    {
        "display_name": "Trainer",
        "state": "FAILED",
        "start_time": "2026-01-01T00:01:00Z",
        "error": {"code": 9, "message": "Trainer failed: no memory"},
        "task_id": "x-1",
        "child_tasks": [{"pod_name": "x-2"}],
    },
    # As releases up to 2 list a workflow's nodes: the command's pod has the number of the last one.
    {"display_name": "executor", "task_id": "x-2", "child_tasks": [{"pod_name": "x-3"}]},
    {"display_name": "executor(0)", "task_id": "x-3"},
    {"display_name": "Trainer-driver", "task_id": "x-9", "state": "SUCCEEDED"},
    {"display_name": "PlanRun", "state": "SUCCEEDED", "start_time": STAMP},
]


class _Backend(http.server.BaseHTTPRequestHandler):
    """Answers as the API does; `server.asked` has what it was asked."""

    def log_message(self, *_):
        pass

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, self.path, body, dict(self.headers)))
        code, content = self._content(path)
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def _content(self, path):
        base = "/apis/v2beta1"
        run = {
            "run_id": RUN,
            "experiment_id": EXPERIMENT,
            "state": "FAILED",
            "created_at": STAMP,
            "display_name": "scenes",
            "run_details": {"task_details": TASKS},
        }
        experiment = {"experiment_id": EXPERIMENT, "display_name": "scenes", "created_at": STAMP}
        if path == f"{base}/healthz":
            return 200, {"multi_user": False}
        if path == f"{base}/experiments" and self.command == "GET":
            return 200, {"experiments": [], "total_size": 0}
        if path.startswith(f"{base}/experiments"):
            return 200, experiment
        if path == f"{base}/recurringruns" and self.command == "GET":
            return 200, {"recurringRuns": self.server.schedules}
        if path == f"{base}/recurringruns":
            return 200, {"recurring_run_id": "r9", "created_at": STAMP, "updated_at": STAMP}
        if path in (f"{base}/runs", f"{base}/runs/{RUN}"):
            return 200, run
        if path == f"{base}/runs/{RUN}/nodes/x-retry-system-container-impl-3/log":
            return 200, b"step 1\nstep 2\n"
        return 404, {"error": "not found", "code": 5, "message": "not found"}


@pytest.fixture
def backend():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Backend)
    server.asked, server.schedules = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def host(backend):
    return f"http://127.0.0.1:{backend.server_address[1]}"


@pytest.fixture
def package(tmp_path):
    """A package with one parameter."""
    container = {"image": "x", "command": ["true"], "args": []}
    spec = {
        "pipelineInfo": {"name": "scenes"},
        "schemaVersion": "2.1.0",
        "sdkVersion": "test",
        "deploymentSpec": {"executors": {"a": {"container": container}}},
        "components": {"a": {"executorLabel": "a"}},
        "root": {
            "dag": {"tasks": {"a": {"componentRef": {"name": "a"}, "taskInfo": {"name": "a"}}}},
            "inputDefinitions": {
                "parameters": {"span": {"parameterType": "NUMBER_INTEGER", "defaultValue": -1.0}}
            },
        },
    }
    path = tmp_path / "scenes.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def _posted(backend, path):
    (body,) = [
        body
        for method, asked, body, _ in backend.asked
        if method == "POST" and asked.partition("?")[0].endswith(path)
    ]
    return json.loads(body)


def test_run_is_submitted_whole_with_its_parameters(backend, host, package, capsys, monkeypatch):
    monkeypatch.setenv(cluster.TOKEN_VARIABLE, "secret")
    arguments = ["--host", host, "--parameter", "span=7", "--service-account", "runner"]
    assert cli.main(["kubeflow", "submit", str(package), *arguments]) == 0
    assert f"Run {RUN}" in capsys.readouterr().out
    run = _posted(backend, "/runs")
    assert run["runtime_config"]["parameters"] == {"span": 7}
    assert run["service_account"] == "runner"
    assert run["pipeline_spec"]["pipelineInfo"]["name"] == "scenes"
    sent = {
        headers.get("authorization", headers.get("Authorization")) for *_, headers in backend.asked
    }
    assert sent == {"Bearer secret"}


def test_schedule_starts_one_run_at_a_time(backend, host, package, capsys):
    arguments = ["--host", host, "--cron", "0 0 3 * * *"]
    assert cli.main(["kubeflow", "submit", str(package), *arguments]) == 0
    assert "Schedule r9" in capsys.readouterr().out
    job = _posted(backend, "/recurringruns")
    assert job["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert job["max_concurrency"] == 1
    assert job["no_catchup"] is True


def test_second_schedule_of_a_pipeline_is_refused(backend, host, package, capsys):
    backend.schedules.append(
        {"recurring_run_id": "r8", "display_name": "scenes", "created_at": STAMP}
    )
    arguments = ["kubeflow", "submit", str(package), "--host", host, "--cron"]
    assert cli.main([*arguments, "0 0 3 * * *"]) == 2
    assert "delete it first, or both start runs. Received: schedule=r8" in capsys.readouterr().err
    assert cli.main([*arguments, "0 3 * * *"]) == 2
    assert "cron must have six fields" in capsys.readouterr().err


def test_status_names_the_task_that_failed_and_why(host, capsys):
    assert cli.main(["kubeflow", "status", RUN, "--host", host]) == 2
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "PlanRun: succeeded",
        "Trainer: failed: Trainer failed: no memory",
        f"Run {RUN}: failed",
    ]


def test_log_is_that_of_the_pod_that_ran_the_command(host, capsys):
    assert cli.main(["kubeflow", "logs", RUN, "Trainer", "--host", host]) == 0
    assert capsys.readouterr().out.endswith("step 1\nstep 2\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "missing"], "There must be such a run. Received: run=missing: 404 Not Found"),
        (["logs", RUN, "CheckData"], f"no pod of that task. Received: run={RUN}, task=CheckData"),
    ],
)
def test_what_is_not_there_is_one_sentence(host, arguments, message, capsys):
    assert cli.main(["kubeflow", *arguments, "--host", host]) == 2
    assert message in capsys.readouterr().err


def test_wrong_parameter_and_host_are_one_sentence(host, package, capsys):
    given = ["kubeflow", "submit", str(package), "--host", host, "--parameter", "spam=7"]
    assert cli.main(given) == 2
    assert "has the parameters span. Received: spam" in capsys.readouterr().err
    assert cli.main(["kubeflow", "status", RUN, "--host", "http://127.0.0.1:9"]) == 2
    assert "host must be reachable" in capsys.readouterr().err
