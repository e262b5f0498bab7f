"""Runs a compiled package on this machine, each task as the command that its container would run.

What is run is the package, not the pipeline that it was compiled from: its graph, placeholders,
parameters, conditions, retries and exit handler, with what Kubeflow's open-source backend hands to
a container: artifacts without types, at URIs of an object store that nobody can open. What it has
not: images, the cache, other pods at the same time, and pauses before retries.
"""

import json
import os
import re
import runpy
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sigline.pipeline.kubeflow import packages, preloading
from sigline.pipeline.kubeflow.packages import Package

SUCCEEDED, FAILED, SKIPPED = "SUCCEEDED", "FAILED", "SKIPPED"
_INPUT_PLACEHOLDER = "{{$}}"
_CONDITION = re.compile(r"inputs\.parameter_values\['(\w+)'\] == '([^']*)'")
_RUN_TASK = "sigline.pipeline.kubeflow.run_task"
_ALL_COMPLETED = "ALL_UPSTREAM_TASKS_COMPLETED"


@dataclass
class TaskRun:
    """What became of a task.

    Attributes:
        name: Its name.
        state: `SUCCEEDED`, `FAILED` or `SKIPPED`.
        attempts: How often it was started.
        seconds: How long it took, all attempts together.
        reason: Why it failed or was skipped, in one line.
        log: The log of its last attempt; None if it was not started.
        parameters: Its output parameters.
        artifacts: Its output artifacts.
    """

    name: str
    state: str
    attempts: int = 0
    seconds: float = 0.0
    reason: str = ""
    log: Path | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)


