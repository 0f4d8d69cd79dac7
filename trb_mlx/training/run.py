"""Training as a function: a config in, a run folder out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from trb_mlx.config import Config
from trb_mlx.config_file import ConfigLike
from trb_mlx.runs.folder import plan_run
from trb_mlx.training.session import train_run


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, its adapters in mlx-lm's format, and its resolved config."""

    path: Path
    adapter_path: Path
    config: Config


def train(
    config: ConfigLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool | Console = False,
    force: bool = False,
) -> TrainedRun:
    """Distil a teacher into a student's LoRA adapters.

    >>> run = train("small", overrides={"train.steps": 1, "eval.prompts": 4, "run.name": "first"})
    >>> run.adapter_path.name
    'adapters'

    Args:
        config: a YAML file, a shipped config's name, or a mapping of its keys.
        overrides: dotted keys and values on top, such as `{"train.steps": 40}`.
        resume: go on with the run from its newest checkpoint.
        progress: print progress, perhaps on a console of your own.
        force: run also what `trb-mlx plan` says does not fit.

    Raises:
        UserError: something in the config, the models or the data cannot be used.
        RunError: the run had to stop.
        Interrupted: a signal came; the state was saved, and `resume` goes on from there.
    """
    resolved, folder = plan_run(config, overrides)
    console = progress if isinstance(progress, Console) else Console(quiet=not progress)
    used = train_run(resolved, folder, resume, console, force=force)
    return TrainedRun(folder.path, folder.adapter_path, used)
