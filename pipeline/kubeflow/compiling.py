"""From an environment to a package that Kubeflow Pipelines 2 and Vertex AI take.

TFX compiles the pipeline; what its compiler leaves out, or gets wrong for Kubeflow's open-source
backend, is put in afterwards: what each task gets, retries, what is cached, the condition under
which a model is published, volumes and secrets.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import sigline.quiet

sigline.quiet.import_tfx()

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.dsl.components.base.base_beam_component import BaseBeamComponent
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration import data_types
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.orchestration.kubeflow.decorators import FinalStatusStr
from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner

from sigline.pipeline import beam_arguments, planning, wiring
from sigline.pipeline import environment as environments
from sigline.pipeline.beam_arguments import DATAFLOW
from sigline.pipeline.environment import TFX, Environment
from sigline.pipeline.history import ACCEPTANCE
from sigline.pipeline.kubeflow import packages, platform_config, records, settings, tfx_nodes
from sigline.pipeline.kubeflow.history import RecordHistory
from sigline.pipeline.kubeflow.settings import Settings
from sigline.schemas import atomic, versions
from sigline.trainer import config as trainer_config

VERTEX, KUBEFLOW = "vertex", "kubeflow"
ENGINES = (KUBEFLOW, VERTEX)
# A task that the backend tells its own name and that of its run.
_COMMAND = ("python", "-m", "sigline.pipeline.kubeflow.run_task")
_INPUTS_SPEC = "--json_serialized_inputs_spec_args"
# Kubeflow's cache looks at parameters and at the names of inputs, not at what lies behind them:
# it may answer for tasks that have all their input in their parameters.
_CACHED = ("IngestExamples", "ProvideSchema", "ExportFrozenTower")
# Folders that tasks share.
_SHARED = ("root", "input_base", "serving_dir", "index_dir", "weights")
# What Dataflow runs: its workers see objects, not folders. The other tasks open files, and run
# their transforms where they are themselves.
_ON_DATAFLOW = ("IngestExamples", "StatisticsGen")
# Tasks that are not tried again, since they would decide the same.
_NOT_RETRIED = ("PlanRun", "CheckData")


def compile_pipeline(
    environment: Environment, path: str | Path, *, engine: str = KUBEFLOW
) -> dict[str, Any]:
    """Compiles the pipeline of an environment with a `kubeflow` section.

    Args:
        environment: What to run.
        path: The package to write: `.yaml` for Kubeflow, `.json` for Vertex AI.
        engine: `kubeflow` or `vertex`.

    Returns:
        The specification that was written.

    Raises:
        ValueError: If the environment cannot run on the engine, or a file is in the way that an
            earlier call did not write.
    """
    packages.check_output(path)
    options = settings.read(environment.kubeflow)
    _check(environment, options, engine)
    path = Path(path)
    suffix = {KUBEFLOW: ".yaml", VERTEX: ".json"}[engine]
    if path.suffix != suffix:
        raise ValueError(f"output must end in {suffix} for {engine}. Received: output={path}")
    spec = _compiled(environment, options)
    _finish(spec, environment, options, engine)
    # Parse the specification as a backend does, which refuses unknown fields.
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    if engine == VERTEX:
        runtime = {"gcsOutputDirectory": options.pipeline_root} if options.pipeline_root else {}
        job = {
            "displayName": environment.pipeline_name,
            "pipelineSpec": spec,
            "runtimeConfig": runtime,
        }
        text = packages.marked_json(job)
    else:
        if options.pipeline_root:
            spec["defaultPipelineRoot"] = options.pipeline_root
        documents = [spec, {"platforms": {"kubernetes": platform_config.platform(spec, options)}}]
        text = packages.marked_yaml(yaml.safe_dump_all(documents, sort_keys=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, text)
    return spec


def pipeline_of(environment: Environment) -> tuple[tfx_pipeline.Pipeline, BaseNode]:
    """Returns TFX's pipeline for a cluster, and the node that reports a run after its end."""
    plan_node = tfx_nodes.PlanRun(
        environment=environments.to_json(dataclasses.replace(environment, kubeflow=None)),
        recipe=data_types.RuntimeParameter("recipe", str),
        chosen_span=data_types.RuntimeParameter("span", int),
        overrides=data_types.RuntimeParameter("overrides", str),
        steps=data_types.RuntimeParameter("steps", int),
        thresholds=data_types.RuntimeParameter("gate", str),
    )
    # At compile time a plan holds placeholders for the outputs of the task that makes it.
    planned: dict[str, Any] = {
        name: output.future()[0].value for name, output in plan_node.outputs.items()
    }
    plan = planning.Plan(**planned)
    wired = wiring.wire(environment, plan, RecordHistory(), packages.RUN_ID)
    by_id = {node.id: node for node in wired}
    recorded = tfx_nodes.RecordData(
        root=environment.root,
        spans=environment.spans,
        acceptance=by_id["CheckData"].outputs[ACCEPTANCE],
        examples=by_id["IngestExamples"].outputs["examples"],
        statistics=by_id["StatisticsGen"].outputs["statistics"],
        ingest_report=by_id["IngestExamples"].outputs["report"],
    )
    verdict = tfx_nodes.RecordVerdict(
        root=environment.root,
        model=by_id["Trainer"].outputs["model"],
        model_blessing=by_id["EvaluateModel"].outputs["blessing"],
        infra_blessing=by_id["CheckServing"].outputs["blessing"],
    )
    by_id["PublishModel"].add_upstream_node(verdict)
    for node in wired:
        if isinstance(node, BaseBeamComponent):
            node.with_beam_pipeline_args(_beam_args(environment, node.id))
    pipeline = tfx_pipeline.Pipeline(
        pipeline_name=environment.pipeline_name,
        pipeline_root=environment.root,
        components=[plan_node, *wired, recorded, verdict],
        enable_cache=False,
    )
    return pipeline, tfx_nodes.ReportRun(final_status=FinalStatusStr(), root=environment.root)


