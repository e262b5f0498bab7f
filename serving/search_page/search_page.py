"""A page for one person at one machine: type a text or drop a picture, and see what is found."""

import asyncio
import logging
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from sigline.schemas.retrieval import Match

_PAGE = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_MAX_BYTES = 16 * 2**20
_MAX_TEXT_BYTES = 64 * 2**10
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOG = logging.getLogger("sigline.serving")


class Searched(Protocol):
    """An index."""

    def by_text(self, text: str, *, top: int) -> list[Match]:
        """Returns the images that a text describes best."""
        ...

    def by_image(self, encoded: bytes, *, top: int) -> list[Match]:
        """Returns the images that are nearest to another one."""
        ...


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        index: What is searched.
        thumbnail: Returns the picture of a row; raises IndexError if there is no such row. None if
            there are no pictures.
        about: A line about the index.
        top: How many matches are shown.
        hosts: Names that a browser may call this server by: another site whose name was made to
            point here must not read it.
        probability: Returns the probability that a picture fits a text, of their cosine; None where
            that is not known.
        threshold: Probability of the best match below which nothing fits.
        examples: Pictures to show before the first query.
    """

    index: Searched
    thumbnail: Callable[[int], bytes | None] | None
    about: str
    top: int
    hosts: frozenset[str]
    probability: Callable[[float], float | None] = lambda score: None
    threshold: float = 0.0
    examples: Sequence[Match] = ()


def application(page: Page) -> web.Application:
    """Returns the page as an application of aiohttp."""
    handlers = _Handlers(page)
    made = web.Application(middlewares=[handlers.guard], client_max_size=_MAX_BYTES)
    for path in _FILES:
        made.router.add_get(path, handlers.file)
    made.router.add_get("/about", handlers.about)
    made.router.add_get("/examples", handlers.examples)
    made.router.add_get("/thumbnail/{row:[0-9]{1,18}}", handlers.thumbnail)
    made.router.add_post("/search", handlers.search)
    return made


class _Refused(Exception):
    """What the person who asks is told."""


class _Handlers:
    def __init__(self, page: Page):
        self._page = page
        # One search at a time: each uses all cores, and a person asks one at a time.
        self._turn = asyncio.Lock()

    @web.middleware
    async def guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        """Lets nobody in by another name, and tells what is wrong in a sentence."""
        if request.host.rsplit(":", 1)[0].strip("[]") not in self._page.hosts:
            return _error(
                f"This page is not known as {request.host}; start it with --allow-host.", 421
            )
        if _is_foreign(request, self._page.hosts):
            return _error("Other sites may not ask.", 403)
        try:
            response = await handler(request)
        except _Refused as refused:
            response = _error(str(refused), 400)
        except web.HTTPRequestEntityTooLarge:
            response = _error(f"A picture may have {_MAX_BYTES // 2**20} MiB.", 413)
        except web.HTTPException as error:
            response = _error(error.reason, error.status)
        except Exception:
            _LOG.exception("search")
            response = _error("The search failed; the reason is in the log.", 500)
        response.headers.update(_HEADERS)
        return response

    async def file(self, request: web.Request) -> web.Response:
        path = _PAGE / _FILES[request.path]
        return web.Response(
            body=path.read_bytes(), content_type=_TYPES[path.suffix], charset="utf-8"
        )

    async def about(self, request: web.Request) -> web.Response:
        return web.json_response({"text": self._page.about})

    async def examples(self, request: web.Request) -> web.Response:
        """Answers with pictures of the index, for who does not know what it holds."""
        return web.json_response({"matches": [self._shown(x) for x in self._page.examples]})

    async def thumbnail(self, request: web.Request) -> web.Response:
        row, thumbnail = int(request.match_info["row"]), self._page.thumbnail
        try:
            found = await asyncio.to_thread(thumbnail, row) if thumbnail else None
        except IndexError as error:
            raise web.HTTPNotFound from error
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found, content_type="image/jpeg")

    async def search(self, request: web.Request) -> web.Response:
        fields = await _fields(request)
        image, text = fields.get("image"), _text(fields.get("text", b""))
        index, top = self._page.index, self._page.top
        if not image and not text:
            raise _Refused("Type what the picture shows, or drop one.")
        begin = time.perf_counter()
        try:
            async with self._turn:
                if image:
                    found = await asyncio.to_thread(index.by_image, image, top=top)
                else:
                    found = await asyncio.to_thread(index.by_text, text, top=top)
        except ValueError as error:
            raise _Refused(str(error)) from error
        milliseconds = round(1e3 * (time.perf_counter() - begin))
        matches = [self._shown(match) for match in found]
        if not image:
            # The cosine of two pictures is no probability.
            for shown, match in zip(matches, found, strict=True):
                shown["probability"] = self._page.probability(match.score)
        best = max(
            (x["probability"] for x in matches if x["probability"] is not None), default=None
        )
        fits = None if best is None else best >= self._page.threshold
        return web.json_response({"matches": matches, "milliseconds": milliseconds, "fits": fits})

    def _shown(self, match: Match) -> dict[str, Any]:
        shown = f"/thumbnail/{match.row}" if self._page.thumbnail else None
        return {**asdict(match), "thumbnail": shown, "probability": None}


def _is_foreign(request: web.Request, hosts: frozenset[str]) -> bool:
    """Returns whether another site has the browser ask."""
    origin = request.headers.get("Origin")
    if origin is not None and urllib.parse.urlsplit(origin).hostname not in hosts:
        return True
    return request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and (
        request.path != "/" or request.method != "GET"
    )


async def _fields(request: web.Request) -> dict[str, bytes]:
    """Reads a form of small parts."""
    if request.content_type not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise _Refused("A search is a form with a text or an image.")
    try:
        form = await request.post()
    except (ValueError, AssertionError) as error:
        raise _Refused("The form cannot be read.") from error
    if unknown := sorted(set(form) - {"text", "image"}):
        raise _Refused(f"A search has the fields text and image, not {unknown[0][:40]}.")
    return {
        name: value.file.read() if isinstance(value, web.FileField) else _bytes(value)
        for name, value in form.items()
    }


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _text(content: bytes) -> str:
    if len(content) > _MAX_TEXT_BYTES:
        raise _Refused(f"A text may have {_MAX_TEXT_BYTES // 2**10} KiB.")
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise _Refused("A text must be UTF-8.") from error


def _error(message: str, status: int) -> web.Response:
    return web.json_response({"error": message}, status=status)
