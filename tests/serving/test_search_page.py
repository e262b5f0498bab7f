import asyncio
import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import threading

import aiohttp
import pytest
from aiohttp import web
from PIL import Image

from sigline.schemas.retrieval import Match
from sigline.serving.search_page import search_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Index:
    """Finds what it is told, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def by_text(self, text, *, top):
        self.asked.append(text)
        if text == "fail":
            raise RuntimeError("secret")
        return [
            Match(f"k{i}", "<b>source</b>", 1 - i / 10, i, (f"{text} <i>{i}</i>",))
            for i in range(top)
        ]

    def by_image(self, encoded, *, top):
        self.asked.append(encoded)
        if not encoded.startswith(b"\x89PNG"):
            raise ValueError("The image must be a JPEG or PNG that the model reads.")
        return [Match("found", "pictures", 0.5, 0, ("by picture",))]


def _jpeg(color):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "JPEG")
    return buffer.getvalue()


def _thumbnail(row):
    if row > 2:
        raise IndexError(row)
    return _jpeg((255, 0, 0))


@pytest.fixture
def index():
    return Index()


@contextlib.contextmanager
def _running(index, thumbnail, **options):
    """Yields the address of a page."""
    page = search_page.Page(index, thumbnail, "3 images", 3, frozenset({"127.0.0.1"}), **options)
    loop, started = asyncio.new_event_loop(), threading.Event()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def start():
        runner = web.AppRunner(search_page.application(page))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        started.set()
        return runner

    def run():
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(60)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def address(index):
    with _running(index, _thumbnail) as found:
        yield found


def _ask(address, *, method="POST", path="/search", headers=None, **fields):
    async def ask():
        form = aiohttp.FormData()
        for name, value in fields.items():
            form.add_field(name, value, **({"filename": "x"} if isinstance(value, bytes) else {}))
        body = {"data": form} if fields else {}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, address + path, headers=headers, **body) as response,
        ):
            return response.status, dict(response.headers), await response.read()

    return asyncio.run(ask())


def test_text_finds_matches_and_their_pictures(address, index):
    status, _, content = _ask(address, text=" ein rotes Quadrat ")
    found = json.loads(content)["matches"]
    assert status == 200
    assert index.asked == ["ein rotes Quadrat"]
    assert [x["thumbnail"] for x in found] == ["/thumbnail/0", "/thumbnail/1", "/thumbnail/2"]
    assert found[0]["score"] == 1


def test_index_without_pictures_shows_none(index):
    with _running(index, None) as address:
        found = json.loads(_ask(address, text="a star")[2])["matches"]
        assert [x["thumbnail"] for x in found] == [None] * 3
        assert _ask(address, method="GET", path="/thumbnail/0")[0] == 404


def test_picture_finds_matches(address, index):
    status, _, content = _ask(address, image=b"\x89PNG picture")
    assert status == 200
    assert json.loads(content)["matches"][0]["key"] == "found"
    assert index.asked == [b"\x89PNG picture"]


def test_thumbnails_are_served(address):
    status, headers, content = _ask(address, method="GET", path="/thumbnail/0")
    assert (status, headers["Content-Type"], content[:2]) == (200, "image/jpeg", b"\xff\xd8")
    for path in ("/thumbnail/3", "/thumbnail/7", "/thumbnail/../x", "/thumbnail/-1", "/etc"):
        assert _ask(address, method="GET", path=path)[0] == 404


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"text": "  "}, 400, "Type what the picture shows"),
        ({"image": b"nonsense"}, 400, "must be a JPEG or PNG"),
        ({"other": "x"}, 400, "fields text and image"),
        ({"text": "x" * 70_000}, 400, "64 KiB"),
        ({"text": b"\xff\xfe"}, 400, "UTF-8"),
        ({"image": b"\x89PNG" + bytes(17 * 2**20)}, 413, "16 MiB"),
        ({"text": "fail"}, 500, "reason is in the log"),
        ({}, 400, "a form with a text or an image"),
    ],
)
def test_bad_searches_are_told_what_is_wrong(address, fields, status, message):
    found, _, content = _ask(address, **fields)
    assert found == status
    assert message in json.loads(content)["error"]
    assert b"secret" not in content
    assert _ask(address, text="a star")[0] == 200


def test_page_is_not_read_under_another_name(address, index):
    port = address.rpartition(":")[2]
    status, _, _ = _ask(address, headers={"Host": f"evil.example:{port}"}, text="a star")
    assert status == 421
    assert not index.asked


def test_other_sites_may_not_ask(address, index):
    assert _ask(address, headers={"Origin": "https://evil.example"}, text="a star")[0] == 403
    assert _ask(address, headers={"Origin": "null"}, text="a star")[0] == 403
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site}
        assert _ask(address, method="GET", path="/thumbnail/0", headers=headers)[0] == 403
        # A link to the page may be followed.
        assert _ask(address, method="GET", path="/", headers=headers)[0] == 200
    assert _ask(address, headers={"Origin": address}, text="a star")[0] == 200
    assert index.asked == ["a star"]


def test_page_may_load_nothing_from_elsewhere(address):
    _, headers, content = _ask(address, method="GET", path="/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http:" not in content
    assert b"https:" not in content


def _browser():
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.mark.skipif(_browser() is None, reason="no Chromium is installed")
def test_person_types_and_drops_in_a_browser(address, index, tmp_path):
    from chrome_pages import Page

    with Page(_browser(), address, tmp_path) as page:
        page.run("document.getElementById('text').value = 'a red square'")
        page.run("document.getElementById('ask').requestSubmit()")
        page.wait("document.querySelectorAll('.match').length === 3")
        assert page.run("document.querySelector('.match figcaption div').textContent") == (
            "a red square <i>0</i>"
        )
        assert page.run("document.querySelectorAll('.match b, .match i').length") == 0
        page.wait("[...document.querySelectorAll('.match img')].every(x => x.naturalWidth === 40)")
        assert page.run("document.querySelectorAll('.match img').length") == 3
        page.run(
            """const held = new DataTransfer();
            held.items.add(new File([new Uint8Array([0x89, 80, 78, 71])], 'a.png'));
            document.dispatchEvent(new DragEvent('drop', {dataTransfer: held, bubbles: true}))"""
        )
        page.wait("document.querySelectorAll('.match').length === 1")
        assert "a.png" in page.run("document.getElementById('status').textContent")
        page.run("document.getElementById('text').value = 'fail'")
        page.run("document.getElementById('ask').requestSubmit()")
        page.wait("document.getElementById('status').className === 'error'")
        assert not page.errors
    assert index.asked == ["a red square", b"\x89PNG", "fail"]


def test_command_tells_what_is_missing(tmp_path, capsys):
    from sigline import cli

    assert cli.main(["ui", "--index", str(tmp_path)]) == 2
    assert "There is no index" in capsys.readouterr().err


def test_page_starts_from_the_command_line(tmp_path, contract_base, examples):
    from sigline import cli

    arguments = ["--model", contract_base / "3", "--data", examples, "--split", "train"]
    arguments += ["--output", tmp_path / "index"]
    assert cli.main(["index", *map(str, arguments)]) == 0
    command = [sys.executable, "-m", "sigline.cli", "ui", "--index", str(tmp_path / "index")]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.stderr.read()
        address = line[line.index("http://") :].split()[0].rstrip("/")
        status, _, content = _ask(address, text="a red square")
        matches = json.loads(content)["matches"]
        assert status == 200
        assert len(matches) == 24
        picture = _ask(address, method="GET", path=matches[0]["thumbnail"])[2]
        assert Image.open(io.BytesIO(picture)).size == (64, 64)
    finally:
        process.terminate()
        process.wait(60)


EXAMPLES = (
    Match("k0", "emoji", 1.0, 0, ("a red <i>heart</i>", "ein Herz")),
    Match("k1", "emoji", 1.0, 1, ()),
)


def test_texts_come_with_probabilities_and_whether_the_best_fits(index):
    # The matches' cosines are 1.0, 0.9 and 0.8.
    with _running(index, None, probability=lambda score: score / 2, threshold=0.6) as address:
        answer = json.loads(_ask(address, text="a star")[2])
        assert [x["probability"] for x in answer["matches"]] == [0.5, 0.45, 0.4]
        assert answer["fits"] is False
        # Two pictures have no probability.
        answer = json.loads(_ask(address, image=b"\x89PNG")[2])
        assert (answer["matches"][0]["probability"], answer["fits"]) == (None, None)
    with _running(index, None, probability=lambda score: score / 2, threshold=0.5) as address:
        assert json.loads(_ask(address, text="a star")[2])["fits"] is True
    with _running(index, None, threshold=0.5) as address:
        assert json.loads(_ask(address, text="a star")[2])["fits"] is None


@pytest.mark.skipif(_browser() is None, reason="no Chromium is installed")
def test_person_sees_examples_doubts_and_no_file_chooser(index, tmp_path):
    from chrome_pages import Page

    options = {"probability": lambda score: 2e-6 * score, "threshold": 0.05, "examples": EXAMPLES}
    with (
        _running(index, _thumbnail, **options) as address,
        Page(_browser(), address, tmp_path) as page,
    ):
        page.wait("document.querySelectorAll('.match').length === 2")
        assert page.run("document.getElementById('status').textContent") == "Some of the pictures"
        assert page.run("document.querySelectorAll('.score, .match i').length") == 0
        page.run("document.getElementById('file').onclick = () => { window.chosen = true }")
        page.run("document.getElementById('drop').click(); document.body.click()")
        assert page.run("window.chosen") is None
        page.run("document.getElementById('choose').click()")
        assert page.run("window.chosen") is True
        page.run("document.querySelector('#suggestions button').click()")
        page.wait("document.querySelectorAll('.match').length === 3")
        status = page.run("document.getElementById('status').textContent")
        assert status.startswith(
            "No good match for “a red <i>heart</i>”: the nearest fits with a probability of "
            "0.0002 %"
        )
        score = page.run("document.querySelector('.score').textContent")
        assert score == "0.0002 %cosine 1.000"
        assert not page.errors
    assert index.asked == ["a red <i>heart</i>"]
