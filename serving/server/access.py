"""Who may ask: API keys and certificates."""

import hashlib
import hmac
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

_BEARER = "bearer "
_KEY_HEADER = "x-api-key"
_SHORTEST_KEY = 16


@dataclass(frozen=True)
class Tls:
    """Files in PEM of a server's certificate.

    Attributes:
        certificate: PEM file with the certificate and those that signed it.
        key: PEM file of its private key.
        client_ca: PEM file of who signs the certificates that clients must show (mTLS). None for
            no such.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self, renewed: Callable[[], bool]) -> grpc.ServerCredentials:
        """Returns what gRPC needs; raises OSError if a file cannot be read.

        Args:
            renewed: Is asked at each connection whether the files are to be read again.
        """

        def _renewed() -> Any:
            # None says that nothing has changed, though the stubs do not.
            return self._configuration() if renewed() else None

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), _renewed, self.client_ca is not None
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        client_ca = self.client_ca.read_bytes() if self.client_ca else None
        return grpc.ssl_server_certificate_configuration(
            [(self.key.read_bytes(), self.certificate.read_bytes())], root_certificates=client_ca
        )

    def files(self) -> tuple[Path, ...]:
        """Returns the files that it is read from."""
        return (self.certificate, self.key, *((self.client_ca,) if self.client_ca else ()))

    def context(self) -> ssl.SSLContext:
        """Returns what HTTPS needs; raises OSError if a file cannot be read or does not fit."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def read_keys(path: Path) -> tuple[str, ...]:
    """Reads API keys, one a line; empty lines and those that begin with `#` do not count.

    Raises:
        ValueError: If there are none, or one is short enough to be guessed.
    """
    lines = (line.strip() for line in path.read_text().splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or any(len(key) < _SHORTEST_KEY or not key.isascii() for key in keys):
        raise ValueError(
            f"{path} must hold an API key a line, of at least {_SHORTEST_KEY} ASCII characters."
        )
    return keys


class ApiKeys:
    """Compares the key of a request with those that are known; without keys everyone may ask."""

    def __init__(self, keys: Sequence[str], file: Path | None = None):
        """Takes keys, and a file with more; see `read_keys`."""
        self._given = tuple(keys)
        self.file = file
        self._keys: list[bytes] = []
        self.read()

    def __bool__(self) -> bool:
        """Returns whether there are any: without, everyone may ask."""
        return bool(self._keys)

    def read(self) -> None:
        """Reads the file again; raises as `read_keys`, and those that were known stay known."""
        more = read_keys(self.file) if self.file is not None else ()
        self._keys = [key.encode() for key in (*self._given, *more)]

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Returns whether headers hold a key: `authorization: Bearer KEY`, or `x-api-key: KEY`.

        Args:
            headers: By name, in lower case.
        """
        if not self._keys:
            return True
        given, found = _given(headers), False
        for key in self._keys:
            # All of them, so that the time tells nothing.
            found |= hmac.compare_digest(given.encode(errors="replace"), key)
        return found

    def name(self, headers: Mapping[str, str]) -> str:
        """Returns a name for the key of a request that is allowed, empty if there are no keys.

        Args:
            headers: By name, in lower case.
        """
        if not self._keys:
            return ""
        return hashlib.sha256(_given(headers).encode(errors="replace")).hexdigest()[:12]


def _given(headers: Mapping[str, str]) -> str:
    authorization = headers.get("authorization", "")
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return headers.get(_KEY_HEADER, "")
