"""`trb-mlx train`, end to end through the console script."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli.conftest import SHORT, Run, script

VARYING = ("time/", "memory/", "tokens_per_second", "cost/minutes", "cost/cpu_seconds")


def metrics(run: Path) -> list[dict]:
    """The lines of a run, without what a clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, made once."""
    root = tmp_path_factory.mktemp("finished")
    command = [script(), "train", "-c", "small", *SHORT]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (root / "output.txt").write_text(done.stdout)
    return root


def test_a_line_a_step_holds_the_losses_and_the_evaluations(finished: Path) -> None:
    lines = metrics(finished / "runs/small")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert {"eval/pass@1", "eval/reverse_kl", "eval/teacher_pass@1"} <= lines[0].keys()
    assert [("eval/pass@1" in line) for line in lines] == [True, False, True, True]
    for name in ("loss", "reverse_kl", "grad_norm", "reward/mean", "topk/overlap_ratio"):
        assert name in lines[1]


def test_the_budget_is_annealed_and_kept(finished: Path) -> None:
    lines = metrics(finished / "runs/small")
    assert [line.get("trb/epsilon") for line in lines[1:]] == [0.1, 0.05, 0.0]
    assert lines[1]["trb/beta_mean"] > 0 == lines[3]["trb/beta_mean"]
    assert lines[1]["trb/kl_behavior_student_max"] <= 0.1 * 1.001


def test_a_run_leaves_the_files_that_the_readme_names(finished: Path) -> None:
    run = finished / "runs" / "small"
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 3
    assert json.loads((run / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    assert {path.name for path in (run / "adapters").iterdir()} == {
        "adapters.safetensors",
        "adapter_config.json",
        *(f"000000{step}_adapters.safetensors" for step in (1, 2, 3)),
    }
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["0000001", "0000002", "0000003"]


def test_the_output_ends_with_before_after_and_next_commands(finished: Path) -> None:
    output = (finished / "output.txt").read_text()
    assert "→" in output
    assert "trb-mlx generate runs/small" in output
    assert "--adapter-path runs/small/adapters --prompt '…\\n'" in output  # no chat template


def test_the_same_command_gives_the_same_metrics(finished: Path, trb: Run, tmp_path: Path) -> None:
    assert trb("train", "-c", "small", *SHORT).returncode == 0
    assert metrics(tmp_path / "runs/small") == metrics(finished / "runs/small")
    first, second = (
        (root / "runs/small/adapters/adapters.safetensors").read_bytes()
        for root in (finished, tmp_path)
    )
    assert first == second


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_killed_and_resumed_equals_uninterrupted(
    finished: Path, trb: Run, tmp_path: Path, kept: int
) -> None:
    """As after SIGKILL: newer lines than the newest checkpoint, the last one half written."""
    run = tmp_path / "runs/small"
    shutil.copytree(finished / "runs/small", run)
    for step in range(kept + 1, 4):
        shutil.rmtree(run / f"checkpoints/000000{step}")
    if not kept:  # amid the first save
        shutil.rmtree(run / "adapters")
        (run / "checkpoints/.0000001.tmp").mkdir()
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:2]))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    done = trb("train", "-c", "small", *SHORT, "--resume")
    assert done.returncode == 0, done.stderr
    assert not kept or f"going on after step {kept}" in done.stdout
    before, full = (
        text[text.index("pass@1  ") :].splitlines()[:2]
        for text in (done.stdout, (finished / "output.txt").read_text())
    )
    assert before == full  # the summary compares with the very start
    assert metrics(run) == metrics(finished / "runs/small")
    samples = (run / "samples.jsonl").read_text()
    assert samples == (finished / "runs/small/samples.jsonl").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint(
    finished: Path, trb: Run, tmp_path: Path, number: int, code: int
) -> None:
    process = subprocess.Popen(
        [script(), "train", "-c", "small", *SHORT, "--save-every=100"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 1/3"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "--resume goes on from here" in errors
    assert "Traceback" not in errors
    assert trb("train", "-c", "small", *SHORT, "--save-every=100", "--resume").returncode == 0
    assert metrics(tmp_path / "runs/small") == metrics(finished / "runs/small")


def test_a_longer_resume_goes_on(finished: Path, trb: Run, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    done = trb("train", "-c", "small", *SHORT, "--resume", "--iters=4")
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "runs/small")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    changed = trb("train", "-c", "small", *SHORT, "--resume", "--set", "lora.rank=4")
    assert changed.returncode == 2
    assert "lora.rank = 16, not 4; a resumed run may differ in train.steps" in changed.stderr


def test_mlx_lm_generates_with_the_adapters(finished: Path) -> None:
    from trb_mlx.models.loading import resolve

    command = [sys.executable, "-m", "mlx_lm", "generate", "--prompt", "Compute 1+2.\\n", "-m", "8"]
    command += ["--model", resolve("bundled:arithmetic-student")]
    command += ["--adapter-path", str(finished / "runs/small/adapters")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_generate_and_eval_take_runs_and_models(finished: Path, trb: Run) -> None:
    run = str(finished / "runs/small")
    assert trb("generate", run, "-p", "Compute 12+7-5.", "-m", "30").returncode == 0
    answer = trb("generate", "bundled:arithmetic-teacher", "-p", "Compute 12+7-5+3.", "-m", "48")
    assert "Answer: 17" in answer.stdout
    lines = metrics(Path(run))
    for checkpoint, line in (("final", lines[-1]), ("2", lines[2])):
        done = trb("eval", run, "--json", "--checkpoint", checkpoint)
        assert json.loads(done.stdout)["pass@1"] == line["eval/pass@1"]
    assert trb("eval", run, "--checkpoint=best").returncode == 0
    assert "expected final, best or one of 1, 2, 3" in trb("eval", run, "--checkpoint=9").stderr
    teacher = trb("eval", "bundled:arithmetic-teacher", "--json", "--prompts=20", "--max-tokens=48")
    assert json.loads(teacher.stdout)["pass@1"] >= 0.8


def test_a_dry_run_prints_and_writes_nothing(trb: Run, tmp_path: Path) -> None:
    done = trb("train", "--config", "small", "--dry-run")
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["behavior"]["kind"] == "trb"
    assert "# writes   runs/small" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_it_works_where_no_compiler_is(tmp_path: Path) -> None:
    """mlx-lm's own models use mx.compile, which calls g++ on a CPU."""
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        [script(), "train", "-c", "small", *SHORT, "--iters=1"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_help_reads_well(trb: Run) -> None:
    for command in ([], ["train"], ["generate"], ["eval"], ["report"]):
        done = trb(*command, "--help")
        assert done.returncode == 0
        assert "Usage: trb-mlx" in done.stdout
