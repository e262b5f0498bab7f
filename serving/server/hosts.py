"""Protects a server without API keys from web pages: checks `Host` and `Origin` headers.

A page in a browser can send requests to any address that the browser reaches, and can make its own
name resolve to 127.0.0.1 (DNS rebinding). A server with API keys needs no such check, since a page
cannot know the key.
"""

import ipaddress
import urllib.parse
from collections.abc import Sequence

_LOCAL = "localhost"


class Hosts:
    """The names in `Host` headers that a server accepts."""

    def __init__(self, listening: str, allowed: Sequence[str] = ()):
        """Takes the address to listen at, and the names to accept.

        Addresses and names without a dot are always accepted. Names are checked only if the server
        listens at a loopback address, or `allowed` has any: other servers are reached by the names
        of services, which cannot be known here.

        Args:
            listening: Address that the server listens at.
            allowed: Other names to accept.
        """
        self._allowed = frozenset(name.lower().rstrip(".") for name in allowed)
        self._checks_names = bool(self._allowed) or _is_loopback(listening)

    def allows(self, host: str | None) -> bool:
        """Returns whether a request may have this `Host`."""
        if not self._checks_names or host is None:
            return True
        name = _name(host)
        if name in self._allowed or name.endswith(f".{_LOCAL}"):
            return True
        # A name without a dot belongs to the local network; no foreign page can have one.
        return bool(name) and ("." not in name or _address(name) is not None)


def is_own_page(origin: str, host: str | None) -> bool:
    """Returns whether a page was loaded from the host that it sends a request to."""
    return host is not None and urllib.parse.urlsplit(origin).netloc.lower() == host.lower()


def _name(host: str) -> str:
    """Returns a host without its port."""
    try:
        return (urllib.parse.urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    address = _address(name.strip("[]"))
    return name == _LOCAL or (address is not None and address.is_loopback)
