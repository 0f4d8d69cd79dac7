"""The folder of one evaluation: its settings, a line a problem, and the result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trb_mlx.errors import UserError
from trb_mlx.files import append_lines, disk_errors, finite, read_lines, write_lines, write_text

Line = dict[str, Any]


class ResultFolder:
    """`PARENT/NAME-nSAMPLES-DIGEST/`, found again by the same settings and by no others.

    `problems.jsonl` grows as problems finish; `result.json` is written at the end.
    """

    def __init__(self, parent: Path, name: str, settings: Mapping[str, Any]) -> None:
        """Make the folder, or open the one that these settings made.

        Raises:
            UserError: it cannot be written, or holds other settings.
        """
        self.path = parent / f"{_slug(name)}-n{settings['samples']}-{digest(settings)}"
        kept = self.path / "settings.json"
        try:
            if not kept.exists():
                write_text(kept, json.dumps(settings, indent=2) + "\n")
            found = json.loads(kept.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"evaluation folder {self.path} cannot be used: {error}.") from error
        if found != json.loads(json.dumps(settings)):
            raise UserError(f"{kept} was changed; expected the settings that name its folder.")
        self._lines = self.path / "problems.jsonl"

    def lines(self) -> list[Line]:
        """What is finished, in the order of the file; a line that a crash cut off is dropped."""
        return read_lines(self._lines) if self._lines.exists() else []

    def rewrite(self, lines: Sequence[Line]) -> None:
        """Replace the finished problems, before going on behind them."""
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
            write_text(path, json.dumps(finite(result), indent=2) + "\n")


def digest(settings: Any) -> str:
    """Eight hexadecimal digits of anything JSON can hold."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _slug(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem if "/" in name else name).strip("-.") or "data"
