"""A folder of rank 0's, on every rank."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trb_mlx.files import disk_errors
from trb_mlx.ranks.group import Group


@contextmanager
def shared_folder(
    group: Group, folder: Path | None, files: Mapping[str, Path] | None = None
) -> Iterator[Path | None]:
    """Rank 0's folder, or a copy of it under the same name elsewhere, which is gone afterwards.

    Args:
        group: everyone.
        folder: rank 0's, or None: then all get None. Of no account elsewhere.
        files: what is copied of it, by the name that it gets, where it is there; None copies all.

    Raises:
        RunError: this machine has no room for the copy.
    """
    if group.size == 1:
        yield folder
        return
    name = group.share("a folder", folder and folder.resolve().name)
    if name is None:
        yield None
        return
    packed = _pack(files or {".": folder}) if group.leads and folder else b""
    content = group.gather_bytes("a folder's files", packed)[0]
    if group.leads:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="trb-mlx-") as place:
        with (
            disk_errors(f"rank {group.rank}'s copy of rank 0's {name} in {place}"),
            zipfile.ZipFile(io.BytesIO(content)) as archive,
        ):
            archive.extractall(Path(place) / name)
        yield Path(place) / name


def _pack(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", strict_timestamps=False) as archive:
        for name, path in files.items():
            for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if each.is_file():
                    archive.write(each, Path(name) / each.relative_to(path))
    return buffer.getvalue()
