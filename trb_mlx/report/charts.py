"""What a figure shows, apart from how it is drawn; and the figures made of a run's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trb_mlx.report.curves import Curve, Method, curve

HIGH_COUNT = 10_000  # from here on a number is written without decimals


@dataclass(frozen=True)
class Line:
    """One series: points `[N]`, with a spread drawn as a band or as bars where there is one.

    `reference` lines are dotted and unmarked; `notes` stand beside the points.
    """

    label: str
    slot: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    bars: bool = False
    marked: bool = False
    reference: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """One figure: its lines, axes, and what to say about it.

    `shaded` are the steps up to which the background is; `ticks` name the places 0, 1, … of a
    horizontal axis without a scale; `level` is a value with its label, drawn across.
    """

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    percent: bool = False
    log: bool = False
    ticks: Sequence[str] = ()
    shaded: Sequence[int] = ()
    level: tuple[float, str] | None = None

    @property
    def alt(self) -> str:
        """The figure in words: what it plots, and where each line begins, ends and turns."""
        parts = [f"Line chart: {self.title}, against {self.x_label}."]
        if self.shaded:
            ends = " and ".join(f"step {end}" for end in self.shaded)
            parts.append(f"The warm-up, up to {ends}, is shaded.")
        parts += [self._told(line) for line in self.lines]
        if self.level is not None:
            parts.append(f"A level line marks {self.level[1]}, {self.form(self.level[0])}.")
        return " ".join(parts)

    def form(self, value: float) -> str:
        """A value of the figure as text."""
        return number(value, self.percent)

    def place(self, x: float) -> str:
        """A place on the horizontal axis as text."""
        return self.ticks[int(x)] if self.ticks else number(x)

    def _told(self, line: Line) -> str:
        if len(line.y) == 1:
            return f"{line.label}: {self.form(line.y[0])} at {self.place(line.x[0])}."
        return (
            f"{line.label}: from {self.form(line.y[0])} at {self.place(line.x[0])} to "
            f"{self.form(line.y[-1])} at {self.place(line.x[-1])}, lowest "
            f"{self.form(line.y.min())}, highest {self.form(line.y.max())}."
        )


def number(value: float, percent: bool = False) -> str:
    """A number as the report writes it: three digits, or a percentage."""
    if percent:
        return f"{value:.1%}"
    if abs(value) >= HIGH_COUNT:
        return f"{value:,.0f}"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−") if "e" not in text else text


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
    percent: bool = False
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
        percent=True,
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
        percent=True,
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
        percent=True,
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
        percent=True,
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
        "The highest use of MLX's allocator within a step.",
    ),
)
SECTIONS = {
    "learning": "Learning",
    "behavior": "Behavior policy",
    "entropy": "Entropy",
    "rollouts": "Rollouts",
    "cost": "Cost",
}


def chart_of(spec: Spec, methods: Sequence[Method]) -> Chart | None:
    """The figure of one metric, or None where no run has it."""
    lines: list[Line] = []
    for method in methods:
        found = curve(method, spec.metric)
        if found is not None:
            lines.append(_line(method.label, method.slot, found, spec.metric.startswith("eval/")))
            lines += _reference(spec, method, len(methods) > 1)
    if not lines:
        return None
    ends = {end for method in methods for run in method.runs if (end := run.warmup()) is not None}
    return Chart(
        spec.key,
        spec.title,
        spec.caption,
        "step",
        spec.y_label,
        lines,
        percent=spec.percent,
        log=spec.log and all((line.y > 0).all() for line in lines),
        shaded=sorted(ends),
        level=_level(spec, methods),
    )


def _line(label: str, slot: int, found: Curve, evaluated: bool) -> Line:
    return Line(label, slot, found.steps, found.values, found.low, found.high, marked=evaluated)


def _reference(spec: Spec, method: Method, several: bool) -> list[Line]:
    """The dotted line beside a method's own."""
    if spec.reference is None:
        return []
    metric, label = spec.reference
    found = curve(method, metric)
    if found is None or not found.values.any():
        return []
    told = f"{label} of {method.label}" if several else label
    return [Line(told, method.slot, found.steps, found.values, reference=True)]


def _level(spec: Spec, methods: Sequence[Method]) -> tuple[float, str] | None:
    """The mean over runs of the metric that a level line marks."""
    if spec.level is None:
        return None
    metric, label = spec.level
    values = [v for method in methods for run in method.runs for v in run.points(metric).values()]
    return (float(np.mean(values)), label) if values else None
