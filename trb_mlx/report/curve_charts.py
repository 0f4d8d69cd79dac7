"""The figures made of runs' metrics over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trb_mlx.report.charts import Chart, Line
from trb_mlx.report.curves import Method, curve
from trb_mlx.runs.metrics import AXIS_WORDS, Axis
from trb_mlx.text import is_share


@dataclass(frozen=True)
class Spec:
    """A figure of one metric over the steps of training.

    `reference` is a metric drawn dotted beside each line; `level` one drawn as a level line,
    with its label.
    """

    metric: str
    section: str
    title: str
    y_label: str
    caption: str
    log: bool = False
    reference: tuple[str, str] | None = None
    level: tuple[str, str] | None = None

    @property
    def key(self) -> str:
        """The name of its files."""
        return self.metric.replace("/", "-").replace("@", "-at-").replace("_", "-")


SPECS = (
    Spec(
        "eval/pass@1",
        "learning",
        "pass@1 on held-out prompts",
        "pass@1",
        "Share of held-out problems answered right at the evaluation's temperature.",
        level=("eval/teacher_pass@1", "teacher"),
    ),
    Spec(
        "eval/reverse_kl",
        "learning",
        "Reverse KL on held-out prompts",
        "nats a token",
        "KL(π_S‖π_T) over the whole vocabulary, on the student's own rollouts.",
        log=True,
    ),
    Spec(
        "reverse_kl",
        "learning",
        "Reverse KL on training rollouts",
        "nats a token",
        "On the prefixes that the behavior policy drew, in warm-up as later.",
        log=True,
    ),
    Spec(
        "reward/mean",
        "learning",
        "Reward of training rollouts",
        "mean reward",
        "Share of rollouts with the right answer. A diagnostic: training does not use it.",
    ),
    Spec(
        "trb/epsilon",
        "behavior",
        "Budget ε",
        "nats a token",
        "How far the behavior policy may leave the student at each prefix.",
    ),
    Spec(
        "trb/beta_mean",
        "behavior",
        "Blend weight β",
        "mean β",
        "0 is the student, 1 the teacher; the largest weight that the budget allows.",
    ),
    Spec(
        "trb/kl_behavior_student",
        "behavior",
        "KL(μ‖π_S) against its budget",
        "nats a token",
        "Token mean; below ε where the teacher itself lies within it.",
        reference=("trb/epsilon", "budget ε"),
    ),
    Spec(
        "trb/acceptance_rate",
        "behavior",
        "Acceptance of student drafts",
        "accepted",
        "Share of the student's tokens that the behavior policy keeps.",
    ),
    Spec(
        "entropy/teacher",
        "entropy",
        "Teacher's entropy on visited prefixes",
        "nats",
        "High where rollouts lead to prefixes that leave the teacher unsure.",
    ),
    Spec(
        "entropy/student",
        "entropy",
        "Student's entropy on visited prefixes",
        "nats",
        "Token mean over the step's rollouts.",
    ),
    Spec(
        "entropy/gap",
        "entropy",
        "Entropy gap",
        "nats",
        "Absolute difference of the two means.",
    ),
    Spec(
        "completions/mean_length",
        "rollouts",
        "Length of rollouts",
        "tokens",
        "Mean length of a step's responses, the stop token included.",
    ),
    Spec(
        "completions/truncated_fraction",
        "rollouts",
        "Truncated rollouts",
        "truncated",
        "Share of rollouts cut by the length limit.",
    ),
    Spec(
        "tokens_per_second",
        "cost",
        "Throughput",
        "tokens a second",
        "Response tokens of a step over its rollout, update and reward time.",
    ),
    Spec(
        "time/rollout_s",
        "cost",
        "Rollout time",
        "seconds a step",
        "Drawing a step's rollouts, and the teacher's scoring of them.",
    ),
    Spec(
        "time/update_s",
        "cost",
        "Update time",
        "seconds a step",
        "Loss, gradients and the optimizer's step.",
    ),
    Spec(
        "memory/peak_gb",
        "cost",
        "Peak memory",
        "GiB",
        "The highest use of MLX's allocator within a step: drawing, scoring or updating.",
    ),
)
SECTIONS = {
    "learning": "Learning",
    "behavior": "Behavior policy",
    "entropy": "Entropy",
    "rollouts": "Rollouts",
    "cost": "Cost",
}


def chart_of(spec: Spec, methods: Sequence[Method], axis: Axis = "steps") -> Chart | None:
    """The figure of one metric over an axis, or None where no run has it."""
    lines: list[Line] = []
    for method in methods:
        own = curve(method, spec.metric, axis)
        if own is None:
            continue
        points = own.places, own.values, own.low, own.high
        evaluated = spec.metric.startswith("eval/")
        lines.append(Line(method.label, method.slot, *points, marked=evaluated))
        beside = curve(method, spec.reference[0], axis) if spec.reference else None
        if spec.reference and beside is not None and beside.values.any():
            label = spec.reference[1] + (f" of {method.label}" if len(methods) > 1 else "")
            lines.append(Line(label, method.slot, beside.places, beside.values, reference=True))
    if not lines:
        return None
    runs = [run for method in methods for run in method.runs]
    level = None
    if spec.level is not None:
        heights = [value for run in runs for value in run.points(spec.level[0]).values()]
        level = (float(np.mean(heights)), spec.level[1]) if heights else None
    ends = [run.warmup() for run in runs] if axis == "steps" else []
    return Chart(
        spec.key,
        spec.title,
        spec.caption,
        AXIS_WORDS[axis],
        spec.y_label,
        lines,
        percent=is_share(spec.metric),
        log=spec.log and all((line.y > 0).all() for line in lines),
        shaded=sorted({end for end in ends if end is not None}),
        level=level,
    )
