"""Arguments of the Beam runner: what is added to an environment's own, and what is refused."""

import argparse
from collections.abc import Sequence

# Not DirectRunner, Beam's default, which first tries to download another runner.
LOCAL = "FnApiRunner"
DATAFLOW = "DataflowRunner"
# Those that run in this process, unless it is to have others beside it.
_IN_PROCESS = (LOCAL, "DirectRunner", "BundleBasedDirectRunner")
# Those whose job server has options of its own, which Beam's Python part does not know.
_JOB_SERVER = ("PortableRunner", "FlinkRunner", "SparkRunner")
# TFDV can be imported only where TFX was before it. Workers import plugins before all else.
_PLUGIN = "tfx"
# Where no image is named, TFX packs itself for each node, for workers to install; sigline's workers
# have it.
_IMAGE = "sdk_container_image"
# A list of the libraries here, the one file that would be handed to workers through a folder that
# the job server and all executors must share.
_NO_LIST = "disable_logging_submission_environment"
_DATAFLOW_NEEDS = ("project", "region", "temp_location", _IMAGE)


def complete(given: Sequence[str]) -> tuple[str, ...]:
    """Returns an environment's arguments with the runner, and with what it and its workers need.

    Raises:
        ValueError: If the runner could not tell its processes what to import.
    """
    arguments = tuple(given)
    if not any(argument.split("=")[0] == "--runner" for argument in arguments):
        arguments = (f"--runner={LOCAL}", *arguments)
    name, found = runner(arguments), _read(arguments)
    if name != DATAFLOW and not found.sdk_container_image:
        arguments += (f"--{_IMAGE}=none",)
    if is_in_process(arguments):
        return arguments
    if name == LOCAL:
        raise ValueError(
            "beam_args must name --runner=DirectRunner and --allow_unsafe_triggers for several "
            f"processes: {LOCAL} does not tell them to import TFX, which TFDV needs. "
            f"Received: beam_args={list(given)}"
        )
    if _PLUGIN not in (found.beam_plugins or ()):
        arguments += (f"--beam_plugins={_PLUGIN}",)
    if name in _JOB_SERVER and _NO_LIST not in (found.experiments or ()):
        arguments += (f"--experiments={_NO_LIST}",)
    return arguments


def runner(arguments: Sequence[str]) -> str:
    """Returns the name of the runner, without its module."""
    return _read(arguments).runner.rpartition(".")[2]


def is_in_process(arguments: Sequence[str]) -> bool:
    """Returns whether the transforms run in the process that starts them."""
    several = _read(arguments).direct_running_mode == "multi_processing"
    return runner(arguments) in _IN_PROCESS and not several


def check(arguments: Sequence[str]) -> None:
    """Raises if Beam would not know an argument, which it passes over in silence.

    Raises:
        ValueError: If one is unknown or missing.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions(list(arguments))
    known = options.get_all_options()
    unknown = sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known))
    name = runner(arguments)
    if unknown and name not in _JOB_SERVER:
        raise ValueError(
            f"beam_args must be arguments that Beam knows. Received: {', '.join(unknown)}"
        )
    if name != DATAFLOW:
        return
    if missing := [x for x in _DATAFLOW_NEEDS if not known.get(x)]:
        raise ValueError(
            f"beam_args must have {', '.join('--' + x for x in missing)} for {DATAFLOW}. "
            f"Received: beam_args={list(arguments)}"
        )
    if not known["temp_location"].startswith("gs://"):
        raise ValueError(
            "temp_location must be in a bucket, gs://BUCKET/..., for Dataflow. "
            f"Received: temp_location={known['temp_location']}"
        )


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--runner", default=LOCAL)
    parser.add_argument("--direct_running_mode", default="")
    parser.add_argument("--beam_plugin", "--beam_plugins", dest="beam_plugins", action="append")
    parser.add_argument("--experiments", action="append")
    parser.add_argument(f"--{_IMAGE}", default="")
    return parser.parse_known_args(list(arguments))[0]
