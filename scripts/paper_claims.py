"""The paper's claims about TRB, each as paired differences over the seeds of a comparison.

Reads the runs that `trb-mlx compare SPEC` left; trains nothing. A claim holds where the whole
interval (Student's t over seeds) lies on its side of zero, fails where it lies on the other side,
and is open where it holds zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from trb_mlx.cli.failures import ending_plainly
from trb_mlx.comparison.outcomes import read_outcome
from trb_mlx.comparison.spec import CompareSpec, load_spec, plan_runs
from trb_mlx.errors import UserError
from trb_mlx.evaluation.intervals import Interval, t_interval
from trb_mlx.files import read_lines
from trb_mlx.runs.folder import locate

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run: its compared metrics, its training steps, and those in which TRB blends."""

    metrics: Mapping[str, float]
    steps: Sequence[Step]
    blended: frozenset[int]


@dataclass(frozen=True)
class Claim:
    """`measure` of TRB is above that of `other` (`sign` 1), or below it (−1).

    `scale` takes shares to percentage points; `form` writes a value.
    """

    text: str
    other: str
    sign: int
    measure: Callable[[Run], float]
    scale: float = 100.0
    form: str = ".1f"


def metric(name: str, run: Run) -> float:
    """One of the comparison's metrics."""
    return run.metrics[name]


def teacher_entropy(blended: bool, run: Run) -> float:
    """The teacher's mean entropy on visited prefixes, in the warm-up or after it, in nats."""
    steps = [step for step in run.steps if (step["step"] in run.blended) == blended]
    return float(np.mean([step["entropy/teacher"] for step in steps]))


FINAL, AREA = partial(metric, "final.pass@1"), partial(metric, "early.area")
CLAIMS = (
    Claim("final pass@1 above vanilla", "vanilla", 1, FINAL),
    Claim("final pass@1 above fixed-ε", "fixed", 1, FINAL),
    Claim("early curve above vanilla (its area)", "vanilla", 1, AREA),
    Claim(
        "teacher's entropy below vanilla in the warm-up, nats",
        "vanilla",
        -1,
        partial(teacher_entropy, True),
        1.0,
        ".4f",
    ),
    Claim(
        "teacher's entropy below vanilla after it too, nats (the paper: no longer)",
        "vanilla",
        -1,
        partial(teacher_entropy, False),
        1.0,
        ".4f",
    ),
)


def read_runs(spec: CompareSpec, name: str, root: Path) -> dict[tuple[str, int], Run]:
    """The finished runs by (method, seed); of a sweep, its last setting."""
    found: dict[tuple[str, int], Run] = {}
    blended: dict[int, frozenset[int]] = {}
    planned = sorted(plan_runs(spec, root, name), key=lambda run: run.method != "trb")
    for run in planned:
        outcome = read_outcome(spec, run)
        if outcome is None:
            continue
        lines = read_lines(locate(run.config, run.name).metrics)
        steps = [line for line in lines if "loss" in line]
        if run.method == "trb":
            blended[run.seed] = frozenset(s["step"] for s in steps if s["trb/epsilon"] > 0)
        found[run.method, run.seed] = Run(
            outcome.metrics, steps, blended.get(run.seed, frozenset())
        )
    return found


def paired(claim: Claim, runs: Mapping[tuple[str, int], Run]) -> tuple[np.ndarray, np.ndarray]:
    """The measure of TRB and of the other, float `[S]` each, at the seeds that both finished."""
    seeds = sorted(seed for method, seed in runs if method == "trb" and (claim.other, seed) in runs)
    ours, others = (
        np.array([claim.scale * claim.measure(runs[method, seed]) for seed in seeds])
        for method in ("trb", claim.other)
    )
    return ours, others


def verdict(claim: Claim, found: Interval) -> str:
    """What an interval says of a claim."""
    ends = [claim.sign * end for end in (found.low, found.high) if end is not None]
    if not ends:  # seeds alike
        return "open"
    return "holds" if min(ends) > 0 else "fails" if max(ends) < 0 else "open"


@click.command()
@click.argument("name", metavar="SPEC")
@ending_plainly()
def main(name: str) -> None:
    """Write the claims as a Markdown table."""
    spec, root = load_spec(name)
    runs = read_runs(spec, name, root)
    click.echo(
        "| claim | TRB | other | TRB − other, 95% interval | |\n| --- | --- | --- | --- | --- |"
    )
    for claim in CLAIMS:
        ours, others = paired(claim, runs)
        if len(ours) < 2:
            raise UserError(f"{name} has fewer than two finished seeds of trb and {claim.other}.")
        found = t_interval(list(ours - others))
        means = f"{ours.mean():{claim.form}} | {others.mean():{claim.form}}"
        ends = [end for end in (found.low, found.high) if end is not None]
        gap = " to ".join(f"{end:+{claim.form}}" for end in ends) or "no interval"
        told = f"{found.value:+{claim.form}} ({gap})"
        click.echo(f"| {claim.text} | {means} | {told} | {verdict(claim, found)} |")


if __name__ == "__main__":
    main()
