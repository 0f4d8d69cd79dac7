"""One checkpoint of a run, read for an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trb_mlx.adapters.adapter import CONFIG, Adapter
from trb_mlx.adapters.mlx_lm import WEIGHTS, read_mlx_adapter, snapshots
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.evaluation.target import adapter_file
from trb_mlx.files import read_metrics
from trb_mlx.runs.folder import RunFolder, find_run, nearest_run


@dataclass(frozen=True)
class Source:
    """What is exported: one checkpoint of a run.

    Attributes:
        run: the run's name.
        config: the run's config.
        folder: holds the adapters and their `adapter_config.json`.
        weights: the checkpoint's file in it.
        adapter: what that file holds.
        step: the step that the weights are of.
        metrics: the run's metrics up to that step.
    """

    run: str
    config: Config
    folder: Path
    weights: Path
    adapter: Adapter
    step: int
    metrics: Sequence[Mapping[str, Any]]


def open_run(run: str) -> RunFolder:
    """The run that a path names.

    Raises:
        UserError: it is no run folder.
    """
    folder = find_run(run)
    if folder is None:
        raise UserError(f"{run} is no run folder (it has no config.yaml){nearest_run(run)}.")
    return folder


def read_source(folder: RunFolder, checkpoint: str) -> Source:
    """Read one checkpoint of a run: `final`, `best` (held out) or a step.

    Raises:
        UserError: the run has no such checkpoint, or a file of it is damaged.
    """
    if not (folder.adapter_path / CONFIG).is_file():
        raise UserError(
            f"run {folder.path} has no adapters yet; it was stopped before its first save."
        )
    weights = adapter_file(folder, checkpoint)
    adapter = read_mlx_adapter(folder.adapter_path, weights)
    config = load_config(str(folder.config))
    if weights.name == WEIGHTS:
        step = max(snapshots(folder.adapter_path), default=config.train.steps)
    else:
        step = int(weights.name.partition("_")[0])
    lines = read_metrics(folder.metrics) if folder.metrics.exists() else []
    return Source(
        run=folder.path.absolute().name,
        config=config,
        folder=folder.adapter_path,
        weights=weights,
        adapter=adapter,
        step=step,
        metrics=[line for line in lines if line["step"] <= step],
    )
