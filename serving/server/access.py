"""Access to the server: API keys and TLS certificates."""

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
_MIN_KEY_CHARS = 16


@dataclass(frozen=True)
class Tls:
    """PEM files of a server's certificate.

    Attributes:
        certificate: PEM file with the certificate and the chain of those that signed it.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities that sign the certificates of clients (mTLS). None
            to ask clients for no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self, renewed: Callable[[], bool]) -> grpc.ServerCredentials:
        """Returns gRPC's credentials; raises OSError if a file cannot be read.

        Args:
            renewed: Called at each connection; returns whether to read the files again.
        """

        def _renewed() -> Any:
            # gRPC reads None as "unchanged", though its type stubs do not allow it.
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
        """Returns the paths of all files."""
        return (self.certificate, self.key, *((self.client_ca,) if self.client_ca else ()))

    def context(self) -> ssl.SSLContext:
        """Returns the context of HTTPS; raises OSError if a file cannot be read or used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def read_keys(path: Path) -> tuple[str, ...]:
    """Reads API keys, one a line; empty lines and lines that begin with `#` are skipped.

    Raises:
        ValueError: If there are none, or one is short enough to be guessed.
    """
    lines = (line.strip() for line in path.read_text().splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    num_bad = sum(len(key) < _MIN_KEY_CHARS or not key.isascii() for key in keys)
    if not keys or num_bad:
        # The message must not show a key, since it may be logged.
        raise ValueError(
            f"{path} must hold an API key a line, of at least {_MIN_KEY_CHARS} ASCII characters. "
            f"Received: {len(keys)} keys, {num_bad} of them shorter or not ASCII"
        )
    return keys


class ApiKeys:
    """The valid API keys. Without any, every request is allowed."""

    def __init__(self, keys: Sequence[str], file: Path | None = None):
        """Takes keys, and a file with more; see `read_keys`."""
        self._static_keys = tuple(keys)
        self.file = file
        self._keys: list[bytes] = []
        self.read()

    def __bool__(self) -> bool:
        """Returns whether there are any keys."""
        return bool(self._keys)

    def read(self) -> None:
        """Reads the file again; raises as `read_keys`, and then the old keys stay valid."""
        more = read_keys(self.file) if self.file is not None else ()
        self._keys = [key.encode() for key in (*self._static_keys, *more)]

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Returns whether the headers of a request hold a valid key.

        It is sent as `authorization: Bearer KEY` or `x-api-key: KEY`.

        Args:
            headers: By name, in lower case.
        """
        if not self._keys:
            return True
        sent, is_valid = _sent_key(headers).encode(errors="replace"), False
        for key in self._keys:
            # Compares all keys in constant time, so that the time reveals nothing about them.
            is_valid |= hmac.compare_digest(sent, key)
        return is_valid

    def name(self, headers: Mapping[str, str]) -> str:
        """Returns a name for the key of a valid request, empty if there are no keys.

        The name is a part of the key's SHA-256, so that it tells clients apart without the key.

        Args:
            headers: By name, in lower case.
        """
        if not self._keys:
            return ""
        return hashlib.sha256(_sent_key(headers).encode(errors="replace")).hexdigest()[:12]


def _sent_key(headers: Mapping[str, str]) -> str:
    """Returns the key in the headers of a request, empty without one."""
    authorization = headers.get("authorization", "")
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return headers.get(_KEY_HEADER, "")
