"""The folder of one export: whole or absent, and replaced only where we wrote all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trb_mlx.errors import UserError
from trb_mlx.files import disk_errors, json_text, replacing_folder

MARKER = "export.json"


@contextmanager
def writing_export(path: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """A draft folder that takes the place of `path` once it is filled.

    `export.json` keeps `facts` and the names of the files, by which a later export knows that
    it may replace the folder.

    Raises:
        UserError: the folder holds files that no export wrote.
        RunError: the disk is full or cannot be written.
    """
    check_replaceable(path)
    with disk_errors(f"the export {path}"), replacing_folder(path) as draft:
        yield draft
        values = {**facts, "files": list_files(draft)}
        (draft / MARKER).write_text(json_text(values) + "\n", encoding="utf-8")


def check_replaceable(path: Path) -> None:
    """Refuse a destination that holds anything but an earlier export.

    Raises:
        UserError: names the first such file.
    """
    if path.is_file():
        raise UserError(f"--out {path} is a file, expected a folder to be made.")
    if not path.is_dir():
        return
    written: set[str] = set()
    with suppress(OSError, ValueError, KeyError, TypeError):
        written = set(json.loads((path / MARKER).read_text(encoding="utf-8"))["files"])
    others = sorted({*list_files(path)} - written - {MARKER})
    if others:
        raise UserError(
            f"{path} holds {others[0]}, which no export wrote; move it away or name another --out."
        )


def list_files(folder: Path) -> list[str]:
    """The files below a folder, by their paths in it."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in files)
