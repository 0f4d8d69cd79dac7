"""Where a resumed run continues, and what it then says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from trb_mlx.adapters.mlx_lm import WEIGHTS
from trb_mlx.config import Config
from trb_mlx.config_file import flatten, load_config
from trb_mlx.errors import UserError
from trb_mlx.files import read_metrics
from trb_mlx.ranks.folders import shared_folder
from trb_mlx.runs.checkpoint import checkpoints, load_checkpoint
from trb_mlx.runs.folder import MEMORY_KEYS, RunFolder
from trb_mlx.training.trainer import Trainer


def resume_from(folder: RunFolder, trainer: Trainer) -> None:
    """Put rank 0's newest checkpoint in place; a run that has saved nothing yet begins again.

    Raises:
        UserError: the checkpoints are gone, or the newest is damaged or does not fit.
    """
    group = trainer.group
    with shared_folder(group, newest_checkpoint(folder) if group.leads else None) as newest:
        if newest is None:
            return
        state = load_checkpoint(newest, trainer.stepper.module, trainer.stepper.optimizer)
        try:
            trainer.restore(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"checkpoint {newest}: state.json's drafting is damaged; remove the checkpoint to "
                "go on from the one before."
            ) from error


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """The checkpoint to go on from, or None where nothing has been saved yet.

    Raises:
        UserError: something was saved, and its checkpoint is gone.
    """
    saved = checkpoints(folder.checkpoints)
    if saved:
        return saved[-1]
    config = load_config(folder.config)
    first_save = min(config.train.steps, config.run.save_every, config.eval.every or math.inf)
    lines = read_metrics(folder.metrics) if folder.metrics.exists() else []
    # Adapters are written behind their checkpoint, and the next step's line behind both.
    if (folder.adapter_path / WEIGHTS).exists() or any(line["step"] > first_save for line in lines):
        raise UserError(
            f"run {folder.path} has been trained, and nothing is in {folder.checkpoints} to go on "
            "from; put its checkpoints back, or choose another --name to begin again."
        )
    return None


def resume_notes(folder: RunFolder, config: Config, step: int) -> Iterator[str]:
    """Where a resumed run continues, and what differs from an uninterrupted one."""
    yield f"going on after step {step}"
    kept, given = flatten(load_config(folder.config)), flatten(config)
    changed = [key for key in MEMORY_KEYS if kept.get(key) != given[key]]
    if changed and config.lora.dropout:
        yield (
            f"note: {', '.join(changed)} changed, so the masks of lora.dropout are not those of "
            "an uninterrupted run"
        )
