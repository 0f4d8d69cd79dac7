"""`trb-mlx compare`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from trb_mlx.cli.failures import resumable
from trb_mlx.comparison.spec import CompareSpec, PlannedRun, load_spec, plan_runs
from trb_mlx.errors import UserError, did_you_mean


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
    runs = plan_runs(chosen, root, spec)  # a mistake need not wait for seconds of imports
    if only is not None:
        runs = [_named(runs, only)]
    if dry_run:
        _list(chosen, runs, root)
        return
    from trb_mlx.comparison.run import compare as run
    from trb_mlx.comparison.run import finish_runs
    from trb_mlx.comparison.table import notes, terminal_table

    with resumable():
        if only is not None:
            finish_runs(chosen, runs, root, spec, jobs, click.echo, checked=True)
            return
        compared = run(spec, jobs=jobs, progress=click.echo)
    console, rows = Console(), compared.rows
    console.print(terminal_table(chosen, rows, console))
    forms = "table.md, .json, .csv and .png" if compared.has_figure else "table.md, .json and .csv"
    for line in (*notes(chosen, rows), compared.verdict, f"{forms} in {root}, with curves.png"):
        click.echo(line)


def _named(runs: list[PlannedRun], name: str) -> PlannedRun:
    names = {run.name: run for run in runs}
    if name not in names:
        raise UserError(
            f"--only {name} is no run of the comparison{did_you_mean(name, names) or '; expected'} "
            "a name that --dry-run lists."
        )
    return names[name]


def _list(spec: CompareSpec, runs: list[PlannedRun], root: Path) -> None:
    from trb_mlx.comparison.outcomes import read_outcome

    for run in runs:
        done = read_outcome(spec, run) is not None
        state = "done" if done else "begun" if (root / "runs" / run.name).exists() else "to do"
        click.echo(f"{state:<6} {run.name}")
    steps = sum(run.config.train.steps for run in runs)
    click.echo(
        f"{len(runs)} runs, {steps} steps in all, each evaluated on {spec.problems} problems × "
        f"{spec.samples} at its final and best checkpoint; decides: {spec.decides}; into {root}"
    )
