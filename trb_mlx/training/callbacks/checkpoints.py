"""The callback that keeps a run's state: adapters for use, checkpoints for resuming."""

from __future__ import annotations

from typing import Any

from trb_mlx.adapters.mlx_lm import remove_snapshots, save_adapters
from trb_mlx.files import disk_errors
from trb_mlx.runs.checkpoint import remove_unfinished, save_checkpoint
from trb_mlx.runs.folder import RunFolder
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.training.trainer import Trainer


class CheckpointWriter(Callback):
    """Writes both at every save, the checkpoint first: adapters then show that there is one."""

    def __init__(self, trainer: Trainer, folder: RunFolder, adapter_config: dict[str, Any]) -> None:
        """`adapter_config` is what adapter_config.json says."""
        self._trainer = trainer
        self._folder = folder
        self._adapter_config = adapter_config

    def on_start(self, step: int) -> None:
        """A resumed run's adapters are those of its checkpoint, and none are of later steps."""
        remove_unfinished(self._folder.checkpoints)
        if step:
            with disk_errors("the adapters"):
                remove_snapshots(self._folder.adapter_path, step)
                self._save_adapters(step)

    def on_save(self, step: int) -> None:
        """Both of this step."""
        trainer, stepper = self._trainer, self._trainer.stepper
        keep = trainer.config.run.keep_checkpoints
        with disk_errors("the checkpoint"):
            save_checkpoint(
                self._folder.checkpoints, stepper.module, stepper.optimizer, trainer.state, keep
            )
            self._save_adapters(step)

    def _save_adapters(self, step: int) -> None:
        module = self._trainer.stepper.module
        save_adapters(self._folder.adapter_path, module, self._adapter_config, step)
