"""Files that stand for far more than they hold: refused before they take the memory."""

import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigline.components.ingest import reasons
from sigline.components.ingest.readers import bounds, parquet_pages
from sigline.components.ingest.readers.arrow import HuggingFaceReader, ParquetReader
from sigline.components.ingest.sources import SourceConfig
from sigline.components.shared.files import BeamFiles

MIB = 2**20
# What each bomb takes when it is written out.
BOMB = 64 * MIB


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch):
    """Bounds that bombs of some megabytes break."""
    monkeypatch.setattr(bounds, "FREE_BYTES", 4 * MIB)
    monkeypatch.setattr(bounds, "MOST_BYTES", 32 * MIB)
    monkeypatch.setattr(bounds, "ROW_BYTES", 8 * MIB)
    monkeypatch.setattr(parquet_pages, "_BATCH_BYTES", 8 * MIB)


def _read(path):
    """Returns the pairs of a file, and the most memory that Arrow took for them."""
    reader = ParquetReader() if path.suffix == ".parquet" else HuggingFaceReader()
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        files, config, found = BeamFiles(), SourceConfig(), []
        for part in reader.parts(str(path), files, config):
            found += reader.scan(part, files, config, 2**30)
    finally:
        pa.set_memory_pool(before)
    return found, pool.max_memory()


def _texts(pair):
    return tuple(text for text, _ in pair.captions)


def _parquet(path, table, **options):
    pq.write_table(table, path, **({"compression": "zstd"} | options))
    return path


def _one_page(path):
    """A text of zeros in a page of its own."""
    table = pa.table({"image": [b"1"], "caption": [b"\0" * BOMB]})
    return _parquet(path, table, use_dictionary=False, write_statistics=False)


