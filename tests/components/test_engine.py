"""The same transforms on a cluster: a Dask scheduler and workers in processes of their own."""

import os
import signal
import threading

import apache_beam as beam
import planted_faults
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from sigline.components.ingest import component, transforms

pytestmark = [pytest.mark.engine, pytest.mark.slow]

_CONFIG = '{"shard_records": 10, "duplicates": {"keep": "best"}}'


def _ingest(source, output, runner, options=()):
    for name in ("examples", "report"):
        (output / name).mkdir(parents=True)
    with beam.Pipeline(runner=runner, options=PipelineOptions(list(options))) as pipeline:
        _ = pipeline | transforms.Ingest(
            str(source),
            str(output / "examples"),
            str(output / "report"),
            component.config_from_json(_CONFIG),
        )
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and not path.name.endswith("_stats.json")
    }


def test_cluster_writes_the_same_also_when_a_worker_is_killed(tmp_path):
    from apache_beam.runners.dask.dask_runner import DaskRunner
    from dask.distributed import Client, LocalCluster

    source = tmp_path / "table"
    planted_faults.write_table(source)
    expected = _ingest(source, tmp_path / "one process", "FnApiRunner")
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        workers = client.run(os.getpid)
        killed = threading.Timer(3, os.kill, (next(iter(workers.values())), signal.SIGKILL))
        killed.start()
        found = _ingest(
            source,
            tmp_path / "cluster",
            DaskRunner(),
            [f"--dask_client_address={cluster.scheduler_address}"],
        )
        killed.join()
        # The cluster has started another in its place, or has not yet.
        assert client.run(os.getpid) != workers
    assert found == expected
