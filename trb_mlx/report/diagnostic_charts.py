"""The figures made of what was measured with a run's models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from trb_mlx.evaluation.diagnostics import BudgetRollouts, Continuation, Diagnostics
from trb_mlx.evaluation.intervals import Interval
from trb_mlx.report.charts import Chart, Line
from trb_mlx.report.measures import auroc, mean_interval, paired_gain, wilson
from trb_mlx.report.theme import SLOTS

MODELS = ("teacher", "student")
BEHAVIOR, VANILLA, RIGHT = SLOTS["trb"], SLOTS["vanilla"], SLOTS["fixed"]
TEACHER, STUDENT, WRONG = 3, 4, 5


def diagnostic_charts(diagnostics: Diagnostics, prefix: str = "") -> list[Chart]:
    """Every figure that the measurements allow; `prefix` sets their files apart."""
    charts = [
        *(_success(diagnostics, model) for model in MODELS),
        _gain(diagnostics),
        _reward_by_logprob(diagnostics),
        _logprob_by_outcome(diagnostics),
        _auroc(diagnostics),
    ]
    return [replace(chart, key=prefix + chart.key) for chart in charts if chart.lines]


def _success(diagnostics: Diagnostics, model: str) -> Chart:
    points = _of_model(diagnostics, model)
    pairs = (
        ("from vanilla prefixes", VANILLA, [point.vanilla for point in points]),
        (f"from {diagnostics.behavior}", BEHAVIOR, [point.blended for point in points]),
    )
    return Chart(
        f"continuation-{model}",
        f"{model.capitalize()} continues cut rollouts",
        f"Success when the {model} alone goes on from the first tokens of rollouts. Those that "
        "ended before the cut count as they are. Bars: 95% intervals.",
        "tokens kept",
        "success",
        [_share_line(label, slot, _cuts(points), rows) for label, slot, rows in pairs if rows],
        percent=True,
    )


def _gain(diagnostics: Diagnostics) -> Chart:
    lines = []
    for model, slot in zip(MODELS, (TEACHER, STUDENT), strict=True):
        points = _of_model(diagnostics, model)
        gains = [paired_gain(point.blended, point.vanilla) for point in points]
        if gains:
            lines.append(_interval_line(f"{model} continues", slot, _cuts(points), gains))
    return Chart(
        "continuation-gain",
        "Continuation gain",
        f"Success from prefixes of {diagnostics.behavior} less success from the student's own, "
        "prompt by prompt. Bars: 95% intervals.",
        "tokens kept",
        "gain",
        lines,
        percent=True,
        level=(0.0, "no gain"),
    )


def _reward_by_logprob(diagnostics: Diagnostics) -> Chart:
    scored = [point for point in diagnostics.budgets if point.rewards]
    x = np.array([np.mean(point.teacher_logprob) for point in scored])
    rewards = [point.rewards for point in scored]
    line = _share_line("reward", BEHAVIOR, x, rewards) if scored else None
    return Chart(
        "reward-by-teacher-logprob",
        "Reward against the teacher's log-prob",
        "Each point is one budget: the mean reward of its rollouts over the mean log-prob that "
        "the teacher gives their tokens. Bars: 95% intervals of the reward.",
        "teacher's log-prob, nats a token",
        "mean reward",
        [replace(line, notes=[f"ε {point.budget:g}" for point in scored])] if line else [],
        percent=True,
    )


def _logprob_by_outcome(diagnostics: Diagnostics) -> Chart:
    lines = [
        _per_budget("right rollouts", RIGHT, diagnostics.budgets, _logprob_of(right=True)),
        _per_budget("wrong rollouts", WRONG, diagnostics.budgets, _logprob_of(right=False)),
    ]
    return Chart(
        "teacher-logprob-by-outcome",
        "Teacher's log-prob of right and wrong rollouts",
        "Mean log-prob that the teacher gives a rollout's tokens. An outcome that no rollout of "
        "a budget had has no point there. Bars: 95% intervals.",
        "budget ε, nats a token",
        "nats a token",
        [line for line in lines if line],
        ticks=_ticks(diagnostics),
    )


def _auroc(diagnostics: Diagnostics) -> Chart:
    line = _per_budget("AUROC", BEHAVIOR, diagnostics.budgets, _auroc_of)
    return Chart(
        "auroc",
        "AUROC of the sequence score",
        "How well mean(log π_T − log π_S) over a rollout tells right from wrong ones. A budget "
        "whose rollouts all had one outcome has no point. Bars: 95% intervals.",
        "budget ε, nats a token",
        "AUROC",
        [line] if line else [],
        ticks=_ticks(diagnostics),
        level=(0.5, "chance"),
    )


def _auroc_of(point: BudgetRollouts) -> Interval | None:
    pairs = zip(point.teacher_logprob, point.student_logprob, strict=True)
    scores = [teacher - student for teacher, student in pairs]
    return auroc(scores, point.rewards) if point.rewards else None


def _logprob_of(right: bool) -> Callable[[BudgetRollouts], Interval | None]:
    def measure(point: BudgetRollouts) -> Interval | None:
        pairs = zip(point.teacher_logprob, point.rewards, strict=bool(point.rewards))
        chosen = [logprob for logprob, reward in pairs if bool(reward) == right]
        return mean_interval(chosen) if chosen else None

    return measure


def _per_budget(
    label: str,
    slot: int,
    points: Sequence[BudgetRollouts],
    measure: Callable[[BudgetRollouts], Interval | None],
) -> Line | None:
    """A value with its interval at the place of each budget that has one."""
    measured = {place: measure(point) for place, point in enumerate(points)}
    intervals = {place: each for place, each in measured.items() if each is not None}
    if not intervals:
        return None
    return _interval_line(label, slot, np.array(list(intervals), float), list(intervals.values()))


def _interval_line(label: str, slot: int, x: np.ndarray, intervals: Sequence[Interval]) -> Line:
    value, low, high = np.array([(each.value, each.low, each.high) for each in intervals], float).T
    return Line(label, slot, x, value, low, high, bars=True, marked=True)


def _share_line(label: str, slot: int, x: np.ndarray, rewards: Sequence[Sequence[float]]) -> Line:
    share = np.array([np.mean(values) for values in rewards])
    low, high = wilson(share, len(rewards[0]))
    return Line(label, slot, x, share, low, high, bars=True, marked=True)


def _of_model(diagnostics: Diagnostics, model: str) -> list[Continuation]:
    return [point for point in diagnostics.continuations if point.model == model]


def _cuts(points: Sequence[Continuation]) -> np.ndarray:
    return np.array([point.cut for point in points], float)


def _ticks(diagnostics: Diagnostics) -> list[str]:
    return [f"{point.budget:g}" for point in diagnostics.budgets]