def _is_on_dataflow(environment: Environment, name: str) -> bool:
    return beam_arguments.runner(environment.beam_args) == DATAFLOW and name in _ON_DATAFLOW


def _beam_args(environment: Environment, name: str) -> list[str]:
    """Returns the arguments of a task's runner."""
    is_elsewhere = beam_arguments.runner(environment.beam_args) == DATAFLOW
    here = is_elsewhere and not _is_on_dataflow(environment, name)
    return list(beam_arguments.complete([]) if here else environment.beam_args)


def _check(environment: Environment, options: Settings, engine: str) -> None:
    if "." not in environment.recipe:
        # A recipe of a package of the user's own may be installed in the image alone.
        trainer_config.override(
            trainer_config.load_recipe(environment.recipe), environment.overrides
        )
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}. Received: engine={engine!r}")
    if environment.infra == TFX:
        raise ValueError(
            "infra must be sigline on Kubeflow: TFX does not compile its InfraValidator for it. "
            "Received: infra=tfx"
        )
    if beam_arguments.runner(environment.beam_args) == DATAFLOW:
        _check_dataflow(environment, engine)
    if engine == VERTEX:
        if options.claim:
            raise ValueError(
                "kubeflow.claim must be empty on Vertex AI, which has no such volumes; put root "
                f"below /gcs/BUCKET. Received: claim={options.claim}"
            )
        if not versions.is_remote(environment.serving_dir):
            raise ValueError(
                "serving_dir must be gs://BUCKET/... on Vertex AI: in a mounted bucket no version "
                f"appears whole. Received: serving_dir={environment.serving_dir}"
            )
    elif not options.claim:
        raise ValueError(
            "kubeflow.claim must name the volume that all tasks see, a PersistentVolumeClaim of "
            "their namespace. Received: claim=''"
        )
    shared = "/gcs" if engine == VERTEX else options.mount.rstrip("/")
    paths = {name: getattr(environment, name) for name in _SHARED}
    paths |= {f"teachers.{name}": path for name, path in environment.teachers.items()}
    for name, path in paths.items():
        is_shared = path.startswith(shared + "/")
        if path and not is_shared and (name == "root" or not versions.is_remote(path)):
            raise ValueError(
                f"{name} must lie below {shared}, which all tasks see. Received: {name}={path}"
            )


def _check_dataflow(environment: Environment, engine: str) -> None:
    if engine != VERTEX:
        raise ValueError(
            f"beam_args must name another runner: what tasks share is a volume, which {DATAFLOW}'s "
            f"workers do not see. Received: engine={engine}, "
            f"beam_args={list(environment.beam_args)}"
        )
    vocabulary = environment.ingest.get("filters", {}).get("vocabulary", "")
    if str(vocabulary).startswith("/gcs/"):
        raise ValueError(
            f"ingest.filters.vocabulary must be a file of the workers' image for {DATAFLOW}, which "
            f"has no mounted buckets. Received: vocabulary={vocabulary}"
        )


def _compiled(environment: Environment, options: Settings) -> dict[str, Any]:
    """Returns what TFX's compiler makes of the pipeline."""
    pipeline, reporter = pipeline_of(environment)
    images = {"default_image_path": options.image}
    for name in (node.id for node in (*pipeline.components, reporter)):
        images[name] = options.resources_of(name).image or options.image
    config = kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(
        display_name=environment.pipeline_name,
        default_image=images,
        default_commands=list(_COMMAND),
        use_pipeline_spec_2_1=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
            config, output_dir=folder, output_filename="pipeline.yaml"
        )
        runner.set_exit_handler(reporter)
        runner.run(pipeline)
        return yaml.safe_load((Path(folder) / "pipeline.yaml").read_text())


