"""Which columns tables of URLs have, and what the command says of tables that have none."""

import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigline import cli
from sigline.commands import fetch as fetch_command
from sigline.components.fetch import url_tables
from sigline.components.ingest import readers, sources
from sigline.schemas.entries import Entry

URL = "http://a.example/1.jpg"


class Memory(dict):
    """Files by path, in memory."""

    def open(self, path):
        return io.BytesIO(self[path])

    def find(self, folder):
        return sorted(path for path in self if path.startswith(folder + "/"))

    def entries(self, folder):
        return [Entry(path) for path in self.find(folder)]


def _rows(name, content, **options):
    files = Memory({f"d/{name}": content})
    tables = url_tables.find("d", "out", files, sources.SourceConfig(**options))
    return [
        (row.image_url, [text for text, _ in row.captions or ()])
        for item in tables.parts
        for row in readers.READERS[item.format].scan(item.part, files, item.source, 0)
    ]


def _parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _arrow(rows):
    table, buffer = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # LAION, COYO and DataComp, CC12M with a header, a path beside the URL.
        ("t.parquet", _parquet([{"SAMPLE_ID": 1, "URL": URL, "TEXT": "a dog", "LICENSE": "?"}])),
        ("t.parquet", _parquet([{"id": 1, "url": URL, "text": "a dog", "phash": "0"}])),
        ("t.csv", f"filename,file_name,path,image,url,caption\nx,x,x,x,{URL},a dog\n".encode()),
        ("t.tsv", f"caption\timage_url\na dog\t {URL} \n".encode()),
        ("t.jsonl", json.dumps({"file_name": "x.jpg", "Url": URL, "Caption": "a dog"}).encode()),
        ("t.jsonl", json.dumps({"image": f"\t{URL}\n", "caption": "a dog"}).encode()),
        ("x/t.arrow", _arrow([{"Image_URL": URL, "title": "a dog"}])),
    ],
)
def test_usual_names_are_known_in_any_case_and_urls_come_first(name, content):
    assert _rows(name, content) == [(URL, ["a dog"])]


@pytest.mark.parametrize(
    "url", ["HTTP://a.example/1.jpg", "\ufeffHttps://a.example/\u00fc 1.jpg\xa0"]
)
def test_urls_may_be_in_upper_case_and_between_blanks(url):
    ((found, _),) = _rows("t.csv", f"url,caption\n  {url} ,x\n".encode())
    assert found == url.strip("\ufeff\xa0")


def test_table_without_a_header_loses_no_row():
    """As CC3M's and CC12M's are, with quotes that mean nothing."""
    content = f'"Dogs" at play\t{URL}\na "cat\thttp://b.example/2\n'.encode()
    expected = [(URL, ['"Dogs" at play']), ("http://b.example/2", ['a "cat'])]
    assert _rows("t.tsv", content, columns=("caption", "url")) == expected
    with pytest.raises(ValueError, match=r"--columns caption url.*'\"Dogs\" at play, http://a\.ex"):
        _rows("t.tsv", content)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "t.csv",
            b"URL,TEXT\nx,y\n",
            {"image": "urll"},
            r"--url-column must name a column of t\.csv, which has the columns URL, TEXT\. "
            r"Received: --url-column urll\. Did you mean 'URL'\?",
        ),
        ("t.jsonl", b'{"a": 1}\n{"b": 2}', {"image": "url"}, "which has the columns a, b"),
        ("t.parquet", _parquet([{"link": URL}]), {}, r"--url-column names one.* the columns link"),
        ("t.csv", b"url,text\nx,y\n", {"caption": ("alt",)}, "--caption-column must name a column"),
        ("t.csv", b"url,text\nx,y\n", {"columns": ("URL", "text")}, "leave them out"),
        ("t.csv", b"x,y,z\n", {"columns": ("url", "text")}, "t.csv has 3 fields in its first row"),
        ("t.jsonl", b'{"url": 1}', {"columns": ("url",)}, "JSON Lines name their columns"),
        ("t.tar", b"", {}, "input must hold tables of URLs"),
    ],
)
def test_column_that_is_not_there_is_named_beside_those_that_are(name, content, options, message):
    with pytest.raises(ValueError, match=message):
        _rows(name, content, **options)


