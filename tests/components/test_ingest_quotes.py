"""Delimited tables: every line ends in a pair or in a rejection that names it."""

import gzip
import io
import random

import pytest

from sigline.components.ingest import readers, reasons, sources


class Memory(dict):
    """Files by path, in memory."""

    def open(self, path):
        return io.BytesIO(self[path])

    def find(self, folder):
        return sorted(path for path in self if path.startswith(folder + "/"))


def _read(path, content, **options):
    files, config = Memory({path: content}), sources.SourceConfig(**options)
    reader = readers.READERS["table"]
    return [
        pair
        for part in reader.parts(path, files, config)
        for pair in reader.scan(part, files, config, 1000)
    ]


def _summary(pairs):
    """Returns the name of each pair's image and its captions; of others their reason."""
    return [
        pair.problem.reason
        if pair.problem is not None
        else (pair.image_path, *(text for text, _ in pair.captions))
        for pair in pairs
    ]


# Five rows, as web captions are: quotes open in one row and close in another.
TSV = (
    b"image\tcaption\n"
    b'a.png\t"Happy" they said\n'
    b'b.png\t"A quote that opens\n'
    b"c.png\ta cat\n"
    b'd.png\tand one that closes"\n'
    b'e.png\t5" plate\n'
)
TSV_ROWS = [
    ("a.png", '"Happy" they said'),
    ("b.png", '"A quote that opens'),
    ("c.png", "a cat"),
    ("d.png", 'and one that closes"'),
    ("e.png", '5" plate'),
]


@pytest.mark.parametrize(
    ("path", "content"),
    [("t.tsv", TSV), ("t.tsv.gz", gzip.compress(TSV)), ("t.tsv", TSV.replace(b"\n", b"\r\n"))],
)
def test_quotes_of_tsv_are_characters_like_others(path, content):
    assert _summary(_read(path, content)) == TSV_ROWS


def test_quoting_is_chosen_for_either_kind_of_table():
    quoted = b'image\tcaption\na.png\t"a ""big""\tdog"\n'
    assert _summary(_read("t.tsv", quoted, quoting="minimal")) == [("a.png", 'a "big"\tdog')]
    plain = TSV.replace(b"\t", b",")
    assert _summary(_read("t.csv", plain, quoting="none")) == TSV_ROWS


def test_quoted_field_that_swallows_rows_is_refused_and_they_are_read():
    """`b.png`'s quote closes behind `d.png`'s caption, at the end of the line: valid CSV."""
    content = TSV.replace(b"\t", b",").replace(b'"Happy" they', b"They")
    pairs = _read("t.csv", content)
    expected = [("a.png", "They said"), reasons.INVALID_ROW, *TSV_ROWS[2:]]
    assert _summary(pairs) == expected
    assert "row in line 3" in pairs[1].problem.detail
    assert "spans 3 lines" in pairs[1].problem.detail
    assert "source.quoting" in pairs[1].problem.detail


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # A text of several lines, without delimiters, is one.
        (b'a.png,"one\ntwo"\n', [("a.png", "one\ntwo")]),
        (b'a.png,"one\r\ntwo"\r\n', [("a.png", "one\r\ntwo")]),
        (b'a.png,"one, two"\n', [("a.png", "one, two")]),
        (b'a.png,""\n', [("a.png", "")]),
        (b'a.png,"say ""hi"""\n', [("a.png", 'say "hi"')]),
        (b'a.png,5" plate\n', [("a.png", '5" plate')]),
        (b'a.png,x\nb.png,"', [("a.png", "x"), reasons.INVALID_ROW]),
        (b'a.png,x\n"', [("a.png", "x"), reasons.INVALID_ROW]),
        (b'a.png,"x" y\nb.png,z\n', [reasons.INVALID_ROW, ("b.png", "z")]),
        (b'a.png,"\\"hi\\""\nb.png,z\n', [reasons.INVALID_ROW, ("b.png", "z")]),
        # Rows that a quote joins into one of too many fields.
        (b'a.png,"x\nb.png",y\nc.png,z\n', [reasons.INVALID_ROW, ('b.png"', "y"), ("c.png", "z")]),
        (b"a.png\nb.png,x,y\nc.png,z\n", [reasons.INVALID_ROW] * 2 + [("c.png", "z")]),
        (b"\n\na.png,x\n\n\nb.png,y", [("a.png", "x"), ("b.png", "y")]),
        (b"a.png,x\0y\n", [("a.png", "x\0y")]),
        (b"a.png," + b"x" * 140_000 + b"\nb.png,y\n", [reasons.INVALID_ROW, ("b.png", "y")]),
    ],
)
def test_rows_of_csv(rows, expected):
    assert _summary(_read("t.csv", b"image,caption\n" + rows)) == expected


@pytest.mark.parametrize("delimiter", [";", "|"])
def test_other_delimiters_are_what_a_quoted_field_may_hold_too(delimiter):
    rows = 'image;caption\na.png;"x; y"\nb.png;"open\nc.png;5""\nd.png;z"\n'
    content = rows.replace(";", delimiter).encode()
    pairs = _read("t.csv", content, delimiter=delimiter)
    assert _summary(pairs) == [
        ("a.png", f"x{delimiter} y"),
        reasons.INVALID_ROW,
        ("c.png", '5""'),
        ("d.png", 'z"'),
    ]


