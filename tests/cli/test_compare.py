"""`trb-mlx compare`, end to end through the console script."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Run, assert_one_sentence, script, wait_for

SPEC = """
base: small
set:
  train: {steps: 3, prompts_per_step: 2, learning_rate: 5.0e-4, micro_batch_size: 16}
  eval: {every: 1, prompts: 4, teacher: false}
  rollout: {max_tokens: 16, rollouts_per_prompt: 2}
  data.train.limit: 40
  run.save_every: 1
methods:
  vanilla:
  trb:
    set: {behavior.warmup_steps: 2}
    sweep: {behavior.budget: [0.1]}
seeds: [0, 1]
problems: 6
early_steps: 2
decides: final.reverse_kl
share_teacher: true
"""
COMPARE = ["compare", "tiny.yaml"]


def tables(root: Path) -> Any:
    """The comparison's figures, without what a clock decides."""
    rows = json.loads((root / "compare/tiny/table.json").read_text())["rows"]
    for row in rows:
        for part in ("values", "over_seeds", "difference"):
            row[part].pop("cost.seconds", None)
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing interrupts."""
    root = tmp_path_factory.mktemp("whole")
    (root / "tiny.yaml").write_text(SPEC)
    done = subprocess.run(
        [script(), *COMPARE], cwd=root, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr
    (root / "output.txt").write_text(done.stdout)
    return root


def test_it_says_what_decides(whole: Path) -> None:
    output = (whole / "output.txt").read_text()
    assert "4 runs, 4 to do" in output
    assert "decides: final.reverse_kl" in output
    assert "Student's t over 2 seeds (0, 1)" in output


def test_it_leaves_tables_and_a_figure(whole: Path) -> None:
    assert {path.name for path in (whole / "compare/tiny").glob("table.*")} == {
        "table.md",
        "table.json",
        "table.csv",
        "table.png",
    }


def test_rows_have_intervals_over_seeds_and_over_problems(whole: Path) -> None:
    vanilla, trb = tables(whole)
    assert (vanilla["variant"], trb["variant"]) == ("vanilla", "trb budget=0.1")
    for row in (vanilla, trb):
        assert row["seeds"] == [0, 1]
        assert row["over_seeds"]["final.reverse_kl"]["value"] > 0
        assert row["over_seeds"]["best.reverse_kl"]["low"] is not None
        assert row["over_seeds"]["cost.tokens"]["value"] > 0
    assert trb["over_problems"]["final.reverse_kl"]["low"] is not None


def test_problems_that_chose_the_checkpoint_are_not_reported_on(whole: Path) -> None:
    settings = [
        json.loads(path.read_text())
        for path in (whole / "compare/tiny/runs").glob("*/eval/*/settings.json")
    ]
    assert len(settings) >= 4
    assert {(each["first_problem"], each["problems"]) for each in settings} == {(4, 6)}


def test_finished_runs_are_kept(whole: Path, trb: Run, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "compare/tiny/runs").rglob("*")}
    done = subprocess.run(
        [script(), *COMPARE], cwd=whole, capture_output=True, text=True, timeout=120
    )
    assert "4 runs, 0 to do" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in (whole / "compare/tiny/runs").rglob("*")}
    assert after == before
    listed = subprocess.run(
        [script(), *COMPARE, "--dry-run"], cwd=whole, capture_output=True, text=True, timeout=120
    )
    assert listed.stdout.count("done   ") == 4
    (tmp_path / "tiny.yaml").write_text(SPEC)
    assert trb(*COMPARE, "--dry-run").stdout.count("to do  ") == 4
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGKILL, 1), (signal.SIGINT, 2)])
def test_interrupted_and_given_again_equals_uninterrupted(
    whole: Path, trb: Run, tmp_path: Path, number: int, jobs: int
) -> None:
    (tmp_path / "tiny.yaml").write_text(SPEC)
    command = [script(), *COMPARE, f"--jobs={jobs}"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def second_run_is_under_way() -> bool:
        logs = [path.read_text() for path in tmp_path.glob("compare/tiny/logs/*.log")]
        return sum("step 1/3" in log for log in logs) >= 2

    wait_for(second_run_is_under_way)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), errors
    if number == signal.SIGINT:
        assert "stopped by SIGINT; the same command goes on from here." in errors
        assert "Traceback" not in errors
    done = trb(*COMPARE, f"--jobs={jobs}")
    assert done.returncode == 0, done.stderr
    assert "4 to do" not in done.stdout or jobs == 2
    assert tables(tmp_path) == tables(whole)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  vanilla:\n", "  vanila:\n", "reference vanilla is not a method"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds holds 0 twice"),
        ("[0.1]", "[]", "methods.trb.sweep.behavior.budget is [], expected at least one value"),
        ("base: small", "base: smal", "did you mean small?"),
        ("problems: 6", "problems: 30000", "expected 0 to 20000"),
    ],
)
def test_a_mistake_is_one_sentence(
    old: str, new: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SPEC.replace(old, new))
    assert_one_sentence(COMPARE, expected)
    assert not (tmp_path / "compare").exists()


def test_an_unknown_run_or_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SPEC)
    assert_one_sentence([*COMPARE, "--only", "vanilla-s0"], "--only vanilla-s0 is no run")
    assert_one_sentence(["compare", "smal"], "comparison smal does not exist")