def _dictionary_page(path):
    """A large text that many rows have, once in the file."""
    table = pa.table({"image": [b"1"] * 64, "caption": ["x" * (BOMB // 8)] * 64})
    return _parquet(path, table, write_statistics=False)


def _rows_of_a_dictionary(path):
    """A text below the bound of pages, that many rows have."""
    table = pa.table({"image": [b"1"] * 64, "caption": ["x" * (3 * MIB)] * 64})
    return _parquet(path, table, write_statistics=False)


def _list_of_a_dictionary(path):
    """A row whose list has a text of a dictionary very often."""
    table = pa.table({"image": [b"1"], "caption": [["x" * MIB] * 256]})
    return _parquet(path, table, write_statistics=False)


def _list_of_nothing(path):
    """A row whose list has very many values that take no room."""
    table = pa.table({"image": [b"1"], "numbers": [[0] * (8 * MIB)]})
    return _parquet(path, table, write_statistics=False)


def _many_columns(path):
    """Columns each below the bound, that together are above it."""
    table = pa.table({f"c{i}": [b"\0" * (3 * MIB)] for i in range(32)} | {"image": [b"1"]})
    return _parquet(path, table, use_dictionary=False, write_statistics=False)


def _ipc(path, table, *, as_file, compression="zstd"):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with make(str(path), table.schema, options=options) as writer:
        writer.write_table(table)
    return path


def _batch(path):
    return _ipc(path, pa.table({"image": [b"1"], "caption": ["x" * BOMB]}), as_file=False)


def _batch_of_a_file(path):
    return _ipc(path, pa.table({"image": [b"1"], "caption": ["x" * BOMB]}), as_file=True)


def _batch_lz4(path):
    table = pa.table({"image": [b"1"], "caption": ["x" * (8 * BOMB)]})
    return _ipc(path, table, as_file=False, compression="lz4")


def _dictionary_batch(path):
    caption = pa.array(["x" * BOMB]).dictionary_encode()
    return _ipc(path, pa.table({"image": [b"1"], "caption": caption}), as_file=False)


def _rows_of_a_dictionary_batch(path):
    caption = pa.DictionaryArray.from_arrays(pa.array([0] * 16), pa.array(["x" * (3 * MIB)]))
    lists = pa.ListArray.from_arrays(pa.array([0, 16]), caption)
    return _ipc(path, pa.table({"image": [b"1"], "caption": lists}), as_file=False)


REFUSED = {
    "page": (_one_page, "x.parquet", "a page of column caption"),
    "dictionary page": (_dictionary_page, "x.parquet", "a page of column caption"),
    "list of nothing": (_list_of_nothing, "x.parquet", "column numbers.list.element"),
    "many columns": (_many_columns, "x.parquet", "a row of row group 0"),
    "batch": (_batch, "x.arrow", "a batch"),
    "batch of a file": (_batch_of_a_file, "x.arrow", "a batch"),
    "batch in LZ4": (_batch_lz4, "x.arrow", "a batch"),
    "dictionary batch": (_dictionary_batch, "x.arrow", "a batch"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bomb_is_refused_before_it_takes_memory(tmp_path, kind):
    write, name, said = REFUSED[kind]
    path = write(tmp_path / name)
    assert path.stat().st_size < MIB * 3
    (pair,), most = _read(path)
    assert pair.problem.reason == reasons.DAMAGED_ARCHIVE
    assert f"{said} of " in pair.problem.detail
    assert most < 16 * MIB


@pytest.mark.parametrize(
    ("write", "name"),
    [(_list_of_a_dictionary, "x.parquet"), (_rows_of_a_dictionary_batch, "x.arrow")],
)
def test_row_that_is_too_large_costs_itself_only(tmp_path, write, name):
    (pair,), most = _read(write(tmp_path / name))
    assert pair.problem.reason == reasons.INVALID_ROW
    assert "a row of " in pair.problem.detail
    assert most < 32 * MIB


def test_rows_of_a_large_text_are_read_few_at_a_time(tmp_path):
    pairs, most = _read(_rows_of_a_dictionary(tmp_path / "x.parquet"))
    assert len(pairs) == 64
    assert all(pair.problem is None and len(_texts(pair)[0]) == 3 * MIB for pair in pairs)
    assert most < 32 * MIB


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "lz4", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_rows_are_those_that_were_written(tmp_path, compression, version):
    table = pa.table(
        {
            "image": [bytes([i]) * 3000 for i in range(100)],
            "caption": [[f"caption {i % 7}", f"another {i}"] for i in range(100)],
            "width": list(range(100)),
        }
    )
    options = {"data_page_version": version, "row_group_size": 40, "data_page_size": 2000}
    path = _parquet(tmp_path / "x.parquet", table, compression=compression, **options)
    pairs, _ = _read(path)
    assert [_texts(pair) for pair in pairs] == [tuple(x) for x in table["caption"].to_pylist()]
    assert all(pair.problem is None for pair in pairs)


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_batches_are_those_that_were_written(tmp_path, as_file, compression):
    caption = pa.array(["a", "b", "a", "c"] * 25).dictionary_encode()
    table = pa.table({"image": [b"x" * 500] * 100, "caption": caption})
    path = _ipc(tmp_path / "x.arrow", table, as_file=as_file, compression=compression)
    pairs, _ = _read(path)
    assert [_texts(pair) for pair in pairs] == [(x,) for x in ["a", "b", "a", "c"] * 25]


def test_damaged_headers_are_one_problem(tmp_path):
    table = pa.table({"image": [b"1"] * 50, "caption": [f"{i}" for i in range(50)]})
    path = _parquet(tmp_path / "x.parquet", table)
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    for fill in (0x00, 0xFF, 0x15, 0x1C, 0x19):
        content[start : start + 12] = bytes([fill]) * 12
        path.write_bytes(content)
        pairs, _ = _read(path)
        assert pairs[-1].problem.reason == reasons.DAMAGED_ARCHIVE


def test_header_is_read_as_the_format_has_it():
    # A data page of 5 values with statistics of bytes, then fields that are not known.
    content = bytes([0x15, 0, 0x15, 200, 1, 0x15, 100, 0x2C, 0x15, 10, 0x15, 0, 0x15, 0, 0x15, 0])
    content += bytes([0x1C, 0x18, 2, 1, 2, 0, 0, 0x39, 0x25, 2, 4, 0x17]) + struct.pack("<d", 1.0)
    page, length = parquet_pages._header(content + bytes([0]))
    assert page == parquet_pages.Page(0, 100, 50, 5)
    assert length == len(content) + 1
    with pytest.raises(pa.ArrowInvalid, match="ends early"):
        parquet_pages._header(content)
    with pytest.raises(pa.ArrowInvalid, match="nested too deeply"):
        parquet_pages._header(bytes([0x1C]) * 100)