def test_list_of_urls_needs_no_columns():
    files = Memory({"d/l.txt": f" {URL} \n\nHTTP://b/2\n".encode()})
    source = sources.SourceConfig(format="list")
    (item,) = url_tables.find("d", "out", files, source).parts
    rows = readers.READERS["list"].scan(item.part, files, item.source, 0)
    assert [row.image_url for row in rows] == [URL, "HTTP://b/2"]


def test_column_is_named_in_any_case_and_images_may_lack_captions():
    assert _rows("t.csv", f"LINK,n\n{URL},1\n".encode(), image="link") == [(URL, [])]
    files = Memory({"d/t.csv": f"url,n\n{URL},1\n".encode()})
    assert url_tables.find("d", "o", files, sources.SourceConfig()).without_captions == ("t.csv",)


def test_tables_that_cannot_be_read_are_left_to_their_rows():
    assert _rows("t.parquet", b"PAR1") == [(None, [])]
    assert _rows("t.csv", b"") == [(None, [])]


@pytest.mark.parametrize(
    ("counts", "sentences"),
    [
        ({"input": 3, "by_status": {"success": 1, "http_404": 2}}, []),
        ({"input": 3, "by_status": {"http_404": 3}}, ["none of the 3 images was fetched"]),
        ({"input": 0, "by_status": {}}, ["the tables hold no rows"]),
        (
            {
                "input": 3,
                "by_status": {"success": 1, "no_url": 2},
                "tables_without_urls": ["b.csv"],
            },
            ["no row of b.csv names a URL"],
        ),
    ],
)
def test_what_counts_as_failed_is_said(counts, sentences):
    found = fetch_command.problems({"tables_without_urls": []} | counts)
    assert len(found) == len(sentences)
    assert all(part in sentence for part, sentence in zip(sentences, found, strict=True))


def test_command_fails_if_nothing_is_fetched(tmp_path, capsys):
    """This machine's own addresses are not asked, so that no row ends otherwise."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("URL,TEXT\nhttp://127.0.0.1/a.png,x\n")
    (tmp_path / "in" / "b.csv").write_text("URL,TEXT\nimages/a.png,x\nimages/b.png,y\n")
    output = tmp_path / "out"
    arguments = ["data", "fetch", "--input", str(tmp_path / "in"), "--output", str(output)]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert "none of the 3 images was fetched" in printed.err
    assert "no row of b.csv names a URL" in printed.err
    counts = json.loads((output / "counts.json").read_text())
    assert counts == {
        "input": 3,
        "by_status": {"no_url": 2, "private_address": 1},
        "tables_without_urls": ["b.csv"],
    }


def test_wrong_arguments_are_refused_before_heavy_imports(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("URL,TEXT\nx,y\n")
    code = (
        "import sys\nfrom sigline import cli\n"
        "code = cli.main(['data', 'fetch', '--input', 'in', '--output', 'out', "
        "'--url-column', 'link'])\n"
        "print(code, sorted({'apache_beam', 'tensorflow', 'tfx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "2 []\n"
    assert "which has the columns URL, TEXT" in done.stderr


def test_files_beside_the_tables_that_may_hold_rows_are_named():
    content = f"url,caption\n{URL},x\n".encode()
    names = ("d/t.csv", "d/more.xlsx", "d/README.md", "d/other/a.tar")
    files = Memory({name: content for name in names})
    tables = url_tables.find("d", "out", files, sources.SourceConfig())
    assert tables.passed_over == (("more.xlsx", "unknown_format"), ("other/a.tar", "webdataset"))


def test_listed_file_that_is_not_there_is_refused():
    listed = {"_data_files": [{"filename": "a.arrow"}, {"filename": "b.arrow"}]}
    rows = _arrow([{"url": URL, "caption": "x"}])
    files = Memory({"d/a.arrow": rows, "d/state.json": json.dumps(listed).encode()})
    with pytest.raises(ValueError, match=r"must be there. Received: d/b\.arrow"):
        url_tables.find("d", "out", files, sources.SourceConfig())
