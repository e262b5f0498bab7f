"""Who may ask: API keys and certificates."""

import hmac
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

_BEARER = "bearer "
_KEY_HEADER = "x-api-key"
_SHORTEST_KEY = 16
# What probes and tools call before they have a key.
_OPEN = ("/grpc.health.v1.Health/",)


@dataclass(frozen=True)
class Tls:
    """Files in PEM of a server's certificate.

    Attributes:
        certificate: The certificate and those that signed it.
        key: Its private key.
        client_ca: Who signs the certificates that clients must show (mTLS); None for no such.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what gRPC needs; raises OSError if a file cannot be read."""
        client_ca = self.client_ca.read_bytes() if self.client_ca else None
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=client_ca,
            require_client_auth=client_ca is not None,
        )

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

    def __init__(self, keys: Sequence[str]):
        """Takes the keys."""
        self._keys = [key.encode() for key in keys]

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Returns whether headers hold a key: `authorization: Bearer KEY`, or `x-api-key: KEY`.

        Args:
            headers: By name, in lower case.
        """
        if not self._keys:
            return True
        given = headers.get(_KEY_HEADER, "")
        authorization = headers.get("authorization", "")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            given = authorization[len(_BEARER) :].strip()
        found = False
        for key in self._keys:
            # All of them, so that the time tells nothing.
            found |= hmac.compare_digest(given.encode(errors="replace"), key)
        return found


class KeyInterceptor(grpc.ServerInterceptor):
    """Refuses RPCs without a key, but those of the health service."""

    def __init__(self, keys: ApiKeys):
        """Takes the keys."""
        self._keys = keys

        def refuse(requests, context):
            context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "An API key is needed: authorization: Bearer KEY"
            )

        # Of a stream: it does not wait for a message, of which a stranger might send none.
        self._refusal = grpc.stream_unary_rpc_method_handler(refuse)

    def intercept_service(self, continuation, handler_call_details):
        """Lets a call through, or not."""
        headers = {
            str(item.key): item.value if isinstance(item.value, str) else ""
            for item in handler_call_details.invocation_metadata
        }
        if handler_call_details.method.startswith(_OPEN) or self._keys.allow(headers):
            return continuation(handler_call_details)
        return self._refusal
