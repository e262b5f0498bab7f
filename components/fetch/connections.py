"""Connections that lead to public addresses only and end at a time.

The address that was checked is the one that is connected to: a name that is resolved again may lead
elsewhere.
"""

import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import urllib3
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import connection as sockets

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Maximum number of a host's addresses that are tried.
_MAX_ADDRESSES = 4
# All networks that are not public, since the table in Python's ipaddress depends on its version:
# private, loopback, link-local, documentation and multicast networks; those that embed other
# addresses, which may be private (NAT64, 6to4, Teredo, IPv4 in IPv6); and the metadata services
# of clouds, which hand out credentials: 169.254.0.0/16 (AWS, Google, Azure, Oracle, IBM,
# Tencent, Huawei, DigitalOcean, Hetzner, Scaleway and others), 100.100.100.200 (Alibaba),
# 192.0.0.192 (Oracle), 168.63.129.16 (Azure's host), 192.80.8.124 (Equinix Metal), and in IPv6
# fd00:ec2::254 (AWS), fd20:ce::254 (Google).
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("168.63.129.16/32", "192.80.8.124/32"),
        *("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32"),
        *("2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)


class AddressRefused(Exception):
    """An address that is not fetched from; no error of the network, so that nothing retries."""


def check_address(text: str, allowed: Sequence[Network]) -> None:
    """Refuses an address that is not public, unless it is allowed.

    Raises:
        AddressRefused: If it is neither.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if any(address in network for network in allowed):
        return
    inner = getattr(address, "ipv4_mapped", None) or address
    public = inner.is_global and not inner.is_multicast and not inner.is_reserved
    if not public or any(inner in network for network in _REFUSED):
        raise AddressRefused(f"{text} is no public address")


def pools(allowed: Sequence[Network]) -> urllib3.PoolManager:
    """Returns pools whose connections go to checked addresses; use them within `cut_at`.

    Args:
        allowed: Networks of addresses that are not public but may be connected to.
    """

    def new_connection(connection: urllib3.connection.HTTPConnection) -> socket.socket:
        port = connection.port
        try:
            resolved = socket.getaddrinfo(connection.host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(connection, f"the name leads nowhere: {error}") from None
        addresses = list(dict.fromkeys(str(item[4][0]) for item in resolved))
        for address in addresses:
            check_address(address, allowed)
        failed: OSError | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                left = _THREAD.cut.left()
                opened = sockets.create_connection((address, port), min(connection.timeout, left))
            except OSError as error:
                failed = error
                continue
            _THREAD.cut.guard(opened)
            return opened
        if isinstance(failed, TimeoutError):
            raise ConnectTimeoutError(connection, f"no connection: {failed}")
        raise NewConnectionError(connection, f"no connection: {failed}")

    class _Plain(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return new_connection(self)

    class _Secure(urllib3.connection.HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return new_connection(self)

    class _PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = _Plain

    class _SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = _Secure

    manager = urllib3.PoolManager(num_pools=64)
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
    return manager


_THREAD = threading.local()


class _Cut:
    """Ends connections at a time, however slowly their server goes on talking."""

    def __init__(self, deadline: float):
        self._deadline = deadline
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._over = False

    def left(self) -> float:
        """Returns the seconds that are left; raises `TimeoutError` if none are."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this attempt is over")
        return left

    def guard(self, opened: socket.socket) -> None:
        """Adds a connection."""
        # A duplicate descriptor, since TLS takes over the first one.
        guarded = socket.socket(fileno=os.dup(opened.fileno()))
        with self._lock:
            self._sockets.append(guarded)
            if self._over:
                _shut(guarded)

    def cut(self) -> None:
        """Ends all connections, and those that are still to come."""
        with self._lock:
            self._over = True
            for guarded in self._sockets:
                _shut(guarded)

    def close(self) -> None:
        """Lets the connections be."""
        with self._lock:
            for guarded in self._sockets:
                guarded.close()
            self._sockets.clear()


def _shut(guarded: socket.socket) -> None:
    with contextlib.suppress(OSError):  # It is closed already.
        guarded.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cut_at(deadline: float) -> Iterator[None]:
    """Ends what this thread connects to at a time."""
    _THREAD.cut = cut = _Cut(deadline)
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut.cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        cut.close()
