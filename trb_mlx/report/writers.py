"""Hooks that append to a run's JSON-lines files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trb_mlx.export.files import replacing
from trb_mlx.train.trainer import Hook
from trb_mlx.types import Rollout, StepResult


class JsonLines:
    """A JSON-lines file whose lines carry a `step`."""

    def __init__(self, path: Path) -> None:
        """The file is made at the first line."""
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; numbers that are not finite become null, since JSON has none."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")

    def cut(self, step: int) -> None:
        """Drop every line after `step`, and a last line that was cut off."""
        if not self.path.exists():
            return
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        with replacing(self.path) as draft:
            draft.write_text(
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept),
                encoding="utf-8",
            )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # a line that a crash cut off; nothing follows it
    return lines


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }


class MetricsWriter(Hook):
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


class SampleWriter(Hook):
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
