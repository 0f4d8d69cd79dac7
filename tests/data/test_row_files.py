"""Files of rows: one content in every format, and what is wrong with a file and where."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from data.reading import complaint, read
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from trb_mlx.data.examples import Example

ROWS = [{"question": "p\u2028q\x85r", "answer": "07"}, {"question": 'a, "b"\nc', "answer": "1,200"}]
EXPECTED = [Example("p\u2028q\x85r", "07"), Example('a, "b"\nc', "1200")]


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS), "utf-8")


def table(path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)


def packed(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def write_packed(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_packed


def rows_as(value: Any, **keys: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps(value, **keys))


WRITERS = {
    "a.jsonl": lines,
    "a.ndjson": lines,
    "a.JSONL": lines,
    "lines.json": lines,
    "list.json": rows_as(ROWS),
    "indented.json": rows_as(ROWS, indent=2),
    "object.json": rows_as({"version": "1", "data": ROWS}, indent=1),
    "a.csv": table,
    "a.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
    "a.jsonl.gz": packed(lines),
    "a.json.gz": packed(rows_as(ROWS)),
    "a.csv.gz": packed(table),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_any_format_holds_the_same_examples(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert read(str(tmp_path / name)) == EXPECTED


def test_a_csv_with_an_index_column_and_empty_cells_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",question,answer\n0,p,007\n1,q,\n2,r\n")
    assert read(str(path)) == [Example("p", "007"), Example("q"), Example("r")]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_only_the_line_feed_ends_a_line(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    rows = (json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)
    path.write_bytes("\n".join(rows).encode())
    assert [example.text for example in read(str(path))] == texts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"prompt": "a"}\n{"prompt": \xff}\n', "is not UTF-8 text"),
        (b'{"prompt": "a"}\n{"answer": ' + b"9" * 5000 + b"}", ":2 holds an integer of too many"),
        (b'{"prompt": "a"}\n' + b"[" * 100_000, ":2 is nested too deeply"),
    ],
)
def test_what_no_json_reader_takes_is_one_sentence(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    assert expected in complaint(str(path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', "a.json:2 is not JSON"),
        ("a.json", b'"text"', "holds a str, expected a list of rows"),
        ("a.json", b'[{"prompt": "a"}, 3]', "a.json, row 2 holds a int, expected an object"),
        ("a.csv", b"question,answer\na,b,c\n", "a.csv:2 has more cells than the first line"),
        ("a.csv", b"question\n\xff\n", "is not UTF-8 text"),
        ("a.csv", b"", "is empty"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99)[:30], "cannot be read"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in complaint(str(path))
