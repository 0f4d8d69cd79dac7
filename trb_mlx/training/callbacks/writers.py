"""Callbacks that append to a run's JSON-lines files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trb_mlx.files import append_lines, read_steps, write_lines
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.types import Rollout, StepResult


def drop_lines_after(path: Path, step: int) -> None:
    """Drop a JSON-lines file's lines of later steps, and a last line that was cut off."""
    if path.exists():
        write_lines(path, [line for line in read_steps(path) if line["step"] <= step])


class MetricsWriter(Callback):
    """`metrics.jsonl`: one line a step."""

    def __init__(self, path: Path) -> None:
        """Write to `path`."""
        self._path = path

    def on_start(self, step: int) -> None:
        """A resumed run writes the lines after its checkpoint again."""
        drop_lines_after(self._path, step if step else -1)

    def on_step(self, result: StepResult) -> None:
        """One line."""
        append_lines(self._path, [{"step": result.step, **result.metrics}])


class SampleWriter(Callback):
    """`samples.jsonl`: a few rollouts every few steps."""

    def __init__(
        self, path: Path, every: int, count: int, texts: Callable[[Rollout], list[str]]
    ) -> None:
        """Write `count` rollouts of every `every`-th step, decoded by `texts`."""
        self._path = path
        self._every = every
        self._count = count
        self._texts = texts

    def on_start(self, step: int) -> None:
        """A resumed run writes the lines after its checkpoint again."""
        drop_lines_after(self._path, step)

    def on_step(self, result: StepResult) -> None:
        """Rollouts spread over the step's prompts, with their statistics."""
        rollout = result.rollout
        if rollout is None or (result.step - 1) % self._every or not self._count:
            return
        texts = self._texts(rollout)
        stride = max(1, len(texts) // self._count)
        rows = range(0, len(texts), stride)[: self._count]
        append_lines(self._path, [_sample_line(result, rollout, row, texts[row]) for row in rows])


def _sample_line(result: StepResult, rollout: Rollout, row: int, text: str) -> dict[str, Any]:
    prompt = rollout.jobs[row].prompt
    line = {
        "step": result.step,
        "prompt": prompt.text,
        "response": text,
        "answer": prompt.answer,
        "reward": result.rewards[row] if result.rewards else None,
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
