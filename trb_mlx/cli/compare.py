"""`trb-mlx compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from trb_mlx.cli.failures import going_on
from trb_mlx.config_file import nearest
from trb_mlx.errors import UserError
from trb_mlx.report.compare_spec import CompareSpec, PlannedRun, load_spec, plan_runs

if TYPE_CHECKING:
    from trb_mlx.report.comparison import Outcome


@click.command()
@click.argument("spec")
@click.option("--dry-run", is_flag=True, help="List the runs and what is done; start nothing.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once.")
@click.option("--only", metavar="RUN", help="One run of the list alone, without the table.")
def compare(spec: str, dry_run: bool, jobs: int, only: str | None) -> None:
    """Train and evaluate the methods of SPEC over seeds, and put them side by side.

    SPEC is a YAML file, or a shipped one's name (small, main). Finished runs are kept: the same
    command again goes on where it stopped.
    """
    chosen, root = load_spec(spec)
    runs = plan_runs(chosen, root, spec)
    if only is not None:
        runs = [_named(runs, only)]
    if dry_run:
        _list(chosen, runs, root)
        return
    with going_on():
        outcomes = _finish(chosen, runs, root, spec, jobs, only is not None)
    if only is None:
        _show(chosen, outcomes, root, len(runs))


def _named(runs: list[PlannedRun], name: str) -> PlannedRun:
    names = {run.name: run for run in runs}
    if name not in names:
        raise UserError(
            f"--only {name} is no run of the comparison{nearest(name, names) or '; expected'} "
            "a name that --dry-run lists."
        )
    return names[name]


def _list(spec: CompareSpec, runs: list[PlannedRun], root: Path) -> None:
    from trb_mlx.comparing import read_outcome

    for run in runs:
        done = read_outcome(spec, run) is not None
        state = "done" if done else "begun" if (root / "runs" / run.name).exists() else "to do"
        click.echo(f"{state:<6} {run.name}")
    steps = sum(run.config.train.steps for run in runs)
    click.echo(
        f"{len(runs)} runs, {steps} steps in all, each evaluated on {spec.problems} problems × "
        f"{spec.samples} at its final and best checkpoint; decides: {spec.decides}; into {root}"
    )


def _finish(
    spec: CompareSpec, runs: list[PlannedRun], root: Path, name: str, jobs: int, alone: bool
) -> list[Outcome]:
    """Every run's outcome; unfinished ones are run here, or in `jobs` processes.

    `alone` is true of such a process: what all runs share was checked by its parent.
    """
    from trb_mlx.comparing import (
        check_data,
        check_problems,
        finish_run,
        load_teacher,
        read_outcome,
    )
    from trb_mlx.side_by_side import run_side_by_side

    left = {run.name: run for run in runs if read_outcome(spec, run) is None}
    click.echo(f"{len(runs)} runs, {len(left)} to do; progress in {root / 'logs'}")
    for run in runs:
        check_data(spec, run)
    if left and not alone:
        check_problems(spec, runs[0])
    if jobs > 1 and len(left) > 1:
        commands = {each: ["compare", name, "--only", each] for each in left}
        run_side_by_side(commands, jobs, root / "logs", lambda done: _told(spec, left[done]))
    teacher = load_teacher(runs[0].config) if spec.share_teacher and left and jobs == 1 else None
    outcomes = []
    for run in runs:
        outcomes.append(finish_run(spec, run, root, teacher))
        if run.name in left and jobs == 1:
            _told(spec, run)
    return outcomes


def _told(spec: CompareSpec, run: PlannedRun) -> None:
    """One line when a run is done."""
    from trb_mlx.comparing import read_outcome

    outcome = read_outcome(spec, run)
    assert outcome is not None
    value = outcome.metrics.get(spec.decides)
    click.echo(f"done {run.name}: {spec.decides} {'–' if value is None else f'{value:.4g}'}")


def _show(spec: CompareSpec, outcomes: list[Outcome], root: Path, planned: int) -> None:
    from trb_mlx.report.comparison import compare as compared
    from trb_mlx.report.comparison_figure import write_figure
    from trb_mlx.report.comparison_table import notes, terminal_table, verdict, write_tables

    rows = compared(spec, outcomes)
    write_tables(root, spec, rows, planned - len(outcomes))
    drawn = write_figure(root / "table.png", spec, rows)
    console = Console()
    console.print(terminal_table(spec, rows, console))
    forms = "table.md, .json, .csv and .png" if drawn else "table.md, .json and .csv"
    for line in (*notes(spec, rows), verdict(spec, rows), f"{forms} in {root}"):
        click.echo(line)
