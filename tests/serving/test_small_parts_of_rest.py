"""Base64 and origins, without a server."""

import base64

import pytest

from sigline.serving.server import lenient_base64
from sigline.serving.server.cors import Cors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", b""),
        ("YQ==", b"a"),
        ("YQ", b"a"),
        ("YWI=", b"ab"),
        ("YWI", b"ab"),
        ("YWJj", b"abc"),
        ("YWJj\n", b"abc"),
        ("YW\r\nJj\r\n", b"abc"),
        (" Y\tW\vJ\fj ", b"abc"),
        ("YQ=\n=", b"a"),
        ("YQ == \n", b"a"),
        # Abseil takes a dot for padding, and does not look at bits that are left over.
        ("YQ..", b"a"),
        ("YR==", b"a"),
        ("\n\n", b""),
        ("+/+/", b"\xfb\xff\xbf"),
    ],
)
def test_base64_is_read_as_abseil_reads_it(text, expected):
    assert lenient_base64.decode(text) == expected


@pytest.mark.parametrize(
    "text",
    ["Y", "YWJjY", "YQ=", "YQ===", "YWI==", "YWJj=", "====", "YQ==YQ==", "YQ=a", "-_-_", "a?", "é",
     "Y\0Q=", "YQ\xa0=="],
)  # fmt: skip
def test_other_text_is_no_base64(text):
    with pytest.raises(ValueError, match=r"\w"):
        lenient_base64.decode(text)


def test_any_bytes_come_back_whatever_breaks_their_lines():
    content = bytes(range(256)) * 40
    for size in range(len(content) - 3, len(content)):
        whole = content[:size]
        assert lenient_base64.decode(base64.encodebytes(whole).decode()) == whole
        assert lenient_base64.decode(base64.b64encode(whole).decode().rstrip("=")) == whole


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ("https://a.org/", "without a path"),
        ("https://a.org/x", "without a path"),
        ("a.org", "must be origins"),
        ("", "must be origins"),
        ("ftp://a.org", "must begin with http"),
        ("https://", "must begin with http"),
        ("null", "must be origins"),
    ],
)
def test_what_is_no_origin_is_refused(origin, reason):
    with pytest.raises(ValueError, match=reason):
        Cors((origin,))
