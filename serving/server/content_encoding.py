"""Decompresses request bodies (`Content-Encoding`), within limits of size and time.

A few kilobytes can expand to gigabytes, so the size is checked after every chunk, not at the end.
"""

import time
import zlib
from collections.abc import Callable, Iterable

import grpc

from sigline.serving.server import failures
from sigline.serving.server.failures import RequestFailed

SUPPORTED = ("gzip", "deflate")
_ALIASES = {"x-gzip": "gzip"}
# Most codings of one body. Nobody needs two, and each costs a pass over the body.
_MAX_CODINGS = 4
# Most members of a gzip file. Each needs a new decoder, which costs far more than an empty member's
# few bytes, so that many of them would be an attack.
_MAX_MEMBERS = 1024
# Bytes that are decompressed, and produced, between two checks of the limits.
_INPUT_BYTES = 64 * 2**10
_OUTPUT_BYTES = 256 * 2**10
# zlib's `wbits`: with a gzip header, with a zlib header, without header.
_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 31, 15, -15


def codings(headers: Iterable[str]) -> tuple[str, ...]:
    """Returns the codings that `Content-Encoding` headers name, in the order of application.

    Raises:
        RequestFailed: With HTTP status 415 if one is not supported, or there are too many.
    """
    names = [name.strip().lower() for header in headers for name in header.split(",")]
    names = [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]
    supported = ", ".join(SUPPORTED)
    for name in names:
        if name not in SUPPORTED:
            raise _unsupported(f"Content-Encoding must be one of {supported}. Received: {name!r}")
    if len(names) > _MAX_CODINGS:
        raise _unsupported(
            f"Content-Encoding may name {_MAX_CODINGS} codings. Received: {len(names)}"
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
    on_grow: Callable[[int], None] = lambda num_bytes: None,
    on_shrink: Callable[[int], None] = lambda num_bytes: None,
) -> bytes | bytearray:
    """Returns a body with all of its codings undone.

    Args:
        body: The body as received.
        names: Its codings, as `codings` returns them.
        max_bytes: Largest size of the body, and of every intermediate result.
        deadline: Time of `time.monotonic` at which decoding stops.
        on_grow: Called with the size of every decoded chunk; may raise.
        on_shrink: Called with the size of every result that is no longer needed.

    Raises:
        RequestFailed: INVALID_ARGUMENT if the body is damaged, RESOURCE_EXHAUSTED with HTTP status
            413 if it is too large, DEADLINE_EXCEEDED if it takes too long.
    """
    for name in reversed(tuple(names)):
        decoded = bytearray()
        for chunk in _chunks(body, name, deadline):
            on_grow(len(chunk))
            if len(decoded) + len(chunk) > max_bytes:
                raise too_large(max_bytes)
            decoded += chunk
        on_shrink(len(body))
        body = decoded
    return body


def too_large(max_bytes: int) -> RequestFailed:
    """Returns the failure of a body that exceeds the limit, compressed or not."""
    return RequestFailed(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"The body may have {max_bytes} bytes; send several requests",
        http_status=413,
    )


def _chunks(body: bytes | bytearray, name: str, deadline: float) -> Iterable[bytes]:
    bits = _GZIP_BITS if name == "gzip" else _deflate_bits(body)
    decoder, members = zlib.decompressobj(bits), 1
    for start in range(0, len(body), _INPUT_BYTES):
        pending, has_more = bytes(body[start : start + _INPUT_BYTES]), False
        while pending or has_more:
            if time.monotonic() >= deadline:
                raise RequestFailed(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    "The deadline passed while the body was decompressed",
                )
            # More input after the end of the stream: allowed for gzip, whose files may be joined.
            if decoder.eof:
                members += 1
                if name != "gzip":
                    raise _damaged(name, "bytes follow its end")
                if members > _MAX_MEMBERS:
                    raise _damaged(name, f"it has more than {_MAX_MEMBERS} members")
                decoder = zlib.decompressobj(bits)
            try:
                chunk = decoder.decompress(pending, _OUTPUT_BYTES)
            except zlib.error as error:
                raise _damaged(name, str(error)) from None
            yield chunk
            pending = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            # The decoder may have consumed all input and still hold output.
            has_more = len(chunk) == _OUTPUT_BYTES and not decoder.eof
    if not decoder.eof:
        raise _damaged(name, "it ends early")


def _deflate_bits(body: bytes | bytearray) -> int:
    """Returns `wbits` for zlib's format, which RFC 9110 asks for, or for a raw deflate stream.

    Some clients send the raw stream. The first two bytes of zlib's header distinguish the two: the
    method, 8, and a checksum that makes them a multiple of 31 (RFC 1950).
    """
    is_zlib = len(body) < 2 or (body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0)
    return _ZLIB_BITS if is_zlib else _RAW_BITS


def _damaged(name: str, reason: str) -> RequestFailed:
    return failures.invalid(f"The body is not valid {name} data: {reason}")
