"""What a run prints and writes line by line."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from trb_mlx.files import read_lines
from trb_mlx.report.console import Ledger, ProgressHook, clock
from trb_mlx.report.writers import JsonLines, MetricsWriter
from trb_mlx.types import StepResult

STEPS = [
    StepResult(0, {"eval/pass@1": 0.1, "eval/reverse_kl": 2.0, "eval/teacher_pass@1": 1.0}),
    StepResult(1, {"trb/epsilon": 0.1, "reverse_kl": 1.5, "time/rollout_s": 61.0}),
    StepResult(2, {"trb/epsilon": 0.0, "reverse_kl": 0.5, "skipped": 1.0, "eval/reverse_kl": 0.4}),
]


def told(terminal: bool, every: int = 1) -> str:
    out = io.StringIO()
    hook = ProgressHook(Console(file=out, force_terminal=terminal, width=100), 2, every)
    hook.on_start(0)
    for result in STEPS:
        hook.on_step(result)
    hook.on_end(2)
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    lines = told(terminal=False).splitlines()
    assert lines[0] == (
        "evaluation after step 0: pass@1 10.0%, reverse KL 2.000 (teacher's pass@1 100.0%)"
    )
    assert lines[1].startswith("step 1/2 | ε 0.1 | reverse KL 1.500 | β - | reward - |")
    assert "pass@1 -, reverse KL 0.400" in lines[3]
    assert lines[4] == "step 2: not finite, update skipped"
    assert not any(line.startswith("step 1/2") for line in told(False, every=2).splitlines())


def test_a_live_table_on_a_terminal() -> None:
    text = told(terminal=True)
    assert "reverse KL" in text
    assert "2/2" in text


def test_the_summary_tells_before_and_after_and_where_time_went() -> None:
    ledger = Ledger()
    for result in STEPS:
        ledger.on_step(result)
    lines = ledger.summary(loading=2.0)
    assert lines[0] == "reverse KL 2.000 → 0.400"
    assert "rollout 1:01" in lines[-1]


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_json_lines_have_no_nan_and_survive_a_cut(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    for step, value in enumerate([1.0, float("nan"), float("inf")]):
        lines.append({"step": step, "loss": value})
    with lines.path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [line["loss"] for line in read_lines(lines.path)] == [1.0, None, None]
    lines.cut(1)
    assert [json.loads(text)["step"] for text in lines.path.read_text().splitlines()] == [0, 1]


def test_a_run_that_starts_over_starts_a_new_file(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for _ in range(2):
        writer.on_start(0)
        for result in STEPS:
            writer.on_step(result)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
