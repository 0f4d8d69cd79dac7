"""From run folders to a report: read, measure where asked to, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trb_mlx.files import disk_errors
from trb_mlx.report.curves import RunData, group_runs, read_runs
from trb_mlx.report.diagnostics import (
    Diagnostics,
    default_sizes,
    read_diagnostics,
    write_diagnostics,
)
from trb_mlx.report.page import write_report

Say = Callable[[str], None]
Asked = tuple[int | None, Sequence[int] | None, Sequence[float] | None]


def make_report(
    paths: Sequence[str], out: Path | None, asked: Asked | None, say: Say
) -> list[Path]:
    """Report on runs and give the files written, the page first.

    Args:
        paths: run folders.
        out: where to; None is the run's own `report/`, or `./report/` for several runs.
        asked: prompts, cuts and budgets of the diagnostics, None where a default does; None as
            a whole measures nothing, and shows what was measured before.
        say: takes lines about progress.

    Raises:
        UserError: a path is no run, or its models cannot be measured.
        RunError: the report could not be written.
    """
    runs = read_runs(paths)
    measured = {run.name: found for run in runs if (found := _measured(run, asked, say))}
    if out is None:
        out = runs[0].folder.report if len(runs) == 1 else Path("report")
    with disk_errors(f"report {out}"):
        return write_report(group_runs(runs), measured, out)


def _measured(run: RunData, asked: Asked | None, say: Say) -> Diagnostics | None:
    """What is known of a run; measured now where it was asked for and is not there yet."""
    path = run.folder.diagnostics
    known = read_diagnostics(path)
    if asked is None:
        return known
    sizes = default_sizes(run.config, *asked)
    if known is not None and (known.sizes == sizes or not any(asked)):
        say(f"{path} is there already")
        return known
    from trb_mlx.report.diagnosing import diagnose  # loads models, which curves do not need

    say(f"measuring {run.folder.path}")
    found = diagnose(run.config, sizes, say)
    with disk_errors(str(path)):
        write_diagnostics(path, found)
    return found
