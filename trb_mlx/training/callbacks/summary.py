"""What a run prints at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from trb_mlx.text import clock, rounded
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.training.callbacks.progress import cell
from trb_mlx.training.peak_memory import PHASES
from trb_mlx.types import StepResult


class Summary(Callback):
    """Both ends of a run and where its time went."""

    def __init__(self, begun: float, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        """`begun` by `time.perf_counter`; a resumed run has `earlier` lines of metrics."""
        evaluations = [line for line in earlier if "eval/reverse_kl" in line]
        self._before: Mapping[str, Any] = evaluations[0] if evaluations else {}
        self._after: Mapping[str, Any] = {}
        self._begun = begun
        self._seconds: dict[str, float] = {}
        self._gb: dict[str, float] = {}

    def on_start(self, step: int) -> None:
        """All that came before was loading."""
        self._seconds["loading"] = time.perf_counter() - self._begun

    def on_step(self, result: StepResult) -> None:
        """Keep evaluations, add up the phases, and keep the most memory of each."""
        metrics = result.metrics
        if "eval/reverse_kl" in metrics:
            self._before = self._before or metrics
            self._after = metrics
        for phase in ("rollout", "update", "reward", "eval"):
            seconds = metrics.get(f"time/{phase}_s", 0.0)
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        for phase in PHASES:
            if f"memory/{phase}_gb" in metrics:
                self._gb[phase] = max(self._gb.get(phase, 0.0), metrics[f"memory/{phase}_gb"])

    def lines(self) -> list[str]:
        """Before and after, and the phases of time and memory."""
        lines = []
        for label, name, form in (
            ("pass@1", "eval/pass@1", ".1%"),
            ("reverse KL", "eval/reverse_kl", ".3f"),
        ):
            if name in self._after:
                ends = (cell(metrics, name, form) for metrics in (self._before, self._after))
                lines.append(f"{label:<11}" + " → ".join(ends))
        if "eval/teacher_pass@1" in self._before:
            lines.append(f"{'teacher':<11}{self._before['eval/teacher_pass@1']:.1%}")
        total = time.perf_counter() - self._begun
        phases = ", ".join(
            f"{name} {clock(spent)}" for name, spent in self._seconds.items() if spent
        )
        lines.append(f"{'time':<11}{clock(total)} ({phases})")
        if self._gb:
            gbs = ((name, self._gb[name]) for name in PHASES if name in self._gb)
            peaks = ", ".join(f"{name} {rounded(gb)}" for name, gb in gbs)
            lines.append(f"{'memory':<11}{rounded(max(self._gb.values()))} GiB ({peaks})")
        return lines
