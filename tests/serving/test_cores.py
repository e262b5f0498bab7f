import os
import subprocess
import sys
import threading

import pytest
import small_servers

from sigline.serving.client import Client
from sigline.serving.server import cores
from sigline.serving.server.batching import Batcher, BatchingConfig

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept on a core here"
)


@pytest.fixture
def every():
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core only")
    yield before
    os.sched_setaffinity(0, before)


def _in_a_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(10)
    return found[0]


def test_threads_that_are_started_meanwhile_and_by_them_stay_on_one_core(every):
    with cores.pinned_to_one() as core:
        begun = _in_a_thread(lambda: _in_a_thread(lambda: os.sched_getaffinity(0)))
    assert begun == {core}
    assert core in every
    assert os.sched_getaffinity(0) == every
    with cores.pinned_to_one() as again:
        assert again == core


def test_cores_are_given_back_after_a_failure(every):
    with pytest.raises(ValueError, match="taken"), cores.pinned_to_one():
        raise ValueError("taken")
    assert os.sched_getaffinity(0) == every


def test_single_core_is_left_alone(every):
    os.sched_setaffinity(0, {min(every)})
    with cores.pinned_to_one() as core:
        assert core is None
        assert os.sched_getaffinity(0) == {min(every)}


def test_models_are_computed_on_all_cores_whoever_loads_them(every):
    used, config = [], BatchingConfig()

    def load():
        with cores.pinned_to_one():
            batcher = Batcher(lambda signature, inputs: {}, config)
            threads = [x for x in threading.enumerate() if x.name.startswith("batcher")]
            used.extend(os.sched_getaffinity(x.native_id) for x in threads)
            batcher.close()
            return os.sched_getaffinity(0)

    assert len(_in_a_thread(load)) == 1
    assert used == [every] * len(every)


def test_as_many_batches_at_a_time_as_cores_may_be_used(every):
    assert BatchingConfig().num_batch_threads == len(every)
    os.sched_setaffinity(0, {min(every)})
    assert BatchingConfig().num_batch_threads == cores.count() == 1


@pytest.mark.parametrize("one_core", [True, False])
def test_requests_are_answered_on_one_core_and_computed_on_all(every, tmp_path, one_core):
    small_servers.write_version(tmp_path, 1)
    before = set(threading.enumerate())
    with small_servers.running(tmp_path, one_core=one_core) as server:
        client = Client(server.address)
        client.embed_texts(["1"])
        client.close()
        used = {
            thread.name: os.sched_getaffinity(thread.native_id)
            for thread in set(threading.enumerate()) - before
            if thread.native_id is not None
        }
    answering = [cores for name, cores in used.items() if name.startswith("request")]
    assert answering
    assert all(len(cores) == (1 if one_core else len(every)) for cores in answering)
    computing = [cores for name, cores in used.items() if name.startswith("batcher")]
    assert computing == [every] * len(every)


_COUNT = """
import os, sys
from sigline.serving.server import engine

def threads_more(**options):
    before = len(os.listdir("/proc/self/task"))
    loaded.append(engine.LoadedVersion(sys.argv[1], 1, **options))
    return len(os.listdir("/proc/self/task")) - before

loaded = [engine.LoadedVersion(sys.argv[1], 1)]
counts = [threads_more(intra_op_parallelism=n) for n in (1, 32, 0)]
counts.append(threads_more())
engine._SMALL_MODEL_BYTES = 0
counts.append(threads_more())
for one in loaded:
    one.close()
print(*counts)
"""


def test_each_version_has_as_many_threads_for_an_operation_as_it_is_to_have(every, tmp_path):
    small_servers.write_version(tmp_path, 1)
    # In a process that has used TensorFlow before they would share those that there are.
    command = [sys.executable, "-c", _COUNT, str(tmp_path / "1")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    one, many, each, of_small, of_large = map(int, answer.stdout.split())
    assert many - one >= 31
    assert each - one >= len(every) - 1
    assert of_small == one
    assert of_large == each


def test_server_says_how_many_threads_share_an_operation(tmp_path):
    small_servers.write_version(tmp_path, 1)
    command = [sys.executable, "-m", "sigline.cli", "serve", "--base-path", str(tmp_path)]
    command += ["--port", "0", "--no-rest", "--intra-op-parallelism"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    servers = [subprocess.Popen([*command, str(n)], **pipes) for n in (1, 32)]
    try:
        for server in servers:
            address = server.stdout.readline().split()[-1]
            client = Client(address)
            assert client.embed_texts(["3"]).tolist() == [[1, 3]]
            client.close()
        one, many = (len(os.listdir(f"/proc/{x.pid}/task")) for x in servers)
    finally:
        for server in servers:
            server.terminate()
            server.wait(60)
    assert many - one > 16
    assert [server.returncode for server in servers] == [0, 0]
