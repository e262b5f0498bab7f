"""A local web page for one user, who searches an index by a text or a picture."""

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


class SearchIndex(Protocol):
    """An index that can be searched."""

    def by_text(self, text: str, *, top: int) -> list[Match]:
        """Returns the images that a text describes best."""
        ...

    def by_image(self, encoded: bytes, *, top: int) -> list[Match]:
        """Returns the images that are nearest to an encoded image."""
        ...


@dataclass(frozen=True)
class Page:
    """Content and settings of the page.

    Attributes:
        index: The index to search.
        thumbnail: Returns the JPEG thumbnail of a row; raises IndexError if there is no such row.
            None if the index has no thumbnails.
        about: A line that describes the index.
        top: Number of matches to show.
        hosts: Host names by which a browser may address this server. Others are refused, so that
            another site whose name resolves to this address (DNS rebinding) cannot read the page.
        probability: Returns the probability that a picture fits a text for their cosine; None where
            it is unknown.
        threshold: Probability of the best match below which the page says that nothing fits.
        examples: Pictures to show before the first query.
    """

    index: SearchIndex
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
    app = web.Application(middlewares=[handlers.guard], client_max_size=_MAX_BYTES)
    for path in _FILES:
        app.router.add_get(path, handlers.file)
    app.router.add_get("/about", handlers.about)
    app.router.add_get("/examples", handlers.examples)
    app.router.add_get("/thumbnail/{row:[0-9]{1,18}}", handlers.thumbnail)
    app.router.add_post("/search", handlers.search)
    return app


class _InvalidSearch(Exception):
    """A search that cannot be answered; the message is shown to the user."""


class _Handlers:
    def __init__(self, page: Page):
        self._page = page
        # One search at a time, since each uses all cores, and there is one user.
        self._search_lock = asyncio.Lock()

    @web.middleware
    async def guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        """Refuses other host names and other sites; turns errors into a sentence for the user."""
        if request.host.rsplit(":", 1)[0].strip("[]") not in self._page.hosts:
            return _error(
                f"This server has no name {request.host}; start it with --allow-host.", 421
            )
        if _is_foreign(request, self._page.hosts):
            return _error("Other sites may not use this page.", 403)
        try:
            response = await handler(request)
        except _InvalidSearch as error:
            response = _error(str(error), 400)
        except web.HTTPRequestEntityTooLarge:
            response = _error(
                f"A picture may have {_MAX_BYTES // 2**20} MiB; use a smaller one.", 413
            )
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
        """Answers with some pictures of the index, to show what it holds."""
        return web.json_response({"matches": [self._entry(x) for x in self._page.examples]})

    async def thumbnail(self, request: web.Request) -> web.Response:
        row, thumbnail = int(request.match_info["row"]), self._page.thumbnail
        try:
            image = await asyncio.to_thread(thumbnail, row) if thumbnail else None
        except IndexError as error:
            raise web.HTTPNotFound from error
        if image is None:
            raise web.HTTPNotFound
        return web.Response(body=image, content_type="image/jpeg")

    async def search(self, request: web.Request) -> web.Response:
        fields = await _fields(request)
        image, text = fields.get("image"), _text(fields.get("text", b""))
        index, top = self._page.index, self._page.top
        if not image and not text:
            raise _InvalidSearch("Type what the picture shows, or drop one.")
        begin = time.perf_counter()
        try:
            async with self._search_lock:
                if image:
                    matches = await asyncio.to_thread(index.by_image, image, top=top)
                else:
                    matches = await asyncio.to_thread(index.by_text, text, top=top)
        except ValueError as error:
            raise _InvalidSearch(str(error)) from error
        milliseconds = round(1e3 * (time.perf_counter() - begin))
        entries = [self._entry(match) for match in matches]
        if not image:
            # Probabilities are calibrated for a text and a picture, not for two pictures.
            for entry, match in zip(entries, matches, strict=True):
                entry["probability"] = self._page.probability(match.score)
        best = max(
            (x["probability"] for x in entries if x["probability"] is not None), default=None
        )
        fits = None if best is None else best >= self._page.threshold
        return web.json_response({"matches": entries, "milliseconds": milliseconds, "fits": fits})

    def _entry(self, match: Match) -> dict[str, Any]:
        """Returns a match as the page's script reads it."""
        url = f"/thumbnail/{match.row}" if self._page.thumbnail else None
        return {**asdict(match), "thumbnail": url, "probability": None}


def _is_foreign(request: web.Request, hosts: frozenset[str]) -> bool:
    """Returns whether another site made the browser send a request."""
    origin = request.headers.get("Origin")
    if origin is not None and urllib.parse.urlsplit(origin).hostname not in hosts:
        return True
    return request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and (
        request.path != "/" or request.method != "GET"
    )


async def _fields(request: web.Request) -> dict[str, bytes]:
    """Reads the fields of a search form."""
    if request.content_type not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise _InvalidSearch(
            "A search must be a form with a text or an image. "
            f"Received: content type {request.content_type[:40]}."
        )
    try:
        form = await request.post()
    except (ValueError, AssertionError) as error:
        raise _InvalidSearch("The form cannot be read; send it again.") from error
    if unknown := sorted(set(form) - {"text", "image"}):
        raise _InvalidSearch(f"A search has the fields text and image, not {unknown[0][:40]}.")
    return {
        name: value.file.read() if isinstance(value, web.FileField) else _bytes(value)
        for name, value in form.items()
    }


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _text(content: bytes) -> str:
    if len(content) > _MAX_TEXT_BYTES:
        raise _InvalidSearch(
            f"A text may have {_MAX_TEXT_BYTES // 2**10} KiB; type a shorter one. "
            f"Received: {len(content) // 2**10} KiB."
        )
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise _InvalidSearch(f"A text must be UTF-8. Received: {error.reason}.") from error


def _error(message: str, status: int) -> web.Response:
    return web.json_response({"error": message}, status=status)
