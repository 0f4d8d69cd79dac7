"""What finished runs say about their methods: means over seeds, paired differences, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trb_mlx.comparison.outcomes import Outcome, Score
from trb_mlx.comparison.spec import METRICS, CompareSpec
from trb_mlx.errors import RunError
from trb_mlx.evaluation.intervals import (
    Interval,
    bootstrap_gap,
    bootstrap_share_gap,
    t_interval,
)

SHARES = ("pass@1", "truncated_fraction")  # means over problems of scores in [0, 1]


@dataclass
class Row:
    """One variant: each metric over its seeds, and its paired difference to the reference.

    Attributes:
        chosen: the variant of its method that did best on problems which are not reported.
        over_seeds: metric → mean with a t interval over seeds.
        difference: metric → mean paired difference with a t interval over seeds.
        over_problems: metric → the same difference with a bootstrap interval over problems.
        equal_cost: the cost of all `equal` metrics, where the axis is one of cost.
    """

    method: str
    variant: str
    chosen: bool
    seeds: list[int]
    values: dict[str, list[float]]
    over_seeds: dict[str, Interval]
    difference: dict[str, Interval] = field(default_factory=dict)
    over_problems: dict[str, Interval] = field(default_factory=dict)
    equal_cost: float | None = None


def compare_methods(spec: CompareSpec, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row a variant, in the order of the comparison.

    Raises:
        RunError: two methods of one seed were evaluated on different problems.
    """
    check_paired(outcomes)
    cost = equal_cost(spec, outcomes)
    if cost is not None:
        outcomes = [at_cost(outcome, cost) for outcome in outcomes]
    variants = list(dict.fromkeys((outcome.method, outcome.variant) for outcome in outcomes))
    chosen = {method: _chosen(outcomes, method) for method, _ in variants}
    reference = {run.seed: run for run in outcomes if run.method == spec.reference}
    rows = []
    for method, variant in variants:
        runs = [outcome for outcome in outcomes if outcome.variant == variant]
        names = [name for name in METRICS if all(name in run.metrics for run in runs)]
        values = {name: [run.metrics[name] for run in runs] for name in names}
        row = Row(
            method=method,
            variant=variant,
            chosen=variant == chosen[method],
            seeds=[run.seed for run in runs],
            values=values,
            over_seeds={name: t_interval(each) for name, each in values.items()},
            equal_cost=cost,
        )
        if method != spec.reference:
            pairs = [(run, reference[run.seed]) for run in runs if run.seed in reference]
            _set_differences(row, pairs)
        rows.append(row)
    return rows


def equal_cost(spec: CompareSpec, outcomes: Sequence[Outcome]) -> float | None:
    """The most that every run has cost, on an axis of cost: there their curves are compared."""
    if spec.axis == "steps" or not outcomes:
        return None
    return min(outcome.curves["reverse_kl"][-1][0] for outcome in outcomes)


def at_cost(outcome: Outcome, cost: float) -> Outcome:
    """An outcome with `equal.NAME`, its held-out curves at a cost, linear between evaluations."""
    equal = {
        f"equal.{name}": float(np.interp(cost, *np.array(points).T))
        for name, points in outcome.curves.items()
    }
    return replace(outcome, metrics={**outcome.metrics, **equal})


def check_paired(outcomes: Sequence[Outcome]) -> None:
    """Hold that all runs of one seed answered the same problems."""
    keys: dict[int, tuple[str, frozenset[str]]] = {}
    for outcome in outcomes:
        for scores in outcome.problems.values():
            answered = frozenset(scores["mean_length"])
            first, expected = keys.setdefault(outcome.seed, (outcome.variant, answered))
            if answered != expected:
                raise RunError(
                    f"{outcome.variant} and {first} of seed {outcome.seed} were evaluated on "
                    "different problems, so they cannot be paired."
                )


def _chosen(outcomes: Sequence[Outcome], method: str) -> str:
    """The variant with the best mean held-out score; of equals, the first."""
    scores: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.method == method:
            scores.setdefault(outcome.variant, []).append(outcome.held_out)
    return max(scores, key=lambda variant: float(np.mean(scores[variant])))


def _set_differences(row: Row, pairs: Sequence[tuple[Outcome, Outcome]]) -> None:
    """Differences to the reference's run of the same seed."""
    if not pairs:
        return
    for name in row.over_seeds:
        if all(name in other.metrics for _, other in pairs):
            gaps = [run.metrics[name] - other.metrics[name] for run, other in pairs]
            row.difference[name] = t_interval(gaps)
        checkpoint, metric = name.split(".", 1)
        interval = _over_problems(pairs, checkpoint, metric)
        if interval is not None:
            row.over_problems[name] = interval


def _over_problems(
    pairs: Sequence[tuple[Outcome, Outcome]], checkpoint: str, metric: str
) -> Interval | None:
    """The same difference with an interval over problems, where every run has it by problem."""
    scores = [[run.problems.get(checkpoint, {}).get(metric, {}) for run in pair] for pair in pairs]
    if not all(run for pair in scores for run in pair):
        return None
    keys = sorted({key for pair in scores for run in pair for key in run})
    table = np.array(
        [[[run.get(key, Score(0.0, 0.0)) for key in keys] for run in pair] for pair in scores]
    )  # [S, 2, P, 2]
    bootstrap = bootstrap_share_gap if metric in SHARES else bootstrap_gap
    return bootstrap(table[..., 0], table[..., 1])
