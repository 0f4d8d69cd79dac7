"""Callbacks that pass metrics on to wandb, swanlab or trackio (`run.report_to`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from trb_mlx.config import Config
from trb_mlx.errors import UserError, did_you_mean
from trb_mlx.models import mlxlm
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.types import Metrics, StepResult

SERVICES = ("wandb", "swanlab", "trackio")


class Reporter(Callback):
    """Passes metrics on to a training callback in mlx-lm's form."""

    def __init__(self, callback: Any) -> None:
        """`callback` has `on_train_loss_report` and `on_val_loss_report`, perhaps `finish`."""
        self._callback = callback

    def on_step(self, result: StepResult) -> None:
        """Training metrics and evaluations go to their own channels."""
        held_out = {k: v for k, v in result.metrics.items() if k.startswith("eval/")}
        rest: Metrics = {k: v for k, v in result.metrics.items() if k not in held_out}
        if rest:
            self._callback.on_train_loss_report({"iteration": result.step, **rest})
        if held_out:
            self._callback.on_val_loss_report({"iteration": result.step, **held_out})

    def on_end(self, step: int) -> None:
        """Close a callback that wants it."""
        if hasattr(self._callback, "finish"):
            self._callback.finish()


class TrackioCallback:
    """The trackio package in the form of mlx-lm's callbacks, which have none for it."""

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        """Begin a run, or go on with the one of this name.

        Raises:
            ImportError: trackio is not installed.
        """
        trackio = importlib.import_module("trackio")
        self._run = trackio.init(
            project=project, name=name, config=config, resume="allow", embed=False
        )

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        """Log a step's metrics."""
        self._run.log({k: v for k, v in info.items() if k != "iteration"}, step=info["iteration"])

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        """Log an evaluation's metrics at its step."""
        self.on_train_loss_report(info)

    def finish(self) -> None:
        """Write what is still buffered."""
        self._run.finish()


def make_reporters(config: Config, folder: Path) -> list[Callback]:
    """One callback for each service of `run.report_to`, a list with commas between.

    Raises:
        UserError: an unknown service, or one that is not installed or refuses to begin.
    """
    names = [name.strip().lower() for name in (config.run.report_to or "").split(",")]
    return [Reporter(_callback(name, config, folder)) for name in names if name]


def _callback(name: str, config: Config, folder: Path) -> Any:
    if name not in SERVICES:
        known = ", ".join(SERVICES)
        raise UserError(
            f"run.report_to {name}{did_you_mean(name, SERVICES)}; expected one of {known}."
        )
    project = config.run.project_name or "trb-mlx"
    values = config.model_dump(mode="json")
    try:
        if name == "trackio":
            return TrackioCallback(project, folder.name, values)
        return mlxlm.get_reporting_callbacks(
            name, project_name=project, log_dir=str(folder), config=values
        )
    except ImportError as error:
        raise UserError(
            f"run.report_to {name}: {name} is not installed (pip install {name})."
        ) from error
    except Exception as error:  # each service has errors of its own: no account, no network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"run.report_to {name}: {reason.rstrip('.')}.") from error