class DryRun:
    """One run of a package."""

    def __init__(
        self,
        package: Package,
        folder: str | Path,
        *,
        parameters: Mapping[str, str] | None = None,
        report: Callable[[TaskRun], None] = lambda task: None,
        preload: bool = False,
    ):
        """Checks what a run is given.

        Args:
            package: What to run.
            folder: Where logs and what a backend keeps of a run go.
            parameters: Parameters of the run by name, as text.
            report: Called with every task that has ended or was skipped.
            preload: Whether sigline's own tasks start from a process that has imported their
                libraries, which takes longer than most tasks do.

        Raises:
            ValueError: If there is no such parameter, or it is of another type.
        """
        self.name = uuid.uuid4().hex
        self.tasks: dict[str, TaskRun] = {}
        self._spec = package.spec
        self._executors = package.executors
        self._folder = Path(folder) / self.name
        self._report = report
        self._preloaded = preloading.context() if preload else None
        # Id of the process of the task that is running.
        self.process_id = 0
        self._parameters = package.parameters(parameters or {})

    def run(self) -> str:
        """Runs every task; returns `SUCCEEDED` or `FAILED`."""
        return self._run_graph(self._spec["root"]["dag"], self._parameters)

    def _run_graph(self, graph: dict[str, Any], parameters: Mapping[str, Any]) -> str:
        tasks = graph["tasks"]
        for name in _in_order(tasks):
            task = tasks[name]
            needed = [self.tasks[x] for x in _upstream(task)]
            stopped = [x for x in needed if x.state != SUCCEEDED]
            strategy = task.get("triggerPolicy", {}).get("strategy")
            if stopped and strategy != _ALL_COMPLETED:
                reason = f"{stopped[0].name}: {stopped[0].state.lower()}"
                self._note(TaskRun(name, SKIPPED, reason=reason))
                continue
            component = self._spec["components"][task["componentRef"]["name"]]
            values = self._values(task, component, parameters)
            if "dag" in component:
                self.tasks[name] = TaskRun(name, self._run_graph(component["dag"], values))
            else:
                self._note(self._run_task(name, task, component, values))
        failed = any(self.tasks[name].state == FAILED for name in tasks)
        return FAILED if failed else SUCCEEDED

    def _note(self, task: TaskRun) -> None:
        self.tasks[task.name] = task
        self._report(task)

    def _values(
        self, task: dict[str, Any], component: dict[str, Any], parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the parameters of a task, its defaults among them."""
        defined = component.get("inputDefinitions", {}).get("parameters", {})
        values = {
            name: item["defaultValue"] for name, item in defined.items() if "defaultValue" in item
        }
        for name, source in task.get("inputs", {}).get("parameters", {}).items():
            values[name] = self._value(source, parameters)
        if missing := sorted(set(defined) - set(values)):
            raise ValueError(
                f"a task has no value for its parameters {', '.join(missing)}. "
                f"Received: {', '.join(sorted(values)) or 'none'}"
            )
        for name, value in values.items():
            kind = defined[name]["parameterType"]
            if kind == "NUMBER_INTEGER" and isinstance(value, float) and value.is_integer():
                # Specifications know no integers: whole numbers arrive as floating point.
                values[name] = value = int(value)
            if not packages.is_of(kind, value):
                raise ValueError(f"parameter {name} must be a {kind}. Received: {value!r}")
        return values

    def _value(self, source: dict[str, Any], parameters: Mapping[str, Any]) -> Any:
        if "componentInputParameter" in source:
            return parameters[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            output = source["taskOutputParameter"]
            return self.tasks[output["producerTask"]].parameters[output["outputParameterKey"]]
        if "taskFinalStatus" in source:
            return self._final_status(source["taskFinalStatus"]["producerTask"])
        constant = source["runtimeValue"]["constant"]
        return self.name if constant == packages.RUN_ID else constant

    def _final_status(self, name: str) -> str:
        failed = [task for task in self.tasks.values() if task.state == FAILED and task.reason]
        status = {"state": self.tasks[name].state, "pipelineTaskName": name}
        # The open-source backend does not say which task it was, or why.
        return json.dumps(status | ({"error": {"message": "", "code": 9}} if failed else {}))

    def _run_task(
        self, name: str, task: dict[str, Any], component: dict[str, Any], values: dict[str, Any]
    ) -> TaskRun:
        condition = task.get("triggerPolicy", {}).get("condition", "")
        if condition and not _holds(condition, values):
            return TaskRun(name, SKIPPED, reason=f"not: {condition}")
        executor_input = self._executor_input(name, task, component, values)
        label = component["executorLabel"]
        container = self._spec["deploymentSpec"]["executors"][label]["container"]
        command = [
            _resolved(item, executor_input)
            for item in (*container["command"], *container.get("args", []))
        ]
        if command[0] == "python":
            command[0] = sys.executable
        variables = os.environ | self._variables(label)
        attempts = 1 + int(task.get("retryPolicy", {}).get("maxRetryCount", 0))
        begin, result = time.monotonic(), TaskRun(name, FAILED)
        for attempt in range(1, attempts + 1):
            result.attempts = attempt
            result.log = self._folder / "logs" / f"{name}-{attempt}.log"
            result.log.parent.mkdir(parents=True, exist_ok=True)
            code = self._execute(command, result.log, variables)
            if code == 0:
                result.state = SUCCEEDED
                break
            result.reason = _last_line(result.log) or f"ended with code {code}"
        result.seconds = time.monotonic() - begin
        if result.state == SUCCEEDED:
            result.reason = ""
            self._collect(result, executor_input, component)
        return result

    def _execute(self, command: list[str], log: Path, variables: dict[str, str]) -> int:
        """Returns the exit code of a command, which is negative if a signal ended it."""
        if self._preloaded is not None and command[1:3] == ["-m", _RUN_TASK]:
            arguments = command[3:], str(log), variables
            child = self._preloaded.Process(target=_run_preloaded, args=arguments)
            child.start()
            self.process_id = child.pid or 0
            child.join()
            return child.exitcode or 0
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=variables
            )
            self.process_id = process.pid
            return process.wait()

    def _executor_input(
        self, name: str, task: dict[str, Any], component: dict[str, Any], values: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the `ExecutorInput` of a task, as the open-source backend writes it."""
        inputs = {}
        for key, source in task.get("inputs", {}).get("artifacts", {}).items():
            output = source["taskOutputArtifact"]
            artifact = self.tasks[output["producerTask"]].artifacts[output["outputArtifactKey"]]
            inputs[key] = {"artifacts": [artifact | {"type": {"instanceSchema": ""}}]}
        defined = component.get("outputDefinitions", {})
        base = f"minio://mlpipeline/v2/artifacts/{self._spec['pipelineInfo']['name']}/{self.name}"
        place = self._folder / "outputs" / name
        return {
            "inputs": {"parameterValues": values, "artifacts": inputs},
            "outputs": {
                "parameters": {
                    key: {"outputFile": str(place / key)} for key in defined.get("parameters", {})
                },
                "artifacts": {
                    key: {
                        "artifacts": [
                            {
                                "name": key,
                                "uri": f"{base}/{name}/{uuid.uuid4().hex}/{key}",
                                "type": item["artifactType"],
                                "metadata": {},
                            }
                        ]
                    }
                    for key, item in defined.get("artifacts", {}).items()
                },
                "outputFile": str(place / "executor_output.json"),
            },
        }

    def _variables(self, label: str) -> dict[str, str]:
        """Returns the environment variables that Kubernetes would set."""
        platform_options = self._executors.get(label, {})
        variables = {
            item["name"]: self.name
            for item in platform_options.get("fieldPathAsEnv", [])
            if item["fieldPath"] == packages.RUN_LABEL
        }
        for secret in platform_options.get("secretAsEnv", []):
            for item in secret["keyToEnv"]:
                if item["envVar"] not in os.environ:
                    raise ValueError(
                        f"The package shows a secret as ${item['envVar']}; set it for a dry run."
                    )
        return variables

    def _collect(
        self, result: TaskRun, executor_input: dict[str, Any], component: dict[str, Any]
    ) -> None:
        """Keeps the output artifacts and parameters of a task for those that need them."""
        path = Path(executor_input["outputs"]["outputFile"])
        written = json.loads(path.read_text()) if path.is_file() else {}
        for key, item in executor_input["outputs"]["artifacts"].items():
            artifact = dict(item["artifacts"][0])
            for own in written.get("artifacts", {}).get(key, {}).get("artifacts", []):
                artifact["metadata"] = artifact["metadata"] | own.get("metadata", {})
                artifact["uri"] = own.get("uri") or artifact["uri"]
            result.artifacts[key] = artifact
        result.parameters = dict(written.get("parameterValues", {}))
        defined = component.get("outputDefinitions", {}).get("parameters", {})
        if missing := sorted(set(defined) - set(result.parameters)):
            raise ValueError(
                f"{result.name} has not put out {', '.join(missing)}. "
                f"Received: {', '.join(sorted(result.parameters)) or 'none'}"
            )
        for key, item in defined.items():
            if item["parameterType"] == "NUMBER_INTEGER":
                result.parameters[key] = int(result.parameters[key])


def _run_preloaded(argv: list[str], log: str, variables: dict[str, str]) -> None:
    """Runs a task of sigline's in this process, as its command would."""
    preloading.become([_RUN_TASK, *argv], variables, output=log)
    runpy.run_module(_RUN_TASK, run_name="__main__", alter_sys=True)


def _upstream(task: Mapping[str, Any]) -> list[str]:
    """Returns the names of the tasks that a task needs."""
    inputs = task.get("inputs", {})
    sources = [*inputs.get("artifacts", {}).values(), *inputs.get("parameters", {}).values()]
    names = set(task.get("dependentTasks", []))
    for source in sources:
        for kind in ("taskOutputArtifact", "taskOutputParameter"):
            if kind in source:
                names.add(source[kind]["producerTask"])
    return sorted(names)


def _in_order(tasks: Mapping[str, Any]) -> list[str]:
    """Returns the names of tasks, each after those that it needs."""
    left, order = {name: set(_upstream(task)) for name, task in tasks.items()}, []
    if unknown := sorted(set().union(*left.values()) - set(tasks)) if left else []:
        raise ValueError(
            f"The package has no tasks {', '.join(unknown)}, which others need. "
            f"Received: tasks={sorted(tasks)}"
        )
    while left:
        ready = sorted(name for name, needed in left.items() if not needed)
        if not ready:
            raise ValueError(
                f"Tasks of the package need each other: {', '.join(sorted(left))}. "
                f"Received: {', '.join(f'{x} needs {sorted(left[x])}' for x in sorted(left))}"
            )
        order += ready
        left = {name: needed - set(ready) for name, needed in left.items() if name not in ready}
    return order


def _holds(condition: str, values: Mapping[str, Any]) -> bool:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise ValueError(f"A dry run does not know the condition {condition!r}")
    return values[match[1]] == match[2]


def _resolved(item: str, executor_input: dict[str, Any]) -> str:
    text = item.replace(_INPUT_PLACEHOLDER, json.dumps(executor_input))
    if item.replace(_INPUT_PLACEHOLDER, "").startswith("{{$"):
        raise ValueError(f"A dry run does not know the placeholder {item!r}")
    return text


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
