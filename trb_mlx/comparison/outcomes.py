"""The outcome of a finished run: its metrics, and how each problem scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import trapezoid

from trb_mlx.comparison.records import PHASES, read_finished
from trb_mlx.comparison.spec import CompareSpec, PlannedRun
from trb_mlx.errors import UserError, reading
from trb_mlx.evaluation.result_folder import Line
from trb_mlx.runs.metrics import Axis, place_on


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
        metrics: those of `spec.METRICS` that it has.
        held_out: its last held-out score during training, on problems that are not reported.
        problems: checkpoint (`final`, `best`) → metric → problem's key → score.
        steps: checkpoint → its step.
        curves: `pass@1` and `reverse_kl` on the problems held out in training, as points
            (place on the comparison's axis, value).
    """

    method: str
    variant: str
    seed: int
    metrics: Mapping[str, float]
    held_out: float
    problems: Mapping[str, Scores]
    steps: Mapping[str, int]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def read_outcome(spec: CompareSpec, run: PlannedRun) -> Outcome | None:
    """A run's outcome, of its folder or its record, or None where it is not finished.

    Raises:
        UserError: it cannot be read, or its evaluation lacks problems.
    """
    finished = read_finished(spec, run)
    if finished is None:
        return None
    with reading(f"outcome {finished.where}"):
        rollouts = run.config.train.prompts_per_step * run.config.rollout.rollouts_per_prompt
        metrics, held_out = training_metrics(finished.lines, rollouts, spec.early_steps)
        curves = held_out_curves(finished.lines, spec.axis, finished.where)
        problems: dict[str, Scores] = {}
        for name, checkpoint in finished.checkpoints.items():
            for metric, value in checkpoint["metrics"].items():
                if value is not None:
                    metrics[f"{name}.{metric}"] = float(value)
            answers = finished.answers[checkpoint["folder"]]
            if len({line["problem"] for line in answers}) != spec.problems:
                raise UserError(
                    f"{finished.where}: its evaluation {checkpoint['folder']} has {len(answers)} "
                    f"lines for the {spec.problems} problems asked for; remove both to evaluate "
                    "again."
                )
            problems[name] = problem_scores(answers)
        steps = {name: checkpoint["step"] for name, checkpoint in finished.checkpoints.items()}
        return Outcome(
            run.method, run.variant, run.seed, metrics, held_out, problems, steps, curves
        )


def held_out_curves(
    lines: Sequence[Mapping[str, Any]], axis: Axis, where: Path
) -> dict[str, list[tuple[float, float]]]:
    """`pass@1` and `reverse_kl` over an axis, as points (place, value) in the order of training.

    Raises:
        UserError: an earlier version made the run, which kept no costs.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name in ("pass@1", "reverse_kl"):
            if line.get(f"eval/{name}") is not None:
                place = place_on(axis, line, where)
                curves.setdefault(name, []).append((place, line[f"eval/{name}"]))
    return curves


def training_metrics(
    lines: Sequence[Mapping[str, Any]], rollouts_per_step: int, early_steps: int
) -> tuple[dict[str, float], float]:
    """`early.area`, `cost.seconds`, `cost.tokens` of a run's metrics, and its held-out score.

    The area is the mean height of the held-out curve from step 0 to `early_steps`, by the
    trapezoid rule; where no problem has an answer it is reverse KL's, and called
    `early.reverse_kl`. Tokens are those of the rollouts.
    """
    name = "eval/pass@1" if any("eval/pass@1" in line for line in lines) else "eval/reverse_kl"
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    early = [point for point in points if point[0] <= early_steps]
    steps, heights = zip(*early, strict=True)
    lengths = [line.get("completions/mean_length", 0.0) for line in lines]
    metrics = {}
    if steps[-1] == early_steps:  # a run may end earlier by its cost
        area = "early.area" if name == "eval/pass@1" else "early.reverse_kl"
        metrics[area] = float(trapezoid(heights, steps)) / early_steps
    metrics |= {
        "cost.seconds": float(sum(line.get(phase, 0.0) for line in lines for phase in PHASES)),
        "cost.tokens": float(round(sum(lengths) * rollouts_per_step)),
    }
    last = points[-1][1]
    return metrics, last if name == "eval/pass@1" else -last


def problem_scores(lines: Sequence[Line]) -> dict[str, dict[str, Score]]:
    """Metric → problem's key → its score, of an evaluation's lines.

    Distances to the teacher are means over tokens, so a problem counts by its tokens; everything
    else is a mean over problems. A problem that is asked twice counts twice.
    """
    scores: dict[str, dict[str, Score]] = {}
    for line in lines:
        for name, score in _scores(line):
            of_metric = scores.setdefault(name, {})
            before = of_metric.get(line["key"], Score(0.0, 0.0))
            of_metric[line["key"]] = Score(before.total + score.total, before.terms + score.terms)
    return scores


def _scores(line: Line) -> Iterator[tuple[str, Score]]:
    if line["rewards"] is not None:
        yield "pass@1", Score(float(np.mean(line["rewards"])))
    yield "mean_length", Score(float(np.mean(line["lengths"])))
    yield "truncated_fraction", Score(1.0 - float(np.mean(line["stopped"])))
    sums = line.get("distribution", {})
    for name in ("reverse_kl", "forward_kl", "topk_overlap"):
        if name in sums:
            yield name, Score(sums[name], sums["tokens"])
    if "student_entropy" in sums:
        gap = sums["student_entropy"] - sums["teacher_entropy"]
        yield "entropy_gap", Score(gap, sums["tokens"])
