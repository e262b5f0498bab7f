"""Compressed bodies without a server: what is decoded, what is refused, and what it holds."""

import gzip
import math
import time
import zlib

import pytest

from sigline.serving.server import content_encoding
from sigline.serving.server.buffered_bytes import BufferedBytes
from sigline.serving.server.failures import RequestFailed

TEXT = b'{"instances": ["1"]}' * 1000
FOREVER = math.inf


def raw_deflate(content):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def _decoded(body, *names, max_bytes=2**20, deadline=FOREVER, **told):
    return bytes(
        content_encoding.decode(body, names, max_bytes=max_bytes, deadline=deadline, **told)
    )


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (TEXT, ()),
        (gzip.compress(TEXT), ("gzip",)),
        (zlib.compress(TEXT), ("deflate",)),
        (raw_deflate(TEXT), ("deflate",)),
        (zlib.compress(gzip.compress(TEXT)), ("gzip", "deflate")),
        (gzip.compress(gzip.compress(TEXT)), ("gzip", "gzip")),
        (gzip.compress(TEXT[:70]) + gzip.compress(TEXT[70:]), ("gzip",)),
        (gzip.compress(b"") + gzip.compress(TEXT), ("gzip",)),
    ],
)
def test_body_is_what_was_compressed(body, names):
    assert _decoded(body, *names) == TEXT


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 2**20])
def test_sizes_around_a_piece_are_whole(size):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    for body, name in ((gzip.compress(content), "gzip"), (raw_deflate(content), "deflate")):
        assert _decoded(body, name) == content
    if size:
        with pytest.raises(RequestFailed) as caught:
            _decoded(gzip.compress(content), "gzip", max_bytes=size - 1)
        assert (caught.value.http_status, caught.value.code.name) == (413, "RESOURCE_EXHAUSTED")


_GZIP = gzip.compress(TEXT)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "gzip"),
        (b"", "deflate"),
        (TEXT, "gzip"),
        (b"\x1f", "gzip"),
        (_GZIP[:-1], "gzip"),
        (_GZIP[:-8], "gzip"),
        (_GZIP[:-8] + b"\0" * 8, "gzip"),
        (_GZIP + b"rest", "gzip"),
        (_GZIP[:20] + b"\xff" + _GZIP[21:], "gzip"),
        (gzip.compress(b"") * 1025, "gzip"),
        (zlib.compress(TEXT)[:-1], "deflate"),
        (zlib.compress(TEXT) + b"x", "deflate"),
        (raw_deflate(TEXT)[:-1], "deflate"),
        (b"\xff\xff\xff", "deflate"),
    ],
)
def test_damaged_body_is_the_clients_fault(body, name):
    with pytest.raises(RequestFailed, match=f"not valid {name} data") as caught:
        _decoded(body, name)
    assert (caught.value.http_status, caught.value.code.name) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ([], ()),
        (["identity"], ()),
        (["GZip"], ("gzip",)),
        (["x-gzip"], ("gzip",)),
        (["gzip, deflate"], ("gzip", "deflate")),
        (["gzip", "deflate,identity"], ("gzip", "deflate")),
    ],
)
def test_headers_name_codings_in_their_order(headers, names):
    assert content_encoding.codings(headers) == names


@pytest.mark.parametrize("header", ["br", "zstd", "compress", "gzip, br", "gzip;q=1", "gzip," * 5])
def test_coding_that_is_not_supported_is_415(header):
    with pytest.raises(RequestFailed, match="Content-Encoding m") as caught:
        content_encoding.codings([header])
    assert caught.value.http_status == 415


def test_bound_holds_between_two_codings():
    inner = gzip.compress(b"\0" * 2**20, 0)
    with pytest.raises(RequestFailed, match="may have 1048576 bytes"):
        _decoded(gzip.compress(inner), "gzip", "gzip")


def test_decoding_ends_with_the_deadline():
    with pytest.raises(RequestFailed) as caught:
        _decoded(_GZIP, "gzip", deadline=time.monotonic())
    assert caught.value.code.name == "DEADLINE_EXCEEDED"


def test_every_piece_is_counted_before_it_is_kept():
    total = BufferedBytes(2**20)
    body = gzip.compress(b"\0" * 2**20)
    with total.reserve() as reservation:
        reservation.grow(len(body))
        decoded = _decoded(body[:], "gzip", max_bytes=2**21, on_grow=lambda n: None)
        assert len(decoded) == 2**20
        with pytest.raises(RequestFailed, match=r"of at most 1048576; send it again later"):
            _decoded(
                body,
                "gzip",
                max_bytes=2**21,
                on_grow=reservation.grow,
                on_shrink=reservation.shrink,
            )
        assert total.now <= 2**20
    assert total.now == 0
    with total.reserve() as reservation:
        reservation.grow(100)
        reservation.grow(1000)
        reservation.shrink(100)
        assert total.now == 1000
    assert total.now == 0
