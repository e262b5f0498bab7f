"""Arguments of the Beam runner: what is added to an environment's own, and what is refused."""

import argparse
import contextlib
import importlib
import io
from collections.abc import Sequence

# Not DirectRunner, Beam's default, which first tries to download another runner.
LOCAL = "FnApiRunner"
DATAFLOW = "DataflowRunner"
# Runners that work in this process, unless they are asked for several.
_IN_PROCESS = (LOCAL, "DirectRunner", "BundleBasedDirectRunner")
# Runners whose job server has options that Beam's Python part does not know.
_JOB_SERVER = ("PortableRunner", "FlinkRunner", "SparkRunner", "PrismRunner")
# TFDV can be imported only where TFX was before it. Workers import plugins before all else.
_PLUGIN = "tfx"
# Where no image is named, TFX packs itself for each node, for workers to install; sigline's workers
# have it.
_IMAGE = "sdk_container_image"
# A list of the libraries here, the one file that would be handed to workers through a folder that
# the job server and all executors must share.
_NO_LIST = "disable_logging_submission_environment"
_DATAFLOW_NEEDS = ("project", "region", "temp_location", _IMAGE)


def complete(beam_args: Sequence[str]) -> tuple[str, ...]:
    """Returns an environment's arguments with the runner, and with what it and its workers need.

    Raises:
        ValueError: If the runner could not tell its processes what to import.
    """
    arguments = tuple(beam_args)
    if not any(argument.split("=")[0] == "--runner" for argument in arguments):
        arguments = (f"--runner={LOCAL}", *arguments)
    name, parsed = runner(arguments), _read(arguments)
    if name != DATAFLOW and not parsed.image:
        arguments += (f"--{_IMAGE}=none",)
    if is_in_process(arguments):
        return arguments
    if name == LOCAL:
        raise ValueError(
            "beam_args must name --runner=DirectRunner and --allow_unsafe_triggers for several "
            f"processes: {LOCAL} does not tell them to import TFX, which TFDV needs. "
            f"Received: beam_args={list(beam_args)}"
        )
    if _PLUGIN not in (parsed.beam_plugins or ()):
        arguments += (f"--beam_plugins={_PLUGIN}",)
    if name in _JOB_SERVER and _NO_LIST not in ",".join(parsed.experiments or ()).split(","):
        arguments += (f"--experiments={_NO_LIST}",)
    return arguments


def runner(arguments: Sequence[str]) -> str:
    """Returns the name of the runner, without its module, which Beam takes in several forms."""
    name = _read(arguments).runner.rpartition(".")[2]
    for known in (*_IN_PROCESS, *_JOB_SERVER, DATAFLOW):
        if name.lower() in (known.lower(), known.lower().removesuffix("runner")):
            return known
    return name


def is_in_process(arguments: Sequence[str]) -> bool:
    """Returns whether the transforms run in the process that starts them."""
    several = _read(arguments).direct_running_mode == "multi_processing"
    return runner(arguments) in _IN_PROCESS and not several


def check(arguments: Sequence[str]) -> None:
    """Raises if Beam would not know an argument, which it passes over in silence.

    Raises:
        ValueError: If one is unknown, wrong or missing.
    """
    name, known, unknown = runner(arguments), *_options(arguments)
    if unknown and name not in _JOB_SERVER:
        raise ValueError(
            f"beam_args must be arguments that {name} knows. "
            f"Received: {', '.join('--' + item for item in unknown)}"
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


def _options(arguments: Sequence[str]) -> tuple[dict, list[str]]:
    """Returns Beam's options, and the names of those that it does not know."""
    from apache_beam.options.pipeline_options import PipelineOptions

    module = _read(arguments).runner.rpartition(".")[0]
    errors = io.StringIO()
    try:
        if module:
            # Beam knows the options of a module once it is imported.
            importlib.import_module(module)
        options = PipelineOptions(list(arguments))
        with contextlib.redirect_stderr(errors):
            known = options.get_all_options()
            every = options.get_all_options(retain_unknown_options=True)
    except ImportError as error:
        raise ValueError(
            f"--runner must be one that can be imported. Received: {module}: {error}"
        ) from None
    except SystemExit:
        # Beam's parser exits on an error, after it has written the reason.
        reason = errors.getvalue().strip().rpartition("error: ")[2]
        raise _wrong(arguments, reason) from None
    return known, sorted(set(every) - set(known))


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--runner", default=LOCAL)
    parser.add_argument("--direct_running_mode", default="")
    parser.add_argument("--beam_plugin", "--beam_plugins", dest="beam_plugins", action="append")
    parser.add_argument("--experiment", "--experiments", dest="experiments", action="append")
    images = (f"--{_IMAGE}", "--worker_harness_container_image")
    parser.add_argument(*images, dest="image", default="")
    try:
        return parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError as error:
        raise _wrong(arguments, str(error)) from None


def _wrong(arguments: Sequence[str], reason: str) -> ValueError:
    return ValueError(
        "beam_args must be arguments as Beam takes them, such as --direct_num_workers=2: "
        f"{reason}. Received: beam_args={list(arguments)}"
    )
