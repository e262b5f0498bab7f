"""Stands in for the program that starts workers in Beam's images, which is not on PyPI.

A pool of workers runs it for each worker, as Flink, Spark and Dataflow do; it asks the runner for
the pipeline's options and becomes Beam's worker. Files that the pipeline brings along it does not
fetch, and so refuses.
"""

import argparse
import json
import os
import sys

import grpc
from apache_beam.portability.api import (
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format


def _endpoint(url: str) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))


def main() -> None:
    """Replaces this process by the worker."""
    parser = argparse.ArgumentParser()
    for name in ("id", "logging_endpoint", "artifact_endpoint", "provision_endpoint"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--control_endpoint", default="")
    given = parser.parse_args()
    with grpc.insecure_channel(given.provision_endpoint) as channel:
        asked = grpc.intercept_channel(channel, _Named(given.id))
        info = (
            beam_provision_api_pb2_grpc.ProvisionServiceStub(asked)
            .GetProvisionInfo(beam_provision_api_pb2.GetProvisionInfoRequest())
            .info
        )
    # Nothing for workers to fetch or to install.
    assert not info.dependencies, info.dependencies
    variables = {
        "WORKER_ID": given.id,
        "PIPELINE_OPTIONS": json.dumps(json_format.MessageToDict(info.pipeline_options)),
        "LOGGING_API_SERVICE_DESCRIPTOR": _endpoint(
            info.logging_endpoint.url or given.logging_endpoint
        ),
        "CONTROL_API_SERVICE_DESCRIPTOR": _endpoint(
            info.control_endpoint.url or given.control_endpoint
        ),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    command = [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"]
    os.execve(sys.executable, command, os.environ | variables)


class _Named(grpc.UnaryUnaryClientInterceptor):
    """Says which worker asks."""

    def __init__(self, worker: str):
        self._worker = worker

    def intercept_unary_unary(self, continuation, client_call_details, request):
        named = client_call_details._replace(metadata=[("worker_id", self._worker)])
        return continuation(named, request)


if __name__ == "__main__":
    main()
