"""Checkpoints: adapters, optimizer and counters, whole or absent."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.errors import UserError
from trb_mlx.export.files import load_arrays, save_arrays
from trb_mlx.files import replacing_folder


@dataclass(frozen=True)
class Progress:
    """The counters of a run: finished updates, skipped in a row, skipped in all.

    `drafting` is what the choice of draft lengths was found to depend on.
    """

    step: int
    bad_steps: int = 0
    skipped: int = 0
    drafting: dict[str, Any] | None = None


def save_checkpoint(
    folder: Path, module: nn.Module, optimizer: optim.Optimizer, progress: Progress, keep: int
) -> None:
    """Write `folder/STEP/` and remove all but the newest `keep`.

    The data cursor is not stored: which prompts a step uses is a function of seed and step.
    """
    with replacing_folder(folder / f"{progress.step:07d}") as draft:
        save_arrays(
            draft / "adapters.safetensors", dict(tree_flatten(module.trainable_parameters()))
        )
        save_arrays(draft / "optimizer.safetensors", dict(tree_flatten(optimizer.state)))
        (draft / "state.json").write_text(json.dumps(vars(progress)) + "\n", encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"\d{7,}", path.name))


def load_checkpoint(path: Path, module: nn.Module, optimizer: optim.Optimizer) -> Progress:
    """Put a checkpoint's adapters and optimizer state in place.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        progress = Progress(**json.loads((path / "state.json").read_text(encoding="utf-8")))
        weights = load_arrays(path / "adapters.safetensors")
        state = load_arrays(path / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); remove it to go on from the one before."
        ) from error
    module.load_weights(list(weights.items()), strict=False)
    optimizer.state = tree_unflatten(list(state.items()))
    # A flat file has no branches without leaves; the updated state has them, as the module does.
    optimizer.init(module.trainable_parameters())
    mx.eval(module.parameters(), optimizer.state)
    return progress
