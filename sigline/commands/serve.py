"""`sigline serve`: serves models until it is told to stop."""

import argparse
import os
import signal
import threading
from pathlib import Path

from sigline import arguments as checks
from sigline import quiet
from sigline.schemas import progress, versions


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
    parser.add_argument("--model-name", default="sigline", help="what requests call it")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines")
    parser.add_argument(
        "--port", type=checks.port, default=8500, help="of gRPC; 0 takes a free one"
    )
    rest = parser.add_mutually_exclusive_group()
    rest.add_argument(
        "--rest-port",
        type=checks.port,
        default=8501,
        help="of REST, probes and figures; 0 for a free one",
    )
    rest.add_argument("--no-rest", action="store_true", help="gRPC alone")
    parser.add_argument(
        "--health-port",
        type=checks.port,
        help="of /healthz and /readyz alone, over plain HTTP, for probes without a certificate",
    )
    parser.add_argument("--poll-seconds", type=float, default=1.0, help="between two looks")

    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-message-bytes", type=checks.positive, help="largest request; 16 MiB")
    limits.add_argument(
        "--max-buffered-bytes",
        type=checks.positive,
        help="REST bodies in memory, of all requests, decompressed; 16 of the largest",
    )
    limits.add_argument(
        "--max-items", type=checks.positive, help="most images or texts of a request; 1,024"
    )
    limits.add_argument("--max-text-bytes", type=checks.positive, help="longest text; 64 KiB")
    limits.add_argument("--max-requests", type=checks.positive, help="requests at a time; 256")
    limits.add_argument("--timeout-seconds", type=float, help="of requests without deadline; 30")

    batching = parser.add_argument_group("batching")
    batching.add_argument("--max-batch-size", type=checks.positive, help="most rows of a batch; 64")
    batching.add_argument("--batch-timeout-seconds", type=float, help="to wait for more rows; 0")
    batching.add_argument(
        "--max-enqueued-rows", type=checks.positive, help="that wait, by signature; 1,024"
    )
    batching.add_argument("--num-batch-threads", type=checks.positive, help="at a time; one a core")
    batching.add_argument(
        "--merge-images",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="merge requests of images too; yes",
    )
    batching.add_argument(
        "--one-core",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="receive and answer on one core, compute on all; yes",
    )
    batching.add_argument(
        "--intra-op-parallelism",
        type=int,
        help="most threads that share an operation, 0 for one a core; 1 below 32 MiB of weights, "
        "else 0",
    )

    access = parser.add_argument_group("access")
    access.add_argument("--tls-certificate", type=Path, help="PEM file, with those that signed it")
    access.add_argument("--tls-key", type=Path, help="PEM file of its private key")
    access.add_argument("--tls-client-ca", type=Path, help="who signs clients' certificates (mTLS)")
    access.add_argument("--api-key-file", type=Path, help="file with an API key a line")
    access.add_argument(
        "--verify-key", type=Path, help="PEM file of public keys; serve signed versions alone"
    )
    access.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of https://HOST ask over REST (CORS); repeat it, or * for all",
    )
    access.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="by which a server without keys may be asked over REST, besides addresses and names "
        "without a dot; repeat it",
    )
    access.add_argument(
        "--allow-reload", action="store_true", help="let clients say which folders are served"
    )

    end = parser.add_argument_group("logs and end")
    end.add_argument("--log-requests", action="store_true", help="log every request")
    end.add_argument(
        "--lame-duck-seconds", type=float, default=0.0, help="to go on after SIGTERM, not ready"
    )
    end.add_argument(
        "--grace-seconds", type=float, default=10.0, help="for requests in flight after that"
    )
    end.add_argument(
        "--until-stdin-closes", action="store_true", help="stop when standard input ends"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    tls_files = arguments.tls_certificate, arguments.tls_key
    if any(tls_files) != all(tls_files) or (arguments.tls_client_ca and not all(tls_files)):
        raise ValueError(
            "--tls-certificate and --tls-key must be given together, with --tls-client-ca too."
        )
    _check(arguments)
    quiet.import_tensorflow()
    from sigline.serving import access, connections, model_config, server
    from sigline.serving.batching import BatchingConfig
    from sigline.serving.requests import Limits

    if arguments.model_config_file is not None:
        models = model_config.load(arguments.model_config_file)
    else:
        models = server.one_model(arguments.base_path, arguments.model_name)
    config = server.ServerConfig(
        models=models,
        model_config_file=arguments.model_config_file,
        host=arguments.host,
        port=arguments.port,
        rest_port=None if arguments.no_rest else arguments.rest_port,
        limits=_given(Limits, arguments),
        batching=_given(BatchingConfig, arguments),
        one_core=arguments.one_core,
        intra_op_parallelism=arguments.intra_op_parallelism,
        poll_seconds=arguments.poll_seconds,
        tls=access.Tls(*tls_files, arguments.tls_client_ca) if all(tls_files) else None,
        api_key_file=arguments.api_key_file,
        allow_hosts=arguments.allow_host,
        health_port=arguments.health_port,
        verify_key=arguments.verify_key,
        allow_origins=arguments.allow_origin,
        allow_reload=arguments.allow_reload,
        log_requests=arguments.log_requests,
        lame_duck_seconds=arguments.lame_duck_seconds,
        grace_seconds=arguments.grace_seconds,
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if arguments.until_stdin_closes:
        threading.Thread(target=_set_when_stdin_closes, args=(stopped,), daemon=True).start()
    connections.raise_limit()
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
    """Refuses what is wrong with the arguments, as far as that can be told without TensorFlow."""
    from sigline.serving import access, model_config

    threads = arguments.intra_op_parallelism
    if threads is not None and threads < 0:
        raise ValueError(
            f"intra_op_parallelism must be 0, for one a core, or more. Received: {threads}"
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


def _given(kind: type, arguments: argparse.Namespace):
    """Returns a configuration of those of its fields that the command line names."""
    values = {name: getattr(arguments, name) for name in kind.__dataclass_fields__}
    return kind(**{name: value for name, value in values.items() if value is not None})


def _set_when_stdin_closes(stopped: threading.Event) -> None:
    # The bare descriptor: a thread that waits in `sys.stdin` would block the interpreter's end.
    while os.read(0, 1024):
        continue
    stopped.set()
