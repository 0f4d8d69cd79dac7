"""A run's settings under another stack's own names, for going on with it on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError, did_you_mean
from trb_mlx.exporting.folder import check_replaceable, writing_export
from trb_mlx.exporting.source import open_run
from trb_mlx.exporting.trl import trl_recipe
from trb_mlx.exporting.verl import verl_recipe
from trb_mlx.runs.folder import RunFolder

# stack → the file's name, and its text for a run's config and name
STACKS: Mapping[str, tuple[str, Callable[[Config, str], str]]] = {
    "verl": ("distill.sh", verl_recipe),
    "trl": ("distill.py", trl_recipe),
}


def write_recipe(run: str, stack: str, out: Path | None) -> Path:
    """Write one stack's recipe into `out` (default: RUN/export/STACK) and give the file.

    Raises:
        UserError: no such run or stack, or a destination that holds other files.
        RunError: the disk is full or cannot be written.
    """
    folder, place = recipe_place(run, stack, out)
    name, recipe = STACKS[stack]
    title = folder.path.absolute().name
    with writing_export(place, {"format": stack, "run": title}) as draft:
        text = recipe(load_config(str(folder.config)), title)
        (draft / name).write_text(text, encoding="utf-8")
    return place / name


def recipe_place(run: str, stack: str, out: Path | None) -> tuple[RunFolder, Path]:
    """The run, and the folder that its recipe goes into.

    Raises:
        UserError: as `write_recipe`; nothing is written.
    """
    if stack not in STACKS:
        raise UserError(
            f"--recipe {stack} is not known{did_you_mean(stack, STACKS)} "
            f"(known: {', '.join(STACKS)})."
        )
    folder = open_run(run)
    place = (out or folder.path / "export" / stack).expanduser().absolute()
    check_replaceable(place)
    return folder, place
