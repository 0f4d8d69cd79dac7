"""Callbacks that append to a run's JSON-lines files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trb_mlx.files import append_lines, read_steps, write_lines
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.types import Rollout, StepResult


class JsonLines:
    """A JSON-lines file whose lines carry a `step`."""

    def __init__(self, path: Path) -> None:
        """The file is made at the first line."""
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Add one line."""
        append_lines(self.path, [line])

    def cut(self, step: int) -> None:
        """Drop every line after `step`, and a last line that was cut off."""
        if self.path.exists():
            write_lines(self.path, [line for line in read_steps(self.path) if line["step"] <= step])


class MetricsWriter(Callback):
    """`metrics.jsonl`: one line a step."""

    def __init__(self, path: Path) -> None:
        """Write to `path`."""
        self._lines = JsonLines(path)

    def on_start(self, step: int) -> None:
        """A resumed run writes the lines after its checkpoint again."""
        self._lines.cut(step if step else -1)

    def on_step(self, result: StepResult) -> None:
        """One line."""
        self._lines.append({"step": result.step, **result.metrics})


class SampleWriter(Callback):
    """`samples.jsonl`: a few rollouts every few steps."""

    def __init__(
        self, path: Path, every: int, count: int, texts: Callable[[Rollout], list[str]]
    ) -> None:
        """Write `count` rollouts of every `every`-th step, decoded by `texts`."""
        self._lines = JsonLines(path)
        self._every = every
        self._count = count
        self._texts = texts

    def on_start(self, step: int) -> None:
        """A resumed run writes the lines after its checkpoint again."""
        self._lines.cut(step)

    def on_step(self, result: StepResult) -> None:
        """Rollouts spread over the step's prompts, with their statistics."""
        rollout = result.rollout
        if rollout is None or (result.step - 1) % self._every:
            return
        texts = self._texts(rollout)
        rows = len(rollout.jobs)
        for row in range(0, rows, max(1, rows // max(self._count, 1)))[: self._count]:
            self._lines.append(_sample_line(result, rollout, row, texts[row]))


def _sample_line(result: StepResult, rollout: Rollout, row: int, text: str) -> dict[str, Any]:
    prompt = rollout.jobs[row].prompt
    line = {
        "step": result.step,
        "prompt": prompt.text,
        "response": text,
        "answer": prompt.answer,
        "reward": result.rewards[row] if row < len(result.rewards) else None,
        "length": int(rollout.lengths[row]),
        "stopped": bool(rollout.stopped[row]),
    }
    if rollout.records is not None:
        used = slice(0, int(rollout.lengths[row]))
        records = rollout.records
        line["student_logprob"] = _mean(records.student_logprob[row, used])
        line["teacher_logprob"] = _mean(records.teacher_logprob[row, used])
        line["beta"] = _mean(records.weight[row, used])
    return line


def _mean(values: Any) -> float:
    return round(float(values.mean()), 4)
