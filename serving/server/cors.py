"""Cross-origin resource sharing (CORS): which web pages may use the REST API."""

import urllib.parse
from collections.abc import Mapping, Sequence

ANY = "*"
_API = "/v1/"
_ALLOWED = {
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type, Content-Encoding, Authorization, X-Api-Key",
}


class Cors:
    """The origins whose pages may send requests and read answers."""

    def __init__(self, origins: Sequence[str]):
        """Takes origins such as `https://example.org`, or `*` for all; by default none.

        Raises:
            ValueError: If one is not an origin: a scheme, a host and an optional port.
        """
        for origin in origins:
            parts = urllib.parse.urlsplit(origin)
            if origin != ANY and origin != f"{parts.scheme}://{parts.netloc}":
                raise ValueError(
                    "allow_origins must be origins such as https://example.org:8080, without a "
                    f"path or a slash at the end, or {ANY}. Received: {origin!r}"
                )
            if origin != ANY and (parts.scheme not in ("http", "https") or not parts.hostname):
                raise ValueError(
                    f"allow_origins must begin with http:// or https://. Received: {origin!r}"
                )
        self._origins = frozenset(origin.lower() if origin != ANY else origin for origin in origins)

    def headers(self, path: str, origin: str | None) -> Mapping[str, str]:
        """Returns the CORS headers of an answer.

        Args:
            path: Path of the request.
            origin: Its `Origin` header; None if no web page sent it.
        """
        if not self._origins or not path.startswith(_API):
            return {}
        if ANY in self._origins:
            return {"Access-Control-Allow-Origin": ANY, **_ALLOWED}
        # Without this, a cache could give one page the headers that another one may see.
        headers = {"Vary": "Origin"}
        if origin is not None and origin.lower() in self._origins:
            headers |= {"Access-Control-Allow-Origin": origin, **_ALLOWED}
        return headers

    def is_preflight(self, method: str, path: str) -> bool:
        """Returns whether it is a browser's preflight request, which carries no API key."""
        return bool(self._origins) and method == "OPTIONS" and path.startswith(_API)

    def allows(self, origin: str | None) -> bool:
        """Returns whether pages of an origin may send requests."""
        return origin is not None and (ANY in self._origins or origin.lower() in self._origins)
