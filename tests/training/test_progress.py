"""What a run prints and writes line by line."""

from __future__ import annotations

import errno
import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from trb_mlx.files import append_lines, read_lines
from trb_mlx.text import clock
from trb_mlx.training.callbacks.progress import ProgressPrinter
from trb_mlx.training.callbacks.summary import Summary
from trb_mlx.training.callbacks.writers import MetricsWriter, drop_lines_after
from trb_mlx.types import StepResult

STEPS = [
    StepResult(
        0,
        {
            "eval/pass@1": 0.1,
            "eval/reverse_kl": 2.0,
            "eval/mean_length": 21.5,
            "eval/truncated_fraction": 0.25,
            "eval/teacher_pass@1": 1.0,
        },
    ),
    StepResult(
        1,
        {
            "trb/epsilon": 0.1,
            "reverse_kl": 1.5,
            "completions/mean_length": 30.0,
            "completions/truncated_fraction": 0.125,
            "time/rollout_s": 61.0,
            "memory/rollout_gb": 1.25,
            "memory/update_gb": 2.5,
        },
    ),
    StepResult(2, {"trb/epsilon": 0.0, "reverse_kl": 0.5, "skipped": 1.0, "eval/reverse_kl": 0.4}),
]


def printed(terminal: bool, every: int = 1) -> str:
    out = io.StringIO()
    printer = ProgressPrinter(Console(file=out, force_terminal=terminal, width=100), 2, every)
    printer.on_start(0)
    for result in STEPS:
        printer.on_step(result)
    printer.on_end(2)
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    lines = printed(terminal=False).splitlines()
    assert lines[0] == (
        "evaluation after step 0: pass@1 10.0%, reverse KL 2.000, length 21.5, truncated 25% "
        "(teacher's pass@1 100.0%)"
    )
    assert lines[1].startswith("step 1/2 | ε 0.1 | reverse KL 1.500 | β - | reward - |")
    assert "| length 30.0 | truncated 12% |" in lines[1]
    assert "pass@1 -, reverse KL 0.400" in lines[3]
    assert lines[4] == "step 2: not finite, update skipped"
    assert not any(line.startswith("step 1/2") for line in printed(False, every=2).splitlines())


def test_a_live_table_on_a_terminal() -> None:
    text = printed(terminal=True)
    assert "reverse KL" in text
    assert "2/2" in text


def test_it_is_said_what_begins_before_anything_is_done() -> None:
    """A first evaluation, or a first step, may take minutes."""
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=100)
        printer = ProgressPrinter(console, 2, every=1)
        printer.on_start(0)
        printer.on_phase("evaluation", 0)
        time.sleep(0.6 if terminal else 0)  # a live table is drawn four times a second
        text = out.getvalue()
        assert "evaluation after step 0" in text
        printer.on_step(STEPS[0])
        printer.on_phase("update", 1)
        time.sleep(0.6 if terminal else 0)
        assert "step 1" in out.getvalue()[len(text) :]
        printer.on_step(STEPS[1])
        before = len(out.getvalue())
        printer.on_phase("update", 2)
        assert terminal or len(out.getvalue()) == before  # by now there are lines of steps
        printer.on_end(1)


def warned(*metrics: dict[str, float]) -> list[str]:
    out = io.StringIO()
    printer = ProgressPrinter(Console(file=out, width=200), 20, every=20)
    printer.on_start(0)
    for step, values in enumerate(metrics, start=1):
        printer.on_step(StepResult(step, values))
    return [line for line in out.getvalue().splitlines() if "warning" in line]


def test_a_limit_that_cuts_most_rollouts_is_said_once() -> None:
    name = "completions/truncated_fraction"
    (line,) = warned({name: 0.5}, {name: 0.75}, {name: 0.9})
    assert line == "step 2: warning: 75% of the rollouts were cut at rollout.max_tokens"


def test_steps_without_any_reward_are_said_once() -> None:
    nothing = {"reward/mean": 0.0}
    assert warned(*[nothing] * 4, {"reward/mean": 0.1}, *[nothing] * 4) == []
    assert warned(*[{}] * 9) == []  # no gold answers
    (line,) = warned(*[nothing] * 12)
    assert line.startswith("step 5: warning: no answer was right; does the prompt ask for")


def test_the_summary_shows_before_and_after_and_where_time_went() -> None:
    summary = Summary(begun=time.perf_counter() - 2.0)
    summary.on_start(0)
    for result in STEPS:
        summary.on_step(result)
    lines = summary.lines()
    assert lines[:2] == ["reverse KL 2.000 → 0.400", "teacher    100.0%"]
    assert lines[-2].startswith("time       0:02 (loading 0:02, rollout 1:01")
    assert lines[-1] == "memory     2.5 GiB (rollout 1.25, update 2.5)"


def test_a_resumed_run_s_summary_begins_where_the_run_did() -> None:
    earlier = [{"step": 0, **STEPS[0].metrics}, {"step": 1, **STEPS[1].metrics}]
    summary = Summary(time.perf_counter(), earlier)
    summary.on_start(1)
    summary.on_step(STEPS[2])
    lines = summary.lines()
    assert lines[:2] == ["reverse KL 2.000 → 0.400", "teacher    100.0%"]


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_json_lines_have_no_nan_and_survive_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for step, value in enumerate([1.0, float("nan"), float("inf")]):
        append_lines(path, [{"step": step, "loss": value}])
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [line["loss"] for line in read_lines(path)] == [1.0, None, None]
    drop_lines_after(path, 1)
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [0, 1]


def test_a_run_that_starts_over_starts_a_new_file(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for _ in range(2):
        writer.on_start(0)
        for result in STEPS:
            writer.on_step(result)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_save_is_announced_and_a_closed_terminal_stops_nothing(terminal: bool) -> None:
    out = io.StringIO()
    printer = ProgressPrinter(Console(file=out, force_terminal=terminal, width=100), 2, 1)
    printer.on_start(0)
    printer.on_step(STEPS[1])
    printer.on_stop(1)
    assert "saving step 1…" in out.getvalue()
    printer.on_end(1)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    printer = ProgressPrinter(Console(file=Gone(), width=100), 2, 1)
    printer.on_start(0)
    for result in STEPS:
        printer.on_step(result)
    printer.on_stop(2)
    printer.on_end(2)
