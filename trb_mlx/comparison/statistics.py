"""What finished runs say about their methods: means over seeds, paired differences, intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import trapezoid

from trb_mlx.comparison.spec import HIGHER_IS_BETTER, METRICS, CompareSpec
from trb_mlx.errors import RunError
from trb_mlx.evaluation.intervals import (
    Interval,
    bootstrap_gap,
    bootstrap_share_gap,
    t_interval,
)
from trb_mlx.evaluation.result_folder import Line

SHARES = ("pass@1", "truncated_fraction")  # means over problems of scores in [0, 1]
PHASES = ("time/rollout_s", "time/update_s", "time/reward_s", "time/eval_s")


class Score(NamedTuple):
    """A problem's part of a metric, which is Σ total / Σ terms over all problems."""

    total: float
    terms: float = 1.0


Scores = Mapping[str, Mapping[str, Score]]  # metric → problem's key → its score


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        method, variant, seed: which run it is.
        metrics: every metric of `compare_spec.METRICS` that it has.
        held_out: its last held-out score during training, on problems that are not reported.
        problems: checkpoint (`final`, `best`) → metric → problem's key → score.
        steps: checkpoint → its step.
    """

    method: str
    variant: str
    seed: int
    metrics: Mapping[str, float]
    held_out: float
    problems: Mapping[str, Scores]
    steps: Mapping[str, int]


@dataclass
class Row:
    """One variant: each metric over its seeds, and its paired difference to the reference.

    Attributes:
        chosen: the variant of its method that did best on problems which are not reported.
        over_seeds: metric → mean with a t interval over seeds.
        difference: metric → mean paired difference with a t interval over seeds.
        over_problems: metric → the same difference with a bootstrap interval over problems.
    """

    method: str
    variant: str
    chosen: bool
    seeds: list[int]
    values: dict[str, list[float]]
    over_seeds: dict[str, Interval]
    difference: dict[str, Interval] = field(default_factory=dict)
    over_problems: dict[str, Interval] = field(default_factory=dict)


def training_metrics(
    lines: Sequence[Mapping[str, Any]], rollouts_per_step: int, early_steps: int
) -> tuple[dict[str, float], float]:
    """`early.area`, `cost.seconds`, `cost.tokens` of a run's metrics, and its held-out score.

    The area is the mean height of the held-out curve (pass@1; reverse KL where no answer is)
    from step 0 to `early_steps`, by the trapezoid rule. Tokens are those of the rollouts.
    """
    name = "eval/pass@1" if any("eval/pass@1" in line for line in lines) else "eval/reverse_kl"
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    early = [point for point in points if point[0] <= early_steps]
    steps, heights = zip(*early, strict=True)
    lengths = [line.get("completions/mean_length", 0.0) for line in lines]
    found = {
        "early.area": float(trapezoid(heights, steps)) / early_steps,
        "cost.seconds": float(sum(line.get(phase, 0.0) for line in lines for phase in PHASES)),
        "cost.tokens": float(round(sum(lengths) * rollouts_per_step)),
    }
    return found, points[-1][1] if name == "eval/pass@1" else -points[-1][1]


def problem_scores(lines: Sequence[Line]) -> dict[str, dict[str, Score]]:
    """Metric → problem's key → its score, of an evaluation's lines.

    Distances to the teacher are means over tokens, so a problem counts by its tokens; everything
    else is a mean over problems. A problem that is asked twice counts twice.
    """
    scores: dict[str, dict[str, Score]] = {}
    for line in lines:
        for name, score in _scores(line):
            known = scores.setdefault(name, {})
            before = known.get(line["key"], Score(0.0, 0.0))
            known[line["key"]] = Score(before.total + score.total, before.terms + score.terms)
    return scores


def _scores(line: Line) -> Iterator[tuple[str, Score]]:
    if line["rewards"] is not None:
        yield "pass@1", Score(float(np.mean(line["rewards"])))
    yield "mean_length", Score(float(np.mean(line["lengths"])))
    yield "truncated_fraction", Score(1.0 - float(np.mean(line["stopped"])))
    apart = line.get("distribution", {})
    for name in ("reverse_kl", "forward_kl", "topk_overlap"):
        if name in apart:
            yield name, Score(apart[name], apart["tokens"])
    if "student_entropy" in apart:
        gap = apart["student_entropy"] - apart["teacher_entropy"]
        yield "entropy_gap", Score(gap, apart["tokens"])


def compare_methods(spec: CompareSpec, outcomes: Sequence[Outcome]) -> list[Row]:
    """A row a variant, in the order of the comparison.

    Raises:
        RunError: two methods of one seed were evaluated on different problems.
    """
    check_paired(outcomes)
    variants = list(dict.fromkeys((outcome.method, outcome.variant) for outcome in outcomes))
    chosen = {method: _chosen(outcomes, method) for method, _ in variants}
    reference = {o.seed: o for o in outcomes if o.method == spec.reference}
    rows = []
    for method, variant in variants:
        runs = [outcome for outcome in outcomes if outcome.variant == variant]
        row = _row(runs, variant == chosen[method])
        if method != spec.reference:
            pairs = [(run, reference[run.seed]) for run in runs if run.seed in reference]
            _set_differences(row, pairs)
        rows.append(row)
    return rows


def check_paired(outcomes: Sequence[Outcome]) -> None:
    """Hold that all runs of one seed answered the same problems."""
    keys: dict[int, tuple[str, frozenset[str]]] = {}
    for outcome in outcomes:
        for scores in outcome.problems.values():
            found = frozenset(scores["mean_length"])
            first, expected = keys.setdefault(outcome.seed, (outcome.variant, found))
            if found != expected:
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


def _row(runs: Sequence[Outcome], chosen: bool) -> Row:
    names = [name for name in METRICS if all(name in run.metrics for run in runs)]
    values = {name: [run.metrics[name] for run in runs] for name in names}
    over_seeds = {name: t_interval(found) for name, found in values.items()}
    seeds = [run.seed for run in runs]
    return Row(runs[0].method, runs[0].variant, chosen, seeds, values, over_seeds)


def _set_differences(row: Row, pairs: Sequence[tuple[Outcome, Outcome]]) -> None:
    """Differences to the reference's run of the same seed."""
    if not pairs:
        return
    for name in row.over_seeds:
        if all(name in other.metrics for _, other in pairs):
            gaps = [run.metrics[name] - other.metrics[name] for run, other in pairs]
            row.difference[name] = t_interval(gaps)
        point, _, metric = name.partition(".")
        found = _over_problems(pairs, point, metric)
        if found is not None:
            row.over_problems[name] = found


def _over_problems(
    pairs: Sequence[tuple[Outcome, Outcome]], point: str, metric: str
) -> Interval | None:
    """The same difference with an interval over problems, where every run has it by problem."""
    scores = [[run.problems.get(point, {}).get(metric, {}) for run in pair] for pair in pairs]
    if not all(run for pair in scores for run in pair):
        return None
    keys = sorted({key for pair in scores for run in pair for key in run})
    table = np.array(
        [[[run.get(key, Score(0.0, 0.0)) for key in keys] for run in pair] for pair in scores]
    )  # [S, 2, P, 2]
    bootstrap = bootstrap_share_gap if metric in SHARES else bootstrap_gap
    return bootstrap(table[..., 0], table[..., 1])


def is_better_higher(metric: str) -> bool:
    """Whether a larger value of a metric is the better one."""
    return metric.endswith(HIGHER_IS_BETTER)
