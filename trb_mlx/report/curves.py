"""Runs as read from their folders, several seeds of one method put together, and their curves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trb_mlx.config import Config
from trb_mlx.config_file import flatten, load_config
from trb_mlx.errors import UserError
from trb_mlx.files import read_metrics
from trb_mlx.method import method_name
from trb_mlx.report.measures import wilson
from trb_mlx.report.theme import assign_slots
from trb_mlx.runs.folder import RunFolder, find_run, nearest_run
from trb_mlx.runs.metrics import Axis, place_on

# The end of a name such as trb-seed1, or of a comparison's trb-s1-0123abcd.
_SEED = re.compile(r"[-_. ]*(seed|s)?[-_. ]*\d+(-[0-9a-f]{8})?$")
# Keys that do not make a run another method: its seed, and where it lies.
NOT_METHOD = ("train.seed", "run.")


@dataclass(frozen=True)
class RunData:
    """One run: its name in the report, its folder, its config and its lines, one a step."""

    name: str
    folder: RunFolder
    config: Config
    lines: Sequence[dict[str, Any]]

    def points(self, metric: str) -> dict[int, float]:
        """Step → value, for the steps that have the metric."""
        return {
            int(line["step"]): float(line[metric])
            for line in self.lines
            if isinstance(line.get(metric), int | float)
        }

    def places(self, axis: Axis) -> dict[int, float]:
        """Step → its place on an axis."""
        return {int(line["step"]): place_on(axis, line, self.folder.path) for line in self.lines}

    def warmup(self) -> int | None:
        """The last step in which something was still warming up; a constant ε warms nothing."""
        behavior, target = self.config.behavior, self.config.target
        budgets = {} if behavior.kind == "fixed" else self.points("trb/epsilon")
        ends = [step for step, budget in budgets.items() if budget > 0]
        ends.append(behavior.warmup_steps if behavior.kind == "temperature" else 0)
        ends.append(target.warmup_steps if target.kind == "veto" else 0)
        ends.append(target.sft_steps)
        last = max(int(line["step"]) for line in self.lines)
        return min(max(ends), last) or None


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but their seed, under one label and one colour."""

    label: str
    runs: Sequence[RunData]
    slot: int


@dataclass(frozen=True)
class Curve:
    """A metric over places `[N]` on an axis, with `low` and `high` where a spread is known.

    Of several seeds the values are means over the seeds that have the step, and the spread runs
    from the lowest to the highest seed; on an axis of cost a step stands at their mean cost.
    """

    places: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def read_runs(paths: Iterable[str]) -> list[RunData]:
    """The runs that the paths name, under names that tell them apart.

    Raises:
        UserError: a path is no run folder, is named twice, or has no metrics yet.
    """
    folders = []
    for path in paths:
        folder = find_run(path)
        if folder is None:
            what = "is not a run folder" if Path(path).is_dir() else "does not exist"
            raise UserError(
                f"run {path} {what}{nearest_run(path)}; expected a folder with config.yaml."
            )
        folders.append(folder)
    places = [folder.path.resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"run {place} is named twice; expected each run once.")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        common = os.path.commonpath(places)
        names = [os.path.relpath(place, common) for place in places]
    return [_read_run(name, folder) for name, folder in zip(names, folders, strict=True)]


def _read_run(name: str, folder: RunFolder) -> RunData:
    config = load_config(str(folder.config))
    lines = read_metrics(folder.metrics) if folder.metrics.exists() else []
    if not lines:
        raise UserError(
            f"run {folder.path} has no metrics yet; expected lines in {folder.metrics.name}."
        )
    return RunData(name, folder, config, lines)


def group_runs(runs: Sequence[RunData]) -> list[Method]:
    """Runs whose configs differ in seed and paths only become one method, in order of appearance.

    A method of one run goes by the run's name, one of several by what their names share.
    """
    groups: dict[tuple[Any, ...], list[RunData]] = {}
    for run in runs:
        flat = flatten(run.config).items()
        signature = tuple((key, repr(value)) for key, value in flat if not _incidental(key))
        groups.setdefault(signature, []).append(run)
    members = list(groups.values())
    labels = [_label(group) for group in members]
    slots = assign_slots([method_name(group[0].config) for group in members])
    return [
        Method(
            label if labels.count(label) == 1 else f"{group[0].name} … ({len(group)} seeds)",
            group,
            slot,
        )
        for label, group, slot in zip(labels, members, slots, strict=True)
    ]


def _incidental(key: str) -> bool:
    return key.startswith(NOT_METHOD)


def _label(group: Sequence[RunData]) -> str:
    if len(group) == 1:
        return group[0].name
    stems = {_SEED.sub("", run.name) for run in group}
    stem = stems.pop() if len(stems) == 1 else ""
    return f"{stem or method_name(group[0].config)} ({len(group)} seeds)"


def curve(method: Method, metric: str, axis: Axis = "steps") -> Curve | None:
    """A metric of a method, or None where no run has it."""
    having = [run for run in method.runs if run.points(metric)]
    seeds = [run.points(metric) for run in having]
    if not seeds:
        return None
    steps = sorted({step for points in seeds for step in points})
    columns = [[points[step] for points in seeds if step in points] for step in steps]
    values = np.array([np.mean(column) for column in columns])
    low = high = None
    evaluation = method.runs[0].config.eval
    if len(seeds) > 1:
        low, high = (np.array([end(column) for column in columns]) for end in (min, max))
    elif metric == "eval/pass@1" and evaluation.samples == 1:
        low, high = wilson(values, evaluation.prompts)  # known where problems are sampled once
    costs = [run.places(axis) for run in having]
    places = [np.mean([cost[step] for cost in costs if step in cost]) for step in steps]
    return Curve(np.array(places), values, low, high)


def differing(methods: Sequence[Method]) -> list[str]:
    """The keys in which methods differ, seeds and paths aside."""
    configs = [flatten(method.runs[0].config) for method in methods]
    return [
        key
        for key in configs[0]
        if not _incidental(key) and any(other.get(key) != configs[0][key] for other in configs)
    ]
