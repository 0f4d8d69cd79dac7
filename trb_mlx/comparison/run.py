"""Comparing as a function: a specification in, its table out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trb_mlx.backend import prepare_backend
from trb_mlx.comparison.figure import write_curves, write_figure
from trb_mlx.comparison.one_run import check_data, check_problems, finish_run
from trb_mlx.comparison.outcomes import Outcome, read_outcome
from trb_mlx.comparison.progress import Progress
from trb_mlx.comparison.side_by_side import run_side_by_side
from trb_mlx.comparison.spec import (
    CompareSpec,
    PlannedRun,
    SpecLike,
    load_spec,
    plan_runs,
    spec_name,
)
from trb_mlx.comparison.statistics import Row, compare_methods
from trb_mlx.comparison.table import verdict, write_tables
from trb_mlx.files import disk_errors, write_text
from trb_mlx.interrupts import watching
from trb_mlx.models.loading import load_model
from trb_mlx.text import clock
from trb_mlx.types import Say, say_nothing
from trb_mlx.yaml_file import dump_yaml


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Attributes:
        spec: what was asked for.
        rows: one a method's variant, with intervals over seeds and over problems.
        verdict: who leads by the metric that decides, in a sentence.
        path: the folder with the runs, the table (Markdown, JSON, CSV) and the figure.
        has_figure: whether there was anything but the reference to draw.
    """

    spec: CompareSpec
    rows: Sequence[Row]
    verdict: str
    path: Path
    has_figure: bool


def compare(spec: SpecLike, *, jobs: int = 1, progress: bool | Say = False) -> Comparison:
    """Train and evaluate the methods of a comparison over its seeds, and put them side by side.

    Finished runs are kept: the same call again goes on where it stopped.

    >>> compared = compare({
    ...     "name": "glance",
    ...     "base": "small",
    ...     "set": {"train.steps": 1, "eval": {"prompts": 2, "every": 1}, "rollout.max_tokens": 8},
    ...     "methods": {"vanilla": {}},
    ...     "seeds": [0],
    ...     "problems": 2,
    ...     "early_steps": 1,
    ... })
    >>> [row.method for row in compared.rows], str(compared.path)
    (['vanilla'], 'compare/glance')

    Args:
        spec: a YAML file, a shipped comparison's name (`small`, `main`), or a mapping of its keys
            (without a `name` of its own it is called `comparison`).
        jobs: runs at once, each in a process of its own.
        progress: print a line a finished run, or hand it to a function of your own.

    Raises:
        UserError: the specification or a config of it cannot be used.
        RunError: a run had to stop, or another process works on it.
        Interrupted: a signal came; what is finished is kept.
    """
    say = progress if callable(progress) else print if progress else say_nothing
    chosen, root = load_spec(spec)
    name = spec_name(spec)
    runs = plan_runs(chosen, root, name)
    if isinstance(spec, Mapping) and jobs > 1:
        name = _write_spec(root, chosen)
    with watching():
        outcomes = finish_runs(chosen, runs, root, name, jobs, say)
    rows = compare_methods(chosen, outcomes)
    write_tables(root, chosen, rows, len(runs) - len(outcomes))
    drawn = write_figure(root / "table.png", chosen, rows)
    write_curves(root / "curves.png", chosen, outcomes)
    return Comparison(chosen, rows, verdict(chosen, rows), root, drawn)


def _write_spec(root: Path, spec: CompareSpec) -> str:
    """Put a comparison that is no file where processes of their own find it."""
    path = root / "comparison.yaml"
    with disk_errors(str(path)):
        write_text(path, dump_yaml(spec.model_dump(mode="json", exclude_unset=True)))
    return str(path)


def finish_runs(
    spec: CompareSpec,
    runs: Sequence[PlannedRun],
    root: Path,
    name: str,
    jobs: int,
    say: Say,
    checked: bool = False,
) -> list[Outcome]:
    """Every run's outcome; unfinished ones are run here, or in `jobs` processes.

    Args:
        spec: the comparison.
        runs: its runs, or one of them.
        root: its folder.
        name: what other processes find it by: its file, or a shipped comparison's name.
        jobs: processes at once.
        say: takes a line at the start and one a finished run.
        checked: whether what all runs share was checked already.
    """
    known = {run.name: outcome for run in runs if (outcome := read_outcome(spec, run)) is not None}
    left = {run.name: run for run in runs if run.name not in known}
    progress = Progress(spec, runs, known, jobs)
    expected = progress.seconds_left()
    about = f", about {clock(expected)}" if expected else ""
    say(f"{len(runs)} runs, {len(left)} to do{about}; progress in {root / 'logs'}")
    for run in runs:
        check_data(spec, run)
    if left and not checked:
        check_problems(spec, runs[0])
    if jobs > 1 and len(left) > 1:
        commands = {each: ["compare", name, "--only", each] for each in left}
        run_side_by_side(
            commands,
            jobs,
            root / "logs",
            lambda each: say(progress.done(each, finish_run(spec, left[each], root))),
        )
    teacher = None
    if spec.share_teacher and left and jobs == 1:  # training never changes it
        prepare_backend()
        teacher = load_model(runs[0].config.teacher)
    outcomes = []
    for run in runs:
        outcome = finish_run(spec, run, root, teacher)
        outcomes.append(outcome)
        if run.name in left and jobs == 1:
            say(progress.done(run.name, outcome))
    return outcomes
