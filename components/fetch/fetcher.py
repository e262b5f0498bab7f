"""Fetches what a URL names: bounded, polite, and from public addresses only."""

import contextlib
import http.client
import ipaddress
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import NewConnectionError

from sigline.components.fetch import connections, robots

SUCCESS = "success"
INVALID_URL = "invalid_url"
PRIVATE_ADDRESS = "private_address"
OPTED_OUT = "opted_out"
TOO_MANY_BYTES = "too_many_bytes"
TOO_MANY_REDIRECTS = "too_many_redirects"
TIMED_OUT = "timed_out"
NO_CONNECTION = "no_connection"
INCOMPLETE = "incomplete"
EMPTY = "empty"
COMPRESSED = "compressed"
# HTTP statuses that may change when the request is repeated.
_PASSING_CODES = (408, 425, 429, 500, 502, 503, 504)
_PASSING = (TIMED_OUT, NO_CONNECTION, INCOMPLETE)
_REDIRECT_CODES = (301, 302, 303, 307, 308)
_SCHEMES = ("http", "https")
_MAX_URL = 8192
_PIECE_BYTES = 2**16
# Hosts whose state is kept although no request to them is running.
_MAX_HOSTS = 10_000


@dataclass(frozen=True)
class FetchConfig:
    """How URLs are fetched.

    Attributes:
        timeout_s: Seconds until the first byte, and between two.
        deadline_s: Seconds for one attempt, whatever arrives.
        max_bytes: Largest file.
        max_redirects: Longest chain of redirections.
        retries: Attempts after the first, where another outcome is possible.
        backoff_s: Seconds before the first of them; doubled each time. What the server asks for
            holds up to `max_wait_s`.
        max_wait_s: Longest wait before an attempt.
        per_host: Requests to one host at a time.
        host_interval_s: Least seconds between the starts of two requests to one host.
        user_agent: What the fetcher calls itself.
        user_agent_token: By which X-Robots-Tag may name it.
        opt_outs: Directives of X-Robots-Tag whose images are not taken.
        allowed_networks: Networks of addresses that are not public but may be fetched from.
    """

    timeout_s: float = 10.0
    deadline_s: float = 60.0
    max_bytes: int = 32 * 2**20
    max_redirects: int = 5
    retries: int = 2
    backoff_s: float = 1.0
    max_wait_s: float = 60.0
    per_host: int = 4
    host_interval_s: float = 0.0
    user_agent: str = "Mozilla/5.0 (compatible; sigline)"
    user_agent_token: str = "sigline"
    opt_outs: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    allowed_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("timeout_s", "deadline_s", "max_bytes", "per_host"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0. Received: {name}={getattr(self, name)}")
        for name in ("max_redirects", "retries", "backoff_s", "max_wait_s", "host_interval_s"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be at least 0. Received: {name}={getattr(self, name)}"
                )
        for text in self.allowed_networks:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise ValueError(
                    f"allowed_networks must be networks: {error}. "
                    f"Received: allowed_networks={self.allowed_networks}"
                ) from None


class Fetched(NamedTuple):
    """What became of a URL.

    Attributes:
        status: `success`, one of this module's statuses, or `http_` with the answer's code.
        content: The bytes, of a success.
        detail: What is wrong, in a sentence.
        wait_s: Seconds that the server asks to wait for.
    """

    status: str
    content: bytes = b""
    detail: str = ""
    wait_s: float = 0.0

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may end otherwise."""
        codes = [f"http_{code}" for code in _PASSING_CODES]
        return self.status in _PASSING or self.status in codes


class Fetcher:
    """Fetches URLs from many threads at a time."""

    def __init__(self, config: FetchConfig):
        self._config = config
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        allowed = [ipaddress.ip_network(text) for text in config.allowed_networks]
        self._pools = connections.pools(allowed)

    def fetch(self, url: str) -> Fetched:
        """Fetches a URL; never raises on what the network brings."""
        wait = self._config.backoff_s
        for attempt in range(self._config.retries + 1):
            outcome = self._attempt(url)
            if not outcome.may_pass or attempt == self._config.retries:
                break
            time.sleep(min(max(wait, outcome.wait_s), self._config.max_wait_s))
            wait *= 2
        return outcome

    def _attempt(self, url: str) -> Fetched:
        left = self._config.deadline_s
        for _ in range(self._config.max_redirects + 1):
            try:
                parts = urlsplit(url)
                host, scheme = parts.hostname, parts.scheme.lower()
                _ = parts.port
            except ValueError as error:
                return Fetched(INVALID_URL, detail=str(error))
            if scheme not in _SCHEMES or not host or len(url) > _MAX_URL:
                return Fetched(INVALID_URL, detail=f"no URL of http or https: {url[:200]!r}")
            with self._entered(host):
                # The deadline does not count the time spent waiting for other requests to the host.
                begin = time.monotonic()
                answer = self._request(url, begin + left)
                left -= time.monotonic() - begin
            if isinstance(answer, Fetched):
                return answer
            url = answer
        return Fetched(TOO_MANY_REDIRECTS, detail=f"more than {self._config.max_redirects}")

    @contextlib.contextmanager
    def _entered(self, host: str) -> Iterator[None]:
        """Waits until a host may be asked; hosts that nobody asks are forgotten."""
        with self._lock:
            gate = self._hosts.setdefault(host, _Host(self._config))
            gate.users += 1
        try:
            with gate.entered():
                yield
        finally:
            with self._lock:
                gate.users -= 1
                if len(self._hosts) > _MAX_HOSTS or not gate.waits():
                    idle = [name for name, item in self._hosts.items() if not item.waits()]
                    for name in idle:
                        del self._hosts[name]

    def _request(self, url: str, deadline: float) -> Fetched | str:
        """Returns what one request brings: an outcome, or where it leads."""
        config = self._config
        headers = {
            "User-Agent": config.user_agent,
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        try:
            with (
                connections.cut_at(deadline),
                contextlib.closing(
                    self._pools.request(
                        "GET",
                        url,
                        headers=headers,
                        timeout=config.timeout_s,
                        retries=False,
                        redirect=False,
                        preload_content=False,
                        decode_content=False,
                    )
                ) as response,
            ):
                target = response.headers.get("Location")
                if response.status in _REDIRECT_CODES and target:
                    return urljoin(url, _as_sent(target))
                return self._read(response, deadline)
        except connections.AddressRefused as error:
            return Fetched(PRIVATE_ADDRESS, detail=str(error))
        except (urllib3.exceptions.LocationValueError, ValueError) as error:
            # Raised for the target of a redirect, too.
            return Fetched(INVALID_URL, detail=_first_line(error))
        except Exception as error:  # Parsers may raise anything on hostile responses.
            late = time.monotonic() >= deadline
            return Fetched(_status(error, late=late), detail=_first_line(error))

    def _read(self, response: urllib3.BaseHTTPResponse, deadline: float) -> Fetched:
        config = self._config
        if response.status != http.HTTPStatus.OK:
            wait = _seconds(response.headers.get("Retry-After"))
            return Fetched(f"http_{response.status}", detail=response.reason or "", wait_s=wait)
        tags = response.headers.getlist("X-Robots-Tag")
        if directive := robots.opted_out(tags, config.user_agent_token, config.opt_outs):
            return Fetched(OPTED_OUT, detail=f"X-Robots-Tag says {directive}")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) > config.max_bytes:
            return _too_large(config.max_bytes)
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            return Fetched(COMPRESSED, detail=f"as {encoding[:50]!r}, unasked")
        content = bytearray()
        while piece := response.read(_PIECE_BYTES):
            content += piece
            if len(content) > config.max_bytes:
                return _too_large(config.max_bytes)
            if time.monotonic() > deadline:
                detail = f"{len(content)} bytes within {config.deadline_s} seconds"
                return Fetched(TIMED_OUT, detail=detail)
        return Fetched(SUCCESS, bytes(content)) if content else Fetched(EMPTY, detail="no bytes")


class _Host:
    """Lets few requests to a host pass at a time, and not too soon after each other."""

    def __init__(self, config: FetchConfig):
        self._places = threading.Semaphore(config.per_host)
        self._lock = threading.Lock()
        self._interval_s = config.host_interval_s
        self._next = 0.0
        self.users = 0

    def waits(self) -> bool:
        """Whether somebody asks the host, or has to wait before doing so."""
        return self.users > 0 or self._next > time.monotonic()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with self._places:
            with self._lock:
                now = time.monotonic()
                wait = max(0.0, self._next - now)
                self._next = max(now, self._next) + self._interval_s
            time.sleep(wait)
            yield


def _status(error: Exception, *, late: bool) -> str:
    # urllib3 derives NewConnectionError from its timeout, though it is none.
    if isinstance(error, NewConnectionError) and not late:
        return NO_CONNECTION
    if late or isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return TIMED_OUT
    is_answer = isinstance(error, urllib3.exceptions.ProtocolError | http.client.HTTPException)
    return INCOMPLETE if is_answer else NO_CONNECTION


def _seconds(value: str | None) -> float:
    """Returns what a Retry-After header asks for; dates are left to the back-off."""
    value = (value or "").strip()
    return float(value) if value.isascii() and value.isdecimal() and len(value) < 10 else 0.0


def _as_sent(header: str) -> str:
    """Returns a header's text: many servers send UTF-8, which is read as Latin-1."""
    try:
        return header.encode("latin-1").decode("utf-8").strip()
    except UnicodeError:
        return header.strip()


def _too_large(limit: int) -> Fetched:
    return Fetched(TOO_MANY_BYTES, detail=f"the limit is {limit}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
