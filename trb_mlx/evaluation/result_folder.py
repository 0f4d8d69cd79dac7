"""The folder of one evaluation: its settings, a line a problem, and the result."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trb_mlx.errors import UserError, reading
from trb_mlx.files import (
    append_lines,
    disk_errors,
    json_digest,
    json_text,
    read_lines,
    write_lines,
    write_text,
)

Line = dict[str, Any]


class ResultFolder:
    """`PARENT/NAME-nSAMPLES-DIGEST/`, which the same settings open again and no others.

    `problems.jsonl` grows as problems finish; `result.json` is written at the end.
    """

    def __init__(self, parent: Path, name: str, settings: Mapping[str, Any]) -> None:
        """Make the folder, or open the one that these settings made.

        Raises:
            UserError: it cannot be written, or holds other settings.
        """
        stem = Path(name).stem if "/" in name else name
        slug = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "data"  # any file system takes it
        self.path = parent / f"{slug}-n{settings['samples']}-{json_digest(settings)}"
        path, text = self.path / "settings.json", json_text(settings)
        with reading(f"evaluation folder {self.path}"):
            if not path.exists():
                write_text(path, text + "\n")
            kept = json.loads(path.read_text(encoding="utf-8"))
        if kept != json.loads(text):
            raise UserError(f"{path} was changed; expected the settings that name its folder.")
        self._lines = self.path / "problems.jsonl"
        self._samples = int(settings["samples"])

    def lines(self, names: set[str]) -> list[Line]:
        """What is finished, in the order of the file; a line that a crash cut off is dropped.

        Args:
            names: of the sums of a line's distribution, where it has one.

        Raises:
            UserError: the file cannot be read, or holds a line that no evaluation wrote.
        """
        lines = read_lines(self._lines) if self._lines.exists() else []
        for number, line in enumerate(lines, start=1):
            if not _is_line(line, self._samples, names):
                raise UserError(
                    f"{self._lines}:{number} is no line of this evaluation; remove the folder to "
                    "evaluate again."
                )
        return lines

    def rewrite(self, lines: Sequence[Line]) -> None:
        """Replace the finished problems, before more are appended."""
        with disk_errors(str(self._lines)):
            write_lines(self._lines, lines)

    def append(self, lines: Sequence[Line]) -> None:
        """Add finished problems, on the disk when this returns."""
        with disk_errors(str(self._lines)):
            append_lines(self._lines, lines, synced=True)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        path = self.path / "result.json"
        with disk_errors(str(path)):
            write_text(path, json_text(result) + "\n")


def _is_line(line: Line, samples: int, names: set[str]) -> bool:
    """Whether a line is one of `problems.run_task`: `samples` numbers of each kind."""
    columns: list[Any] = [line.get("lengths"), line.get("stopped")]
    if line.get("rewards", 0) is not None:  # null where there is no gold answer
        columns.append(line.get("rewards"))
    sums = line.get("distribution", {})
    return (
        isinstance(line.get("problem"), int)
        and isinstance(line.get("key"), str)
        and all(isinstance(column, list) and len(column) == samples for column in columns)
        and isinstance(sums, dict)
        and set(sums) in (set(), names)
        and all(
            isinstance(value, int | float) and math.isfinite(value)
            for column in [*columns, sums.values()]
            for value in column
        )
    )
