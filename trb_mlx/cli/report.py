"""`trb-mlx report`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trb_mlx.errors import UserError
from trb_mlx.runs.metrics import AXES, Axis

if TYPE_CHECKING:
    from trb_mlx.evaluation.diagnostics import Diagnostics
    from trb_mlx.report.curves import RunData


def _numbers(kind: type[int] | type[float], text: str | None, option: str) -> list[Any] | None:
    """Comma-separated numbers of an option."""
    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = [-1]
    if any(not 0 <= value < float("inf") for value in values):
        what = "whole numbers" if kind is int else "numbers of at least 0"
        raise UserError(f"{option} {text}: expected {what} with commas between.")
    return values


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", help="The report's folder (default: RUN/report, or ./report for several).")
@click.option(
    "--axis",
    type=click.Choice(AXES),
    default="steps",
    help="What curves go over: steps, tokens in the loss, or CPU seconds.",
)
@click.option("--diagnostics", is_flag=True, help="Load the models and measure, once a run.")
@click.option("--prompts", type=click.IntRange(1), help="Diagnostics: held-out prompts [128].")
@click.option("--cuts", metavar="T,...", help="Diagnostics: tokens kept before continuing.")
@click.option("--budgets", metavar="ε,...", help="Diagnostics: budgets beside 0 and the run's.")
def report(
    runs: tuple[str, ...],
    out: str | None,
    axis: Axis,
    diagnostics: bool,
    prompts: int | None,
    cuts: str | None,
    budgets: str | None,
) -> None:
    """Write a page with curves and diagnostics of one RUN, or of several over each other.

    Runs that differ in their seed alone become one line with a band. Needs no network; the page
    and the PNGs beside it need none either.
    """
    sizes = (prompts, _numbers(int, cuts, "--cuts"), _numbers(float, budgets, "--budgets"))
    if any(size is not None for size in sizes) and not diagnostics:
        raise UserError("--prompts, --cuts and --budgets belong to --diagnostics; add it.")
    from trb_mlx.report.page import kept_diagnostics, report_runs  # seconds of imports

    def measure(run: RunData) -> Diagnostics:
        from trb_mlx.evaluation.diagnosis import run_diagnostics  # loads models

        return run_diagnostics(run.folder, run.config, partial(click.echo, err=True), *sizes)

    place = Path(out).expanduser() if out else None
    written = report_runs(runs, place, measure if diagnostics else kept_diagnostics, axis)
    click.echo(f"{written[0]} and {len(written) - 1} PNGs")
