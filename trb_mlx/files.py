"""Files that are whole or absent, also after a power cut, and files of one JSON object a line."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trb_mlx.errors import RunError, UserError, reading

# macOS has it, since fsync does not flush the drive's cache there.
FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
_LARGEST = int(sys.float_info.max)
# What others may take for a line's end, and halves of surrogate pairs, which UTF-8 cannot hold.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place once it is written and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place once it is filled and on the disk."""
    draft, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for written in (*draft.rglob("*"), draft):
            sync(written)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)  # a folder cannot be renamed onto one that is not empty
        os.replace(draft, path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Put a text in the place of a file, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        if FULL_SYNC is None:
            os.fsync(number)
            return
        try:
            fcntl.fcntl(number, FULL_SYNC)
        except OSError:  # a file system without it, such as a network share
            os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which is gone afterwards; the system frees it if this process dies.

    Where the file system knows no locks (some network shares), nothing is held.

    Raises:
        RunError: another process holds it; `what` begins the sentence.
    """
    with _lock_file(path, what) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: nobody else can have made another


def _lock_file(path: Path, what: str) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()  # whoever held it removed it meanwhile
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(20)
            file.close()
            by = f"another process ({holder})" if holder else "another process"
            raise RunError(f"{what} is being worked on by {by}.") from error
        except OSError:
            return file


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full or failing disk into one sentence.

    Raises:
        RunError: instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{what} could not be written: {reason}; earlier files are whole."
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    r"""The objects of a JSON-lines file, in which only `\n` ends a line.

    A last line that a crash cut off is left out.

    Raises:
        UserError: the file is missing, or a whole line is not UTF-8 or not a JSON object.
    """
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    lines = [
        _parse_object(text, f"{path}:{at}") for at, text in enumerate(whole, 1) if text.strip()
    ]
    try:
        return [*lines, _parse_object(last, str(path))]
    except UserError:
        return lines


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics or samples, each with a whole number under `step`.

    Raises:
        UserError: as `read_lines`, or a line has no step.
    """
    lines = read_lines(path)
    for line in lines:
        step = line.get("step")
        if type(step) is not int or step < 0:
            raise UserError(f"{path} has a line without a step, expected one in each.")
    return lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics: a step, and numbers or nulls under every other name.

    Raises:
        UserError: as `read_steps`, or a metric is no number.
    """
    lines = read_steps(path)
    for line in lines:
        for name, value in line.items():
            if not isinstance(value, int | float | None):
                raise UserError(
                    f"{path} has {json_kind(value)} for {name} at step {line['step']}, expected "
                    "a number."
                )
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Put objects in the place of a JSON-lines file, whole or not at all."""
    write_text(path, "".join(json_line(line) for line in lines))


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]], synced: bool = False) -> None:
    """Add objects to a JSON-lines file; `synced`: they are on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json_line(line) for line in lines))
    if synced:
        sync(path)


def json_text(value: Any, indent: int | None = 2) -> str:
    """A value as JSON; numbers that are not finite become null, since JSON has none."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def json_line(value: Mapping[str, Any]) -> str:
    """An object as one line of JSON; numbers that are not finite become null."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def finite(value: Any) -> Any:
    """The value with null for every number that JSON, or a float, cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if isinstance(value, int) and abs(value) > _LARGEST else value


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Eight hexadecimal digits of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _parse_object(text: bytes, where: str) -> dict[str, Any]:
    with reading(where):
        value = finite(json.loads(text.decode("utf-8")))
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {json_kind(value)}, expected an object.")
    return value


def json_kind(value: Any) -> str:
    """What JSON calls a value, with its article."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")
