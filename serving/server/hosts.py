"""By which names and from which web pages a server without keys may be asked.

A page that a browser shows can send requests to any address that the browser reaches, and can have
its own name lead to 127.0.0.1 (DNS rebinding). Where a key is asked for, it cannot know the key.
"""

import ipaddress
import urllib.parse
from collections.abc import Sequence

_LOCAL = "localhost"


class Hosts:
    """The names in `Host` and `Origin` headers that are let through."""

    def __init__(self, listening: str, allowed: Sequence[str] = ()):
        """Takes where the server listens, and names besides addresses and those without a dot.

        Names are looked at if it listens at a loopback address, or any are allowed by name: others
        are asked by the names of services, which cannot be known here.
        """
        self._allowed = frozenset(name.lower().rstrip(".") for name in allowed)
        self._looks = bool(self._allowed) or _is_loopback(listening)

    def allows(self, host: str | None) -> bool:
        """Returns whether a request may have this `Host`."""
        if not self._looks or host is None:
            return True
        name = _name(host)
        if name in self._allowed or name.endswith(f".{_LOCAL}"):
            return True
        # A name without a dot is one of the own network's, such as `localhost`.
        return bool(name) and ("." not in name or _address(name) is not None)


def is_own_page(origin: str, host: str | None) -> bool:
    """Returns whether a page comes from the host that it asks."""
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
    found = _address(name.strip("[]"))
    return name == _LOCAL or (found is not None and found.is_loopback)
