"""Fetching from a server of this machine, which misbehaves in many ways."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import http.server
import io
import json
import socket
import tarfile
import threading
import time
from urllib.parse import unquote

import apache_beam as beam
import numpy as np
import pytest
from PIL import Image
from urllib3.util import connection as sockets

from sigline.components.fetch import fetcher, robots
from sigline.components.fetch import transforms as fetch_transforms
from sigline.components.fetch.fetcher import FetchConfig, Fetcher
from sigline.components.ingest import inventory, readers, rules, sources, transforms
from sigline.components.ingest.options import IngestConfig
from sigline.components.shared.files import BeamFiles

LOCAL = FetchConfig(
    allowed_networks=("127.0.0.1/32",), timeout_s=0.5, deadline_s=2.0, backoff_s=0.01, retries=1
)


# Name of the first part of `pairs.jsonl`.
PART = "pairs-375225477246"


def _png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            server.agents.add(self.headers["User-Agent"])
        name, _, argument = self.path[1:].partition("/")
        with contextlib.suppress(ConnectionError):
            getattr(self, f"_{name}")(argument)

    def _send(self, content, status=200, **headers):
        self.send_response(status)
        for key, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _ok(self, argument):
        self._send(_png(int(argument.split(".")[0])))

    def _wait(self, argument):
        server = self.server
        with server.lock:
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(0.1)
        # Before the answer: who has it may ask again before this thread goes on.
        with server.lock:
            server.now -= 1
        self._ok(argument)

    def _status(self, argument):
        self._send(b"no", int(argument))

    def _once(self, argument):
        first = self.server.asked[self.path] == 1
        self._send(b"later", 503, Retry_After="0") if first else self._ok(argument)

    def _later(self, argument):
        self._send(b"later", 503) if not self.server.healed else self._ok(argument)

    def _silent(self, _):
        time.sleep(1.5)

    def _drip(self, argument):
        # Each byte comes in time; all of them never would.
        start = b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n" + (b"\r\n" if argument else b"")
        self.wfile.write(start)
        for _ in range(60):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def _huge(self, _):
        self._send(b"", Content_Length=str(10**12))

    def _endless(self, _):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(2**16))

    def _cut(self, _):
        self._send(b"half", Content_Length="1000")

    def _empty(self, _):
        self._send(b"")

    def _packed(self, _):
        self._send(b"\x1f\x8b", Content_Encoding="gzip")

    def _noise(self, _):
        self.wfile.write(b"\x00\xff" * 100)

    def _robots(self, argument):
        self._send(_png(0), X_Robots_Tag=argument.replace("_", " "))

    def _to(self, argument):
        self._send(b"", 302, Location=argument)

    def _moved(self, argument):
        # Servers send addresses as their file systems have them, which `send_header` refuses.
        location = bytes.fromhex(argument)
        self.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: " + location + b"\r\n\r\n")

    def _named(self, argument):
        self._ok(unquote(argument).rpartition(" ")[2])

    def _astray(self, _):
        self._send(b"", 302, Location="http://[x")

    def _loop(self, _):
        self._send(b"", 302, Location=self.path)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as found:
        found.lock = threading.Lock()
        found.asked = collections.Counter()
        found.agents = set()
        found.now = found.most = 0
        found.healed = False
        found.url = f"http://127.0.0.1:{found.server_port}"
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_image_is_fetched_as_it_is(server):
    found = Fetcher(LOCAL).fetch(f"{server.url}/ok/7.png")
    assert (found.status, found.content) == (fetcher.SUCCESS, _png(7))
    assert server.agents == {LOCAL.user_agent}


@pytest.mark.parametrize(
    ("path", "status", "requests"),
    [
        ("/status/404", "http_404", 1),
        ("/status/410", "http_410", 1),
        ("/status/429", "http_429", 2),
        ("/status/500", "http_500", 2),
        ("/silent", fetcher.TIMED_OUT, 2),
        ("/drip/body", fetcher.TIMED_OUT, 2),
        ("/drip", fetcher.TIMED_OUT, 2),
        ("/huge", fetcher.TOO_MANY_BYTES, 1),
        ("/endless", fetcher.TOO_MANY_BYTES, 1),
        ("/cut", fetcher.INCOMPLETE, 2),
        ("/empty", fetcher.EMPTY, 1),
        ("/packed", fetcher.COMPRESSED, 1),
        ("/noise", fetcher.INCOMPLETE, 2),
        ("/loop", fetcher.TOO_MANY_REDIRECTS, 6),
    ],
)
def test_answer_that_is_no_image_has_a_status(server, path, status, requests):
    found = Fetcher(LOCAL).fetch(server.url + path)
    assert found.status == status
    assert found.detail or status.startswith("http_")
    assert found.content == b""
    assert server.asked[path] == requests


def test_what_may_pass_is_tried_again(server):
    found = Fetcher(LOCAL).fetch(f"{server.url}/once/3.png")
    assert (found.status, server.asked["/once/3.png"]) == (fetcher.SUCCESS, 2)


def test_redirections_are_followed(server):
    found = Fetcher(LOCAL).fetch(f"{server.url}/to//ok/5.png")
    assert found.content == _png(5)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "http://",
        "http://[::1",
        "http://a:b:c/",
        "http:///x",
        "no url",
        "",
        "http://example.org/" + 10_000 * "a",
    ],
)
def test_url_that_is_none_is_refused(url):
    assert Fetcher(LOCAL).fetch(url).status == fetcher.INVALID_URL


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.2",
        "localhost",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::1]",
        "[fe80::1]",
        "[fec0::1]",
        "192.88.99.1",
        "168.63.129.16",
        "192.0.0.192",
        "192.80.8.124",
        "100.100.100.200",
        "169.254.170.2",
        "169.254.42.42",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[::169.254.169.254]",
        "[::ffff:169.254.169.254]",
        "[fe80::a9fe:a9fe]",
        "[2001::1]",
        "[fc00::1]",
        "2130706434",
        "0x7f.2",
    ],
)
def test_private_addresses_are_not_asked(server, host):
    config = FetchConfig(retries=0, timeout_s=0.5)
    found = Fetcher(config).fetch(f"http://{host}:{server.server_port}/ok/1.png")
    assert found.status == fetcher.PRIVATE_ADDRESS
    assert not server.asked


def test_redirection_to_a_private_address_is_not_followed(server):
    found = Fetcher(LOCAL).fetch(f"{server.url}/to/http://127.0.0.2:{server.server_port}/ok/1.png")
    assert found.status == fetcher.PRIVATE_ADDRESS
    assert Fetcher(LOCAL).fetch(f"{server.url}/to/file:///etc/passwd").status == fetcher.INVALID_URL


def test_name_is_resolved_once(server, monkeypatch):
    """A name that leads to a public address when it is checked must not lead elsewhere after."""
    answers = iter([[(0, 0, 0, "", ("127.0.0.1", 0))], [(0, 0, 0, "", ("127.0.0.2", 0))]])
    resolve = socket.getaddrinfo

    def _resolve(host, *arguments, **options):
        return next(answers) if host == "images.example" else resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", _resolve)
    url = f"http://images.example:{server.server_port}/ok/1.png"
    assert Fetcher(LOCAL).fetch(url).content == _png(1)
    assert Fetcher(LOCAL).fetch(url).status == fetcher.PRIVATE_ADDRESS


def test_names_that_lead_nowhere_and_closed_ports_have_a_status():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert Fetcher(LOCAL).fetch(f"http://127.0.0.1:{port}/").status == fetcher.NO_CONNECTION
    assert Fetcher(LOCAL).fetch("http://name.invalid/").status == fetcher.NO_CONNECTION


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (["all"], None),
        (["noai"], "noai"),
        (["nofollow, NoIndex"], "noindex"),
        (["otherbot: noai"], None),
        (["otherbot: noai", "noimageai"], "noimageai"),
        (["otherbot: nofollow, noai"], None),
        (["sigline: noai"], "noai"),
        (["SIGLINE: nofollow, noimageindex"], "noimageindex"),
        (["max-image-preview: large, noai"], "noai"),
        (["otherbot: max-snippet: 3, noai"], None),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["unavailable_after: Saturday, 25-Jun-10 15:00:00 PST, noai"], "noai"),
        (["none"], "none"),
        (["otherbot: none"], None),
    ],
)
def test_robots_directives(values, expected):
    assert robots.opted_out(values, "sigline", FetchConfig().opt_outs) == expected


def test_opted_out_images_are_not_taken(server):
    assert Fetcher(LOCAL).fetch(f"{server.url}/robots/noai").status == fetcher.OPTED_OUT
    assert Fetcher(LOCAL).fetch(f"{server.url}/robots/otherbot:_noai").status == fetcher.SUCCESS


def test_host_is_asked_by_few_at_a_time_and_not_too_often(server):
    config = FetchConfig(allowed_networks=("127.0.0.1/32",), per_host=2, host_interval_s=0.05)
    client = Fetcher(config)
    begin = time.monotonic()
    urls = [f"{server.url}/wait/{i}.png" for i in range(8)]
    threads = [threading.Thread(target=client.fetch, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked.total() == 8
    assert server.most <= 2
    assert time.monotonic() - begin >= 7 * 0.05


def test_waiting_for_others_takes_no_time_of_an_attempt(server):
    config = dataclasses.replace(LOCAL, per_host=1, host_interval_s=0.1, deadline_s=0.5, retries=0)
    client = Fetcher(config)
    urls = [f"{server.url}/ok/{i}.png" for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(client.fetch, urls))
    assert {item.status for item in found} == {fetcher.SUCCESS}
    # What nobody waits for any more is forgotten.
    time.sleep(0.2)
    client.fetch(urls[0])
    assert len(client._hosts) <= 1


def test_connections_that_are_made_late_are_cut_too(server, monkeypatch):
    connect = sockets.create_connection

    def _slow(address, timeout):
        time.sleep(0.4)
        return connect(address, timeout)

    monkeypatch.setattr(sockets, "create_connection", _slow)
    config = dataclasses.replace(LOCAL, deadline_s=0.3, retries=0)
    assert Fetcher(config).fetch(f"{server.url}/drip").status == fetcher.TIMED_OUT


def test_redirection_that_is_no_url_is_final(server):
    found = Fetcher(LOCAL).fetch(f"{server.url}/astray")
    assert (found.status, server.asked.total()) == (fetcher.INVALID_URL, 1)


def _table(folder, rows):
    folder.mkdir()
    lines = [json.dumps(row) for row in rows]
    (folder / "pairs.jsonl").write_text("".join(line + "\n" for line in lines))


def _fetch(folder, output, config=LOCAL, **options):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | fetch_transforms.Fetch(
            str(folder), str(output), config, shard_rows=4, threads=4, **options
        )
    return json.loads((output / fetch_transforms.COUNTS_FILE).read_text())


def _rows(server):
    paths = [*(f"/ok/{i}.png" for i in range(5)), "/status/404", "/later/9.png", "/robots/noai"]
    rows = [
        {"url": server.url + path, "caption": f"picture {i}", "license": "free", "key": f"k/{i}.x"}
        for i, path in enumerate(paths)
    ]
    return [*rows, {"caption": "no image"}, {"url": "images/a.png", "caption": "a path"}]


def test_every_row_ends_in_the_report_and_images_in_shards(server, tmp_path):
    _table(tmp_path / "tables", _rows(server))
    counts = _fetch(tmp_path / "tables", tmp_path / "fetched")
    assert counts == {
        "input": 10,
        "by_status": {"http_404": 1, "http_503": 1, "no_url": 2, "opted_out": 1, "success": 5},
        "tables_without_urls": [],
    }
    names = sorted(path.name for path in (tmp_path / "fetched").iterdir())
    shards = [f"{PART}{i:05d}" for i in range(3)]
    endings = (".jsonl", ".tar", "_stats.json")
    assert names == sorted([*(s + e for s in shards for e in endings), "counts.json"])
    lines = [
        json.loads(line)
        for shard in shards
        for line in (tmp_path / "fetched" / f"{shard}.jsonl").read_text().splitlines()
    ]
    assert [line["status"] for line in lines] == [
        *["success"] * 5,
        *["http_404", "http_503", "opted_out", "no_url", "no_url"],
    ]
    stats = json.loads((tmp_path / "fetched" / f"{PART}00001_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (4, 1, 3)
    with tarfile.open(tmp_path / "fetched" / f"{PART}00000.tar") as archive:
        assert archive.getnames()[:2] == [f"{PART}00000-000000.png", f"{PART}00000-000000.json"]
        about = json.load(archive.extractfile(f"{PART}00000-000002.json"))
        assert archive.extractfile(f"{PART}00000-000002.png").read() == _png(2)
    assert about == {
        "captions": {"und": ["picture 2"]},
        "license": "free",
        "source_key": "k/2.x",
        "url": f"{server.url}/ok/2.png",
    }


def test_ingest_reads_what_was_fetched_and_rejects_what_was_not(server, tmp_path):
    _table(tmp_path / "tables", _rows(server))
    _fetch(tmp_path / "tables", tmp_path / "fetched")
    pairs = [
        rules.examine(pair, IngestConfig())
        for name, part in inventory.take(
            str(tmp_path / "fetched"), BeamFiles(), sources.SourceConfig()
        ).parts
        for pair in readers.READERS[name].scan(part, BeamFiles(), sources.SourceConfig(), 10_000)
        if isinstance(pair, sources.RawPair)
    ]
    assert [row.text for row, _ in pairs] == [(f"picture {i}",) for i in range(5)]
    for name in ("examples", "report"):
        (tmp_path / name).mkdir()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        folders = str(tmp_path / "examples"), str(tmp_path / "report")
        _ = pipeline | transforms.Ingest(str(tmp_path / "tables"), *folders, IngestConfig())
    report = (tmp_path / "report" / "rejected" / "rejected-00000-of-00001-000.jsonl").read_text()
    assert "`sigline data fetch` fetches it first" in report


def test_finished_shards_are_not_fetched_again(server, tmp_path):
    _table(tmp_path / "tables", _rows(server))
    counts = _fetch(tmp_path / "tables", tmp_path / "fetched")
    before = {path: path.read_bytes() for path in (tmp_path / "fetched").glob("*.tar")}
    asked = server.asked.total()
    # As if it had been killed while the second shard was written.
    (tmp_path / "fetched" / f"{PART}00001_stats.json").unlink()
    assert _fetch(tmp_path / "tables", tmp_path / "fetched") == counts
    assert before == {path: path.read_bytes() for path in (tmp_path / "fetched").glob("*.tar")}
    # Asked for again: the four rows of that shard, one of them twice.
    assert server.asked.total() == asked + 5


def test_rows_that_failed_for_now_are_tried_again_if_asked_for(server, tmp_path):
    _table(tmp_path / "tables", _rows(server))
    _fetch(tmp_path / "tables", tmp_path / "fetched")
    server.healed = True
    asked = server.asked.total()
    counts = _fetch(tmp_path / "tables", tmp_path / "fetched", again=True)
    assert server.asked.total() == asked + 1
    assert counts["by_status"] == {"http_404": 1, "no_url": 2, "opted_out": 1, "success": 6}
    with tarfile.open(tmp_path / "fetched" / f"{PART}00001.tar") as archive:
        assert archive.extractfile(f"{PART}00001-000000.png").read() == _png(4)
        assert archive.extractfile(f"{PART}00001-000002.png").read() == _png(9)


def test_settings_that_take_nothing_else_fetch_nothing_again(server, tmp_path):
    _table(tmp_path / "tables", _rows(server)[:4])
    _fetch(tmp_path / "tables", tmp_path / "fetched")
    asked = server.asked.total()
    slower = dataclasses.replace(LOCAL, timeout_s=1.0, retries=0, host_interval_s=0.1)
    _fetch(tmp_path / "tables", tmp_path / "fetched", config=slower)
    assert server.asked.total() == asked
    smaller = dataclasses.replace(LOCAL, max_bytes=10)
    counts = _fetch(tmp_path / "tables", tmp_path / "fetched", config=smaller)
    assert counts["by_status"] == {"too_many_bytes": 4}


def test_other_tables_fetch_nothing_again_and_shards_without_rows_go(server, tmp_path):
    _table(tmp_path / "tables", _rows(server)[:4])
    _fetch(tmp_path / "tables", tmp_path / "fetched")
    asked = server.asked.total()
    (tmp_path / "fetched" / "notes.txt").write_text("mine")
    more = [{"url": f"{server.url}/ok/{i}.png", "caption": "more"} for i in range(20, 26)]
    first = tmp_path / "tables" / "another.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in more))
    assert _fetch(tmp_path / "tables", tmp_path / "fetched")["input"] == 10
    assert server.asked.total() == asked + 6
    first.write_text(json.dumps(more[0]) + "\n")
    assert _fetch(tmp_path / "tables", tmp_path / "fetched")["input"] == 5
    found = sorted(path.name for path in (tmp_path / "fetched").glob("*.tar"))
    assert len(found) == 2
    assert (tmp_path / "fetched" / "notes.txt").exists()


def test_output_below_the_tables_is_refused(server, tmp_path):
    _table(tmp_path / "tables", _rows(server)[:1])
    with pytest.raises(ValueError, match="must not lie in the input"):
        _fetch(tmp_path / "tables", tmp_path / "tables" / "fetched")


def test_rows_that_changed_are_fetched_again(server, tmp_path):
    _table(tmp_path / "tables", _rows(server)[:4])
    _fetch(tmp_path / "tables", tmp_path / "fetched")
    (tmp_path / "tables" / "pairs.jsonl").write_text(
        json.dumps({"url": f"{server.url}/ok/8.png", "caption": "another"}) + "\n"
    )
    assert _fetch(tmp_path / "tables", tmp_path / "fetched")["input"] == 1
    with tarfile.open(tmp_path / "fetched" / f"{PART}00000.tar") as archive:
        assert archive.extractfile(f"{PART}00000-000000.png").read() == _png(8)


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="tables of URLs"):
        fetch_transforms.Fetch(str(tmp_path), str(tmp_path / "out"), LOCAL)


@pytest.mark.parametrize(
    "values", [{"timeout_s": 0}, {"retries": -1}, {"allowed_networks": ("10.0.0.0/99",)}]
)
def test_wrong_settings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        FetchConfig(**values)


def test_files_of_like_names_and_counts_of_someone_else_stay(server, tmp_path):
    _table(tmp_path / "tables", _rows(server)[:1])
    output = tmp_path / "out"
    output.mkdir()
    # A time to the millisecond has as many digits as a shard's name.
    names = [f"photos-20231231235959123{end}" for end in (".tar", ".jsonl", "_stats.json")]
    for name in names:
        (output / name).write_text('{"key": "mine"}')
    _fetch(tmp_path / "tables", output)
    assert all((output / name).read_text() == '{"key": "mine"}' for name in names)
    (output / "counts.json").write_text('{"input": 3, "written": 3}')
    with pytest.raises(ValueError, match=r"counts\.json is in the way: sigline data fetch did not"):
        _fetch(tmp_path / "tables", output)


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/named/b\u00fccher \u00df 5.png".encode(), "/named/b%C3%BCcher%20%C3%9F%205.png"),
        ("/named/caf\u00e9 5.png".encode("latin-1"), "/named/caf%C3%A9%205.png"),
        (b"/named/caf%C3%A9%205.png", "/named/caf%C3%A9%205.png"),
        (b"  /named/a b 5.png  ", "/named/a%20b%205.png"),
    ],
    ids=ascii,
)
def test_redirection_to_a_raw_address_is_followed(server, location, asked):
    found = Fetcher(LOCAL).fetch(f"{server.url}/moved/{location.hex()}")
    assert (found.status, found.content) == (fetcher.SUCCESS, _png(5))
    assert server.asked[asked] == 1


def test_names_of_hosts_that_are_not_ascii_are_resolved_and_checked(server, monkeypatch):
    """`xn--bcher-kva` is the registered form of `b\u00fccher`."""
    resolve, names = socket.getaddrinfo, []

    def _resolve(host, *arguments, **options):
        names.extend(host for _ in range("example" in host))
        address = "127.0.0.2" if "geheim" in host else "127.0.0.1"
        return resolve(address, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", _resolve)
    port = server.server_port
    assert Fetcher(LOCAL).fetch(f"http://b\u00fccher.example:{port}/ok/5.png").content == _png(5)
    target = f"HTTP://b\u00fccher-geheim.example:{port}/ok/5.png".encode()
    found = Fetcher(LOCAL).fetch(f"http://B\u00dcCHER.example:{port}/moved/{target.hex()}")
    assert found.status == fetcher.PRIVATE_ADDRESS
    assert names == ["xn--bcher-kva.example"] * 2 + ["xn--bcher-geheim-dlb.example"]