def test_column_alone_has_no_field_of_several_lines():
    content = b'url\n"http://a.example/1.png\nhttp://a.example/2.png"\n'
    first, second = _read("t.csv", content, caption=("url",))
    assert (first.problem.reason, first.image_url) == (reasons.INVALID_ROW, None)
    assert second.image_url == 'http://a.example/2.png"'


def test_delimiter_that_is_another_is_named():
    pairs = _read("t.csv", b"image;caption\na.png;x\nb.png;y\n")
    assert len(pairs) == 2
    assert all("source.delimiter" in pair.problem.detail for pair in pairs)


@pytest.mark.parametrize("path", ["t.csv", "t.tsv", "t.csv.gz"])
def test_returns_alone_end_lines(path):
    delimiter = "\t" if path == "t.tsv" else ","
    content = f"image{delimiter}caption\ra.png{delimiter}x\rb.png{delimiter}y".encode()
    content = gzip.compress(content) if path.endswith(".gz") else content
    assert _summary(_read(path, content)) == [("a.png", "x"), ("b.png", "y")]


def test_returns_alone_end_lines_of_json_in_ranges(monkeypatch):
    from sigline.components.ingest.readers import tables

    lines = b"\r".join(b'{"image": "%d.png", "caption": "x"}' % i for i in range(9))
    for size in (1, 7, 40, 1000):
        monkeypatch.setattr(tables, "_PART_BYTES", size)
        assert [pair.image_path for pair in _read("t.jsonl", lines)] == [
            f"{i}.png" for i in range(9)
        ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_one_sentence(encoding):
    (pair,) = _read("t.csv", "image,caption\na.png,x\n".encode(encoding))
    assert pair.problem.reason == reasons.INVALID_UTF8
    assert "UTF-8" in pair.problem.detail


def test_columns_of_one_name_are_named_for_each_row():
    pairs = _read("t.csv", b"image,caption,caption\na.png,x,y\nb.png,x,y\n")
    assert [pair.problem.reason for pair in pairs] == [reasons.INVALID_ROW] * 2
    assert "two columns have the name 'caption'" in pairs[0].problem.detail


@pytest.mark.parametrize("path", ["t.tsv", "t.csv"])
def test_table_without_header_loses_no_row(path):
    delimiter = "\t" if path == "t.tsv" else ","
    rows = [("a very typical bus station", "http://a.example/1.jpg"), ("sierra", "HTTP://a/2")]
    content = "".join(delimiter.join(row) + "\n" for row in rows).encode()
    refused = _read(path, content)
    assert [pair.problem.reason for pair in refused] == [reasons.INVALID_ROW] * 2
    assert "source.columns" in refused[0].problem.detail
    named = _read(path, content, columns=("caption", "url"))
    assert [(pair.captions[0][0], pair.image_url) for pair in named] == rows


def test_names_of_columns_are_compared_without_case():
    (pair,) = _read("t.csv", b"SAMPLE_ID,FILENAME,TEXT,Language,LABEL\n1,a.png,a dog,en,3\n")
    assert (pair.image_path, pair.captions, pair.label) == ("a.png", (("a dog", "en"),), "3")
    assert pair.extra == {"SAMPLE_ID": "1"}
    (exact,) = _read("t.csv", b"IMAGE,image,caption\nA.png,a.png,x\n")
    assert exact.image_path == "a.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quoting": "all"}, "source.quoting must be one of none, minimal"),
        ({"delimiter": '"'}, "source.delimiter must be one character, and no quote"),
        ({"columns": ("a", "a")}, "source.columns must name each column once"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sources.SourceConfig(**options)


def test_return_alone_within_a_line_costs_its_line_and_is_named():
    pairs = _read("t.csv", b'image,caption\r\na.png,x\rb.png,y\r\nc.png,"z\rz"\r\n')
    assert _summary(pairs) == [reasons.INVALID_ROW, ("c.png", "z\rz")]
    assert "row in line 2" in pairs[0].problem.detail
    assert "a carriage return stands in the line alone" in pairs[0].problem.detail


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_without_quotes_are_read_whatever_stands_around_them(end):
    """Rows are written without quoting, as exports often are; some captions hold quotes."""
    draw = random.Random(7)
    pieces = ['"', '""', "a", "b c", ",", "'", "\\", "\t", "[", "ü"]
    for _ in range(300):
        captions = ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(8)]
        rows = [f"{i}.png,{caption}" for i, caption in enumerate(captions)]
        pairs = _read("t.csv", "".join(f"{x}{end}" for x in ("image,caption", *rows)).encode())
        plain = {i: x for i, x in enumerate(captions) if not set(x) & {'"', ","}}
        read = {pair.image_path: pair.captions[0][0] for pair in pairs if pair.problem is None}
        assert {i: read.get(f"{i}.png") for i in plain} == plain
        # One line is one row or one rejection, but for fields of several lines.
        assert len(pairs) + sum(text.count("\n") for text in read.values()) == len(rows)
