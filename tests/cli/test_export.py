"""`trb-mlx export` and training from an adapter, end to end through the console script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import SHORT, Run
from exporting.run_folders import make_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    make_run(tmp_path / "runs/made", "bundled:arithmetic-student")
    return "runs/made"


def test_an_export_says_what_it_wrote(trb: Run, run: str, tmp_path: Path) -> None:
    done = trb("export", run, "--to", "peft", "--checkpoint", "best")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"wrote {tmp_path}/runs/made/export/base (1.0 MB)")
    assert lines[1].startswith(f"wrote {tmp_path}/runs/made/export/peft (")
    assert trb("export", run, "--recipe", "verl").stdout.endswith("export/verl/distill.sh\n")


def test_a_dry_run_lists_and_leaves_nothing(trb: Run, run: str, tmp_path: Path) -> None:
    done = trb("export", run, "--to", "peft", "--dry-run", "--out", "elsewhere")
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout
    assert "dry run: nothing was kept." in done.stdout
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / run / "export").exists()


@pytest.mark.parametrize("form", ["peft", "mlx-lm", "merged"])
def test_a_dry_run_refuses_what_the_run_would(
    trb: Run, run: str, tmp_path: Path, form: str
) -> None:
    """The folder that would be replaced holds a file of the user's."""
    before = sorted(tmp_path.rglob("*"))
    assert trb("export", run, "--to", form, "--dry-run").returncode == 0
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / run / "export" / form).mkdir(parents=True)
    (tmp_path / run / "export" / form / "mine").write_text("")
    done = trb("export", run, "--to", form, "--dry-run")
    assert done.returncode == 2
    assert "holds mine, which no export wrote" in done.stderr


def test_a_dry_run_of_a_recipe_leaves_nothing(trb: Run, run: str, tmp_path: Path) -> None:
    done = trb("export", run, "--recipe", "trl", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "trl/"
    assert "distill.py" in done.stdout
    assert done.stdout.endswith("dry run: nothing was kept.\n")
    assert not (tmp_path / run / "export").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--push", "o/n"],
        ["--checkpoint", "2"],
        ["--quantize", "4"],
        ["--group-size", "32"],
        ["--base", "x"],
        ["--license", "mit"],
        ["--push", "o/n", "--public"],
    ],
)
def test_a_recipe_refuses_the_flags_of_adapters(
    trb: Run, run: str, tmp_path: Path, flags: list[str]
) -> None:
    done = trb("export", run, "--recipe", "trl", *flags)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "is for --to; a --recipe takes only --out" in line
    assert not (tmp_path / run / "export").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--to", "peft", "--public"], "--public is of a repository made by --push"),
        ([], "export needs --to peft, mlx-lm or merged, or --recipe verl or trl"),
        (["--to", "peft", "--recipe", "trl"], "export needs --to"),
        (["--to", "pefft"], "did you mean peft?"),
        (["--recipe", "trll"], "did you mean trl?"),
        (["--to", "peft", "--checkpoint", "7"], "expected final, best or one of 2, 3"),
        (["--to", "merged", "--quantize", "7"], "expected 2, 3, 4, 5, 6 or 8 bits"),
        (["--to", "peft", "--push", "no-owner"], "expected OWNER/NAME"),
        (["--to", "peft", "--out", "runs"], "which no export wrote"),
    ],
)
def test_a_mistake_is_one_sentence(
    trb: Run, run: str, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    done = trb("export", run, *arguments)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert expected in line
    assert not (tmp_path / run / "export").exists()


def test_a_folder_that_is_no_run_is_told(trb: Run, run: str) -> None:
    done = trb("export", "runs/mad", "--to", "peft")
    assert done.returncode == 2
    assert "runs/mad is no run folder (it has no config.yaml); did you mean runs/made?" in (
        done.stderr
    )


def test_training_starts_from_an_exported_adapter(trb: Run, run: str, tmp_path: Path) -> None:
    assert trb("export", run, "--to", "peft").returncode == 0
    start = ["--start-adapter", f"{run}/export/peft", "--iters=1", "--name", "next"]
    done = trb("train", "-c", "small", *SHORT, *start, "--set", "lora.rank=4")
    assert done.returncode == 0, done.stderr
    details = json.loads((tmp_path / "runs/next/adapters/adapter_config.json").read_text())
    assert details["lora_parameters"]["rank"] == 4
    resumed = ["--resume", "--set", "lora.rank=4", *start, "--iters=2"]
    again = trb("train", "-c", "small", *SHORT, *resumed)
    assert again.returncode == 0, again.stderr
    assert "going on after step 1" in again.stdout
    assert trb("eval", "runs/next", "--prompts=4").returncode == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("conflict", "lora.rank is 16, and student.adapter"),
        ("truncated", "cannot be read: "),
        ("nowhere", "holds neither adapter_model.safetensors (PEFT) nor"),
        ("other base", "is of another base than bundled:arithmetic-teacher"),
    ],
)
def test_an_adapter_that_cannot_be_started_from(
    trb: Run, run: str, tmp_path: Path, change: str, expected: str
) -> None:
    folder = tmp_path / run / "adapters"
    arguments = ["--start-adapter", str(folder), "--name", "next"]
    if change == "conflict":
        arguments += ["--set", "lora.rank=16"]
    elif change == "truncated":
        whole = (folder / "adapters.safetensors").read_bytes()
        (folder / "adapters.safetensors").write_bytes(whole[:-10])
    elif change == "nowhere":
        arguments[1] = "nowhere"
    else:
        arguments += ["--model", "bundled:arithmetic-teacher"]
    config = tmp_path / "config.yaml"
    config.write_text(
        "teacher: {model: 'bundled:arithmetic-teacher'}\n"
        "student: {model: 'bundled:arithmetic-student'}\n"
    )
    done = trb("train", "-c", "config.yaml", *SHORT, *arguments)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert expected in line
    assert not (tmp_path / "runs/next").exists()
