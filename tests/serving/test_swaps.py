"""Requests go on while versions come, go and are taken back."""

import threading
import time

import pytest
import small_servers

from sigline.components.publish import publishing
from sigline.serving.client import Client

CLIENTS, REQUESTS = 8, 10_000


@pytest.mark.slow
def test_no_request_fails_or_gets_a_wrong_version_over_swaps_and_a_rollback(tmp_path):
    base = tmp_path / "versions"
    small_servers.write_version(base, 1)
    asked, failures, answered = iter(range(REQUESTS)), [], {}
    lock = threading.Lock()

    def ask(server):
        client = Client(server.address, retries=0)
        while True:
            with lock:
                number = next(asked, None)
            if number is None:
                return
            begin = time.monotonic()
            try:
                answer = client.ask("embed_text", {"text": [str(number)]})
            except Exception as error:
                failures.append(repr(error))
                continue
            ((version, value),) = answer.outputs["embedding"].tolist()
            # What the answer says gave it did give it, and to whom it belongs.
            if (version, value) != (answer.version, number):
                failures.append(f"{number}: {version}, {value} from version {answer.version}")
            with lock:
                answered.setdefault(answer.version, []).append((begin, time.monotonic()))

    def serves(server, version):
        client, end = Client(server.address), time.monotonic() + 60
        while time.monotonic() < end:
            if client.ask("embed_text", {"text": ["0"]}).version == version:
                return time.monotonic()
        raise AssertionError(f"version {version} is not served")

    with small_servers.running(base, poll_seconds=0.05) as server:
        threads = [threading.Thread(target=ask, args=(server,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        taken = {1: time.monotonic()}
        for version in (2, 3, 4):
            small_servers.write_version(base, version)
            taken[version] = serves(server, version)
        publishing.rollback(base, to=3, reason="worse")
        back = serves(server, 3)
        for thread in threads:
            thread.join()
    assert failures == []
    assert sum(map(len, answered.values())) == REQUESTS
    # All four answered, the rolled back one no request that came after.
    assert set(answered) == {1, 2, 3, 4}
    assert max(begin for begin, _ in answered[4]) <= back
    assert max(begin for begin, _ in answered[1]) <= taken[2]
