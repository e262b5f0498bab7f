"""`sigline serve`: serves models until SIGTERM or SIGINT."""

import argparse
import os
import signal
import threading
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.commands.dataclass_options import add_options, from_arguments
from sigline.schemas import progress, versions

_SERVER, _LIMITS = (
    "sigline.serving.server.server.ServerConfig",
    "sigline.serving.server.requests.Limits",
)
_BATCHING, _TLS = (
    "sigline.serving.server.batching.BatchingConfig",
    "sigline.serving.server.access.Tls",
)
_PORT, _POSITIVE = {int: checks.port}, {int: checks.positive}


def add_parser(commands) -> None:
    """Adds the command to those of the command line."""
    parser = commands.add_parser(
        "serve",
        help="serve a folder of versions over gRPC and REST, as TF Serving does",
        description="New versions are taken up while requests go on; SIGTERM ends it in order.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--base-path", type=Path, help="folder of version folders")
    what.add_argument(
        "--model-config-file", type=Path, help="models, versions and labels, as TF Serving's"
    )
    parser.add_argument("--model-name", default="sigline", help="name of the model in requests")
    add_options(parser, _SERVER, ("host", "port"), readers=_PORT)
    rest = parser.add_mutually_exclusive_group()
    rest.add_argument(
        "--rest-port",
        type=checks.port,
        default=8501,
        help="port of REST, probes and metrics; 0 for a free one",
    )
    rest.add_argument("--no-rest", action="store_true", help="gRPC alone")
    add_options(parser, _SERVER, ("health_port",), readers=_PORT)
    add_options(parser, _SERVER, ("poll_seconds",))
    limits = parser.add_argument_group("limits")
    add_options(limits, _LIMITS, readers=_POSITIVE)
    batching = parser.add_argument_group("batching")
    add_options(batching, _BATCHING, readers=_POSITIVE)
    add_options(batching, _SERVER, ("one_core", "intra_op_parallelism"))
    access = parser.add_argument_group("access")
    add_options(access, _TLS, prefix="tls_")
    add_options(
        access,
        _SERVER,
        ("api_key_file", "verify_key", "allow_origins", "allow_hosts", "allow_reload"),
        allow_origins={"option": "--allow-origin", "metavar": "ORIGIN"},
        allow_hosts={"option": "--allow-host", "metavar": "NAME"},
    )
    end = parser.add_argument_group("logs and end")
    add_options(end, _SERVER, ("log_requests", "lame_duck_seconds", "grace_seconds"))
    end.add_argument(
        "--until-stdin-closes", action="store_true", help="stop when standard input ends"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    tls_files = arguments.tls_certificate, arguments.tls_key
    if any(tls_files) != all(tls_files) or (arguments.tls_client_ca and not all(tls_files)):
        raise ValueError(
            "--tls-certificate and --tls-key must be given together, with --tls-client-ca too. "
            f"Received: --tls-certificate {tls_files[0]}, --tls-key {tls_files[1]}, "
            f"--tls-client-ca {arguments.tls_client_ca}"
        )
    _check(arguments)
    quiet.import_tensorflow()
    from sigline.serving.server import access, connections, model_config, server
    from sigline.serving.server.batching import BatchingConfig
    from sigline.serving.server.requests import Limits

    if arguments.model_config_file is not None:
        models = model_config.load(arguments.model_config_file)
    else:
        models = server.one_model(arguments.base_path, arguments.model_name)
    config = from_arguments(
        server.ServerConfig,
        arguments,
        models=models,
        rest_port=None if arguments.no_rest else arguments.rest_port,
        limits=from_arguments(Limits, arguments),
        batching=from_arguments(BatchingConfig, arguments),
        tls=from_arguments(access.Tls, arguments, prefix="tls_") if all(tls_files) else None,
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if arguments.until_stdin_closes:
        threading.Thread(target=_set_when_stdin_closes, args=(stopped,), daemon=True).start()
    connections.raise_descriptor_limit()
    server.log_to_stderr()
    with progress.part("load the models"):
        running = server.ModelServer(config)
        running.start()
    if running.rest_port is not None:
        print(f"REST on {config.host}:{running.rest_port}")
    served = running.models.served()
    for model in models:
        numbers = ", ".join(str(item.version) for item in served[model.name])
        if numbers:
            print(f"Serving version {numbers} of {model.name} on {running.address}", flush=True)
    for reason in running.models.not_served().values():
        print(f"Not served yet: {reason}", flush=True)
    stopped.wait()
    running.stop()
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Checks the arguments as far as possible without importing TensorFlow."""
    from sigline.serving.server import access, model_config

    threads = arguments.intra_op_parallelism
    if threads is not None and threads < 0:
        raise ValueError(
            f"intra_op_parallelism must be 0, for one thread a core, or more. Received: {threads}"
        )
    checks.check_file(arguments.model_config_file, "--model-config-file")
    for name in ("tls_certificate", "tls_key", "tls_client_ca", "api_key_file", "verify_key"):
        checks.check_file(getattr(arguments, name), f"--{name.replace('_', '-')}")
    if arguments.api_key_file is not None:
        access.read_keys(arguments.api_key_file)
    if arguments.model_config_file is not None:
        model_config.load(arguments.model_config_file)
    elif not versions.directories(arguments.base_path):
        raise ValueError(
            "base_path must hold a version directory such as 1/saved_model.pb. "
            f"Received: base_path={arguments.base_path}"
        )


def _set_when_stdin_closes(stopped: threading.Event) -> None:
    # Reads the descriptor: a thread that waits in `sys.stdin` would block the interpreter's exit.
    while os.read(0, 1024):
        continue
    stopped.set()