def _finish(spec: dict[str, Any], environment: Environment, options: Settings, engine: str) -> None:
    """Puts in what TFX's compiler leaves out; changes the specification."""
    known = [name for name in spec["components"] if name != packages.GRAPH]
    if unknown := sorted(set(options.resources) - {settings.DEFAULT, *known}):
        raise ValueError(
            f"kubeflow.resources must name tasks: {', '.join(known)}, or {settings.DEFAULT}. "
            f"Received: {', '.join(unknown)}"
        )
    # Record what made the package; the same input gives the same bytes.
    spec["sdkVersion"] = f"sigline-{sigline.__version__}"
    tasks = spec["components"][packages.GRAPH]["dag"]["tasks"]
    executors = spec["deploymentSpec"]["executors"]
    for name, task in {**tasks, **spec["root"]["dag"]["tasks"]}.items():
        if name == packages.GRAPH:
            continue
        for source in task.get("inputs", {}).get("parameters", {}).values():
            output = source.get("taskOutputParameter")
            if output is not None:
                # TFX refers to a producer by its name and `_task`, but defines it by the name
                # alone.
                output["producerTask"] = output["producerTask"].removesuffix("_task")
                task["dependentTasks"] = sorted(
                    {*task.get("dependentTasks", []), output["producerTask"]}
                )
        task["cachingOptions"] = {"enableCache": name in _CACHED and environment.window == 1}
        if options.retries and name not in _NOT_RETRIED:
            task["retryPolicy"] = {
                "maxRetryCount": options.retries,
                "backoffDuration": f"{options.backoff_seconds}s",
                "backoffFactor": 2.0,
            }
        container = executors[spec["components"][task["componentRef"]["name"]]["executorLabel"]][
            "container"
        ]
        own = ["--task", name, "--root", environment.root]
        own += ["--volume", f"{environment.root}/artifacts"] if options.claim else []
        own += ["--objects"] if _is_on_dataflow(environment, name) else []
        # Kubeflow gives pods the name of the run by a label; Vertex AI needs an argument.
        own += ["--run", packages.RUN_ID] if engine == VERTEX else []
        container["command"] = [*_COMMAND, *own]
        if resources := platform_config.resources(options.resources_of(name)):
            container["resources"] = resources
    _hand_down_parameters(spec, _defaults(environment))
    _publish_if_released(spec, tasks)
    _type_parameters(spec, tasks)


def _defaults(environment: Environment) -> dict[str, Any]:
    """Returns the parameters of a run and their defaults."""
    return {"recipe": environment.recipe, "span": -1, "overrides": "", "steps": 0, "gate": "{}"}


def _hand_down_parameters(spec: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Gives the parameters of a run their defaults, and hands them down to the inner graph.

    TFX defines them at the root alone, and puts defaults into the job instead.
    """
    defined = spec["root"]["inputDefinitions"]["parameters"]
    for name, default in defaults.items():
        defined[name] |= {"defaultValue": default, "isOptional": True}
    spec["components"][packages.GRAPH].setdefault("inputDefinitions", {})["parameters"] = {
        name: {"parameterType": item["parameterType"]} for name, item in defined.items()
    }
    spec["root"]["dag"]["tasks"][packages.GRAPH].setdefault("inputs", {})["parameters"] = {
        name: {"componentInputParameter": name} for name in defined
    }


def _publish_if_released(spec: dict[str, Any], tasks: dict[str, Any]) -> None:
    """Makes what publishes, and what follows it, wait for the verdict and depend on it."""
    dependent = [name for name in ("PublishModel", "IndexCorpus", "PublishIndex") if name in tasks]
    for name in dependent:
        task = tasks[name]
        task.setdefault("inputs", {}).setdefault("parameters", {})["verdict"] = {
            "taskOutputParameter": {
                "producerTask": "RecordVerdict",
                "outputParameterKey": "verdict",
            }
        }
        task["dependentTasks"] = sorted({*task.get("dependentTasks", []), "RecordVerdict"})
        task["triggerPolicy"] = {
            "condition": f"inputs.parameter_values['verdict'] == '{records.RELEASED}'"
        }
        component = spec["components"][task["componentRef"]["name"]]
        component["inputDefinitions"].setdefault("parameters", {})["verdict"] = {
            "parameterType": "STRING"
        }
    # No task of TFX's pipeline takes the verdict as a parameter, so TFX leaves its type out.
    spec["components"]["RecordVerdict"]["outputDefinitions"]["parameters"] = {
        "verdict": {"parameterType": "STRING"}
    }


def _type_parameters(spec: dict[str, Any], tasks: dict[str, Any]) -> None:
    """Gives parameters that other tasks put out the types that those have; TFX calls all texts."""
    for task in tasks.values():
        component = spec["components"][task["componentRef"]["name"]]
        inputs = component.get("inputDefinitions", {})
        for name, source in task.get("inputs", {}).get("parameters", {}).items():
            if "taskOutputParameter" in source:
                output = source["taskOutputParameter"]
                producer = spec["components"][tasks[output["producerTask"]]["componentRef"]["name"]]
                inputs["parameters"][name] = dict(
                    producer["outputDefinitions"]["parameters"][output["outputParameterKey"]]
                )
        args = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]["args"]
        # TFX's entrypoint reads the types of inputs from this argument.
        args[args.index(_INPUTS_SPEC) + 1] = json.dumps(inputs, sort_keys=True)
