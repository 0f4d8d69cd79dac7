"""A run's metrics as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from trb_mlx.errors import UserError
from trb_mlx.files import read_steps
from trb_mlx.runs.folder import find_run, nearest_run

if TYPE_CHECKING:
    import pandas as pd

# What training is measured along: its steps, or what it costs.
Axis = Literal["steps", "tokens", "cpu_seconds"]
AXES: tuple[Axis, ...] = get_args(Axis)
AXIS_WORDS = {
    "steps": "step",
    "tokens": "response tokens in the loss",
    "cpu_seconds": "CPU seconds",
}
_COSTS = {"tokens": "cost/loss_tokens", "cpu_seconds": "cost/cpu_seconds"}


def place_on(axis: Axis, line: Mapping[str, Any], run: str | Path) -> float:
    """Where a line of a run's metrics stands on an axis: its step, or all costs up to it.

    Raises:
        UserError: an earlier version wrote the line, and kept no costs.
    """
    if axis == "steps" or line["step"] == 0:
        return float(line["step"])
    if _COSTS[axis] not in line:
        raise UserError(
            f"run {run}: its metrics have no {_COSTS[axis]}, which earlier versions did not keep; "
            "expected the axis steps."
        )
    return float(line[_COSTS[axis]])


def load_metrics(run: str | Path) -> pd.DataFrame:
    """The metrics of a run: one row a step, one column a metric, NaN where a step lacks it.

    Step 0 is the evaluation before training.

    >>> load_metrics("runs/none")
    Traceback (most recent call last):
    trb_mlx.errors.UserError: run runs/none is no run folder: it has no config.yaml.

    Args:
        run: a run folder, finished or not.

    Raises:
        UserError: it is no run folder, or has no metrics yet.
    """
    import pandas as pd  # a second of import that nothing else needs

    folder = find_run(str(run))
    if folder is None:
        nearest = nearest_run(str(run))
        raise UserError(f"run {run} is no run folder: it has no config.yaml{nearest}.")
    if not folder.metrics.is_file():
        raise UserError(f"run {run} has no metrics yet; expected lines in {folder.metrics.name}.")
    return pd.DataFrame(read_steps(folder.metrics)).set_index("step")
