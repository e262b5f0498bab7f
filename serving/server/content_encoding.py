"""Decodes request bodies that are compressed (`Content-Encoding`), within bounds of size and time.

A few kilobytes can stand for gigabytes, so the size is checked after every piece, not at the end.
"""

import time
import zlib
from collections.abc import Callable, Iterable

import grpc

from sigline.serving.server import failures
from sigline.serving.server.failures import RequestFailed

SUPPORTED = ("gzip", "deflate")
_ALIASES = {"x-gzip": "gzip"}
# Codings of one body. Nobody needs two; each one costs a pass over the body.
_MOST_CODINGS = 4
# gzip files may be joined. A new decoder for each member costs far more than the member's bytes.
_MOST_MEMBERS = 1024
_INPUT_BYTES = 64 * 2**10
_OUTPUT_BYTES = 256 * 2**10
_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 31, 15, -15


def codings(headers: Iterable[str]) -> tuple[str, ...]:
    """Returns the codings that `Content-Encoding` headers name, in the order they were applied in.

    Raises:
        RequestFailed: With HTTP status 415 if one is not supported, or there are too many.
    """
    names = [name.strip().lower() for header in headers for name in header.split(",")]
    names = [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]
    supported = ", ".join(SUPPORTED)
    for name in names:
        if name not in SUPPORTED:
            raise _unsupported(f"Content-Encoding must be one of {supported}. Received: {name!r}")
    if len(names) > _MOST_CODINGS:
        raise _unsupported(
            f"Content-Encoding may name {_MOST_CODINGS} codings. Received: {len(names)}"
        )
    return tuple(names)


def _unsupported(message: str) -> RequestFailed:
    return RequestFailed(grpc.StatusCode.INVALID_ARGUMENT, message, http_status=415)


def decode(
    body: bytes | bytearray,
    names: Iterable[str],
    *,
    max_bytes: int,
    deadline: float,
    grew: Callable[[int], None] = lambda num_bytes: None,
    shrank: Callable[[int], None] = lambda num_bytes: None,
) -> bytes | bytearray:
    """Returns a body without its codings.

    Args:
        body: The body as it came.
        names: Its codings, as `codings` returns them.
        max_bytes: Largest size of the body, and of what it is between two codings.
        deadline: Time of `time.monotonic` at which decoding stops.
        grew: Is told the bytes of every piece that is decoded; may raise.
        shrank: Is told the bytes of what is no longer needed.

    Raises:
        RequestFailed: INVALID_ARGUMENT if the body is damaged, RESOURCE_EXHAUSTED with HTTP status
            413 if it is too large, DEADLINE_EXCEEDED if it takes too long.
    """
    for name in reversed(tuple(names)):
        decoded = bytearray()
        for piece in _pieces(body, name, deadline):
            grew(len(piece))
            if len(decoded) + len(piece) > max_bytes:
                raise too_large(max_bytes)
            decoded += piece
        shrank(len(body))
        body = decoded
    return body


def too_large(max_bytes: int) -> RequestFailed:
    """Returns the failure of a body that is larger than it may be, compressed or not."""
    return RequestFailed(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"The body may have {max_bytes} bytes",
        http_status=413,
    )


def _pieces(body: bytes | bytearray, name: str, deadline: float) -> Iterable[bytes]:
    bits = _GZIP_BITS if name == "gzip" else _deflate_bits(body)
    decoder, members = zlib.decompressobj(bits), 1
    for start in range(0, len(body), _INPUT_BYTES):
        rest, has_more = bytes(body[start : start + _INPUT_BYTES]), False
        while rest or has_more:
            if time.monotonic() >= deadline:
                raise RequestFailed(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    "The deadline passed while the body was decompressed",
                )
            if decoder.eof:
                members += 1
                if name != "gzip":
                    raise _damaged(name, "bytes follow its end")
                if members > _MOST_MEMBERS:
                    raise _damaged(name, f"it has more than {_MOST_MEMBERS} members")
                decoder = zlib.decompressobj(bits)
            try:
                piece = decoder.decompress(rest, _OUTPUT_BYTES)
            except zlib.error as error:
                raise _damaged(name, str(error)) from None
            yield piece
            rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            # All input may have been read while output is left.
            has_more = len(piece) == _OUTPUT_BYTES and not decoder.eof
    if not decoder.eof:
        raise _damaged(name, "it ends early")


def _deflate_bits(body: bytes | bytearray) -> int:
    """Tells zlib's format, which the standard means, from the raw one that some clients send."""
    is_zlib = len(body) < 2 or (body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0)
    return _ZLIB_BITS if is_zlib else _RAW_BITS


def _damaged(name: str, reason: str) -> RequestFailed:
    return failures.invalid(f"The body is no {name} data, or damaged: {reason}")
