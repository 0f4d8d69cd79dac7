"""Rows of single files: JSON lines, JSON, CSV and Parquet, packed by gzip or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from trb_mlx.errors import UserError, one_line

Rows = Iterable[tuple[str, dict[str, Any]]]  # (where it stands, the row)
_PLAIN_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
ENDINGS = (*_PLAIN_ENDINGS, *(f"{end}.gz" for end in _PLAIN_ENDINGS[:-1]))
LONGEST_CELL = 2**31 - 1  # csv stops at 131,072 characters otherwise


def ending(path: Path) -> str | None:
    """The ending by which a file's format is known, or None."""
    return next((end for end in ENDINGS if path.name.casefold().endswith(end)), None)


def file_rows(path: Path) -> Rows:
    """Yield (where, row) of a file, where being `file:line` or `file, row N`.

    Raises:
        UserError: it cannot be read, is of another format, or holds what is no row.
    """
    end = ending(path)
    if end is None:
        raise UserError(
            f"{path} is not a .jsonl file, nor one of {', '.join(ENDINGS[1:])}; "
            "expected one, a folder or a Hub id."
        )
    read = _READERS[end.removesuffix(".gz")]
    try:
        with path.open("rb") as file:
            unpacked = gzip.GzipFile(fileobj=file) if end.endswith(".gz") else file
            yield from read(path, cast(IO[bytes], unpacked))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, expected {end} in it.") from error
    except (OSError, EOFError, zlib.error) as error:  # the last two are gzip's
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read: {reason}.") from error


def _jsonl(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Lines end at `\n` only: U+2028, U+2029 and U+0085 are characters like others."""
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if text.strip():
            where = f"{path}:{number}"
            yield where, _object(_parsed(text.decode(), where), where)


def _json(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of rows, an object with one, or JSON lines under another name."""
    data = file.read().removeprefix(b"\xef\xbb\xbf")
    first = data.strip().split(b"\n", 1)[0]
    if data.strip().count(b"\n") and _is_object(first):
        yield from _jsonl(path, io.BytesIO(data))
        return
    value = _parsed(data.decode(), str(path))
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 and lists[0] else [value]
    if not isinstance(value, list):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a list of rows.")
    for number, row in enumerate(value, start=1):
        where = f"{path}, row {number}"
        yield where, _object(row, where)


def _csv(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")  # cells may hold line ends
    reader = csv.DictReader(text)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:  # (where the reader puts what has no column)
                raise UserError(f"{where} has more cells than the first line has columns.")
            yield where, {name: value or None for name, value in row.items()}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num} is not CSV: {error}.") from error
    finally:
        text.detach()  # the file is closed where it was opened


def _parquet(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"{path} needs `pip install pyarrow`.") from error
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (ValueError, OSError, NotImplementedError) as error:  # pyarrow's errors are of these
        reason = one_line(str(error), 200)
        raise UserError(f"{path} cannot be read as Parquet: {reason}.") from error


_READERS: dict[str, Callable[[Path, IO[bytes]], Rows]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = where if error.lineno == 1 else f"{where}:{error.lineno}"
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from error
    except ValueError as error:  # Python reads integers of up to 4,300 digits
        raise UserError(f"{where} holds an integer of too many digits.") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply.") from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where} holds a {type(row).__name__}, expected an object with columns.")
    return row
