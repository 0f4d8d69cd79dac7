"""Checkpoints: adapters, optimizer and counters, whole or absent."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.errors import UserError
from trb_mlx.files import json_text, replacing_folder
from trb_mlx.models.arrays import load_arrays, save_arrays
from trb_mlx.types import Cost


@dataclass(frozen=True)
class TrainingState:
    """The counters of a run: finished updates, skipped in a row, skipped in all.

    `drafting` is what the choice of draft lengths has seen, by which it goes on, and `cost` what
    all updates have cost.
    """

    step: int
    bad_steps: int = 0
    skipped: int = 0
    drafting: dict[str, Any] | None = None
    cost: Cost = field(default_factory=Cost)


def save_checkpoint(
    folder: Path, module: nn.Module, optimizer: optim.Optimizer, state: TrainingState, keep: int
) -> None:
    """Write `folder/STEP/` and remove all but the newest `keep`.

    The data cursor is not stored: which prompts a step uses is a function of seed and step.
    """
    with replacing_folder(folder / f"{state.step:07d}") as draft:
        save_arrays(
            draft / "adapters.safetensors", dict(tree_flatten(module.trainable_parameters()))
        )
        # By name, since a state that was loaded has another order than one that grew.
        moments = dict(sorted(tree_flatten(optimizer.state)))
        save_arrays(draft / "optimizer.safetensors", moments)
        (draft / "state.json").write_text(json_text(asdict(state), None) + "\n", encoding="utf-8")
    kept = checkpoints(folder)
    whole = [path for path in kept if not _is_skipped(path)]
    for old in set(kept[:-keep]) - set(whole[-1:]):
        shutil.rmtree(old)


def _is_skipped(path: Path) -> bool:
    """Whether the checkpoint's last update was not finite: what led there may be its weights."""
    try:
        return bool(json.loads((path / "state.json").read_text(encoding="utf-8"))["bad_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"\d{7,}", path.name))


def remove_unfinished(folder: Path) -> None:
    """Remove what crashes left of checkpoints that they cut off."""
    for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
        shutil.rmtree(path)


def load_checkpoint(path: Path, module: nn.Module, optimizer: optim.Optimizer) -> TrainingState:
    """Put a checkpoint's adapters and optimizer state in place.

    Raises:
        UserError: a file is missing or damaged, or of another adapter, or holds values that are
            not finite.
    """
    try:
        values = json.loads((path / "state.json").read_text(encoding="utf-8"))
        state = TrainingState(**values | {"cost": Cost(**values.get("cost", {}))})
        weights = load_arrays(path / "adapters.safetensors")
        moments = load_arrays(path / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}); {_WAY_OUT}") from error
    mismatch = (
        _state_mismatch(state, path)
        or _array_mismatch(weights, module.trainable_parameters(), "adapters.safetensors")
        or _array_mismatch(moments, optimizer.state, "optimizer.safetensors")
    )
    if mismatch:
        raise UserError(f"checkpoint {path} does not fit this run: {mismatch}; {_WAY_OUT}")
    module.load_weights(list(weights.items()), strict=False)
    optimizer.state = tree_unflatten(list(moments.items()))
    # A flat file has no branches without leaves; the updated state has them, as the module does.
    optimizer.init(module.trainable_parameters())
    mx.eval(module.parameters(), optimizer.state)
    return state


_WAY_OUT = "remove it to go on from the one before."


def _state_mismatch(state: TrainingState, path: Path) -> str | None:
    for name in ("step", "bad_steps", "skipped"):
        value = getattr(state, name)
        if type(value) is not int or value < 0:
            return f"state.json has {name} {value!r}, expected a whole number"
    for name, value in vars(state.cost).items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            return f"state.json has a cost with {name} {value!r}, expected a number of at least 0"
    if state.step != int(path.name):
        return f"state.json is of step {state.step}"
    return None


def _array_mismatch(arrays: dict[str, mx.array], tree: Any, file: str) -> str | None:
    """What keeps a file's arrays from taking the place of a tree's, if anything does."""
    expected = dict(tree_flatten(tree))
    for name in sorted(expected.keys() | arrays.keys()):
        if name not in arrays:
            return f"{file} lacks {name}"
        if name not in expected:
            return f"{file} holds {name}, which this run does not have"
        array, place = arrays[name], expected[name]
        if array.shape != place.shape:
            return f"{file} has {name} of shape {array.shape}, expected {place.shape}"
        if array.dtype != place.dtype:
            return f"{file} has {name} in {array.dtype}, expected {place.dtype}"
    finite = {name: mx.all(mx.isfinite(array)) for name, array in arrays.items()}
    mx.eval(finite)
    return next(
        (f"{file} has {name} with NaN or infinity" for name in finite if not finite[name]), None
    )
