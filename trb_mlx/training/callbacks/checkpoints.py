"""The hook that keeps a run's state: adapters for use, checkpoints for resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trb_mlx.adapters.mlx_lm import remove_snapshots, save_adapters
from trb_mlx.files import disk_errors
from trb_mlx.runs.checkpoint import Progress, clear_drafts, save_checkpoint
from trb_mlx.training.step import Stepper
from trb_mlx.training.trainer import Hook


class Keeper(Hook):
    """Writes both at every save, the checkpoint first: adapters then show that there is one."""

    def __init__(
        self,
        stepper: Stepper,
        progress: Callable[[int], Progress],
        adapters: Path,
        checkpoints: Path,
        adapter_config: dict[str, Any],
        keep: int,
    ) -> None:
        """`progress` gives the counters at a step; `keep` checkpoints stay."""
        self._stepper = stepper
        self._progress = progress
        self._adapters = adapters
        self._checkpoints = checkpoints
        self._config = adapter_config
        self._keep = keep

    def on_start(self, step: int) -> None:
        """A resumed run's adapters are those of its checkpoint, and none are of later steps."""
        clear_drafts(self._checkpoints)
        if step:
            with disk_errors("the adapters"):
                remove_snapshots(self._adapters, step)
                save_adapters(self._adapters, self._stepper.module, self._config, step)

    def on_save(self, step: int) -> None:
        """Both of this step."""
        module = self._stepper.module
        with disk_errors("the checkpoint"):
            progress = self._progress(step)
            save_checkpoint(
                self._checkpoints, module, self._stepper.optimizer, progress, self._keep
            )
            save_adapters(self._adapters, module, self._config, step)
