"""What a run prints: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from trb_mlx.evaluation.evaluator import NONE_RIGHT, truncation_warning
from trb_mlx.text import clock, number, say
from trb_mlx.training.callbacks.base import Callback, Phase
from trb_mlx.types import StepResult

# (heading, metric, format); a metric that a step does not have shows as a dash.
COLUMNS = (
    ("ε", "trb/epsilon", ".4g"),
    ("reverse KL", "reverse_kl", ".3f"),
    ("β", "trb/beta_mean", ".3f"),
    ("reward", "reward/mean", ".3f"),
    ("length", "completions/mean_length", ".1f"),
    ("truncated", "completions/truncated_fraction", ".0%"),
    ("tokens/s", "tokens_per_second", ".0f"),
)
SHOWN_ROWS = 8  # steps that the live table keeps in view
UNREWARDED_STEPS = 5  # in a row without a reward, before that is said


def cell(metrics: Mapping[str, Any], name: str, form: str) -> str:
    """One metric as text."""
    return number(metrics.get(name), form, missing="-")


def plain_line(result: StepResult, steps: int, left: float) -> str:
    """One step as one line, for logs and pipes."""
    parts = [f"{heading} {cell(result.metrics, name, form)}" for heading, name, form in COLUMNS]
    return f"step {result.step}/{steps} | " + " | ".join(parts) + f" | {clock(left)} left"


def evaluation_line(result: StepResult) -> str:
    """The held-out evaluation of a step as one line."""
    metrics = result.metrics
    line = (
        f"evaluation after step {result.step}: pass@1 {cell(metrics, 'eval/pass@1', '.1%')}, "
        f"reverse KL {cell(metrics, 'eval/reverse_kl', '.3f')}, "
        f"length {cell(metrics, 'eval/mean_length', '.1f')}, "
        f"truncated {cell(metrics, 'eval/truncated_fraction', '.0%')}"
    )
    teacher = metrics.get("eval/teacher_pass@1")
    return line + (f" (teacher's pass@1 {teacher:.1%})" if teacher is not None else "")


class ProgressPrinter(Callback):
    """Prints steps as they come: a live table where there is a terminal, else lines."""

    def __init__(self, console: Console, steps: int, every: int) -> None:
        """Report every `every`-th of `steps` steps."""
        self._console = console
        self._steps = steps
        self._every = every
        self._rows: list[StepResult] = []
        self._live: Live | None = None
        self._spinner: Spinner | None = None  # what the run does, and for how long
        self._step = self._first = 0
        self._begun = 0.0
        self._unrewarded = 0  # steps in a row
        self._warned: set[str] = set()

    def on_start(self, step: int) -> None:
        """Start the clock and, on a terminal, the live table."""
        self._step = self._first = step
        self._begun = time.perf_counter()
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=4, get_renderable=self._view
            )
            self._live.start()

    def on_phase(self, phase: Phase, step: int) -> None:
        """Show what begins; in plain lines where none has been printed yet."""
        doing = f"step {step}" if phase == "update" else f"evaluation after step {step}"
        self._spinner = Spinner("line", doing)
        if self._live is None and step <= self._first + (phase == "update"):
            say(self._console, f"{doing} begins")

    def on_step(self, result: StepResult) -> None:
        """Show a step, and its evaluation above the table."""
        if result.step == 0:
            self._begun = time.perf_counter()
        if result.step and result.step % self._every == 0:
            self._rows = [*self._rows, result][-SHOWN_ROWS:]
            if self._live is None:
                say(self._console, plain_line(result, self._steps, self._left(result.step)))
        if "eval/reverse_kl" in result.metrics:
            say(self._console, evaluation_line(result))
        if result.metrics.get("skipped"):
            say(self._console, f"step {result.step}: not finite, update skipped")
        self._warn(result)
        self._step = result.step

    def _warn(self, result: StepResult) -> None:
        """Say once each what is likely to be wrong with the settings."""
        truncated = result.metrics.get("completions/truncated_fraction", 0.0)
        rewarded = result.metrics.get("reward/mean")
        self._unrewarded = self._unrewarded + 1 if rewarded == 0.0 else 0
        sentences = {
            "truncated": truncation_warning(truncated, "rollout.max_tokens"),
            "unrewarded": NONE_RIGHT if self._unrewarded == UNREWARDED_STEPS else None,
        }
        for kind, sentence in sentences.items():
            if sentence is not None and kind not in self._warned:
                self._warned.add(kind)
                say(self._console, f"step {result.step}: {sentence}")

    def on_stop(self, step: int) -> None:
        """Ask for patience."""
        self._spinner = None
        say(self._console, f"saving step {step}…")

    def on_end(self, step: int) -> None:
        """Leave the last state of the table on the screen."""
        self._spinner = None
        if self._live is not None:
            with suppress(OSError):  # the terminal may be gone
                self._live.stop()

    def _left(self, step: int) -> float:
        """Seconds that the remaining steps will take at the pace so far."""
        pace = (time.perf_counter() - self._begun) / max(step - self._first, 1)
        return pace * (self._steps - step)

    def _view(self) -> Table:
        """The last steps, how far the run is, and what it does."""
        table = Table(box=None, pad_edge=False)
        table.add_column("step", justify="right")
        for heading, _, _ in COLUMNS:
            table.add_column(heading, justify="right")
        for row in self._rows:
            cells = [cell(row.metrics, name, form) for _, name, form in COLUMNS]
            table.add_row(str(row.step), *cells)
        outer = Table.grid(padding=(0, 1))
        if self._rows:
            outer.add_row(table)
        bar = ProgressBar(total=self._steps, completed=self._step, width=40)
        left = f", {clock(self._left(self._step))} left" if self._step > self._first else ""
        status = Table.grid(padding=(0, 1))
        status.add_row(bar, f"{self._step}/{self._steps}{left}")
        outer.add_row(status)
        if self._spinner is not None:
            outer.add_row(self._spinner)
        return outer
