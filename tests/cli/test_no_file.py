"""Where a command takes a file: none there, an empty one, a folder, or one nobody can open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from trb_mlx.cli import main

STUDENT = "bundled:arithmetic-student"
PAIR = ["train", "--model", STUDENT, "--teacher", "bundled:arithmetic-teacher"]
RUN = "teacher: {model: bundled:arithmetic-teacher}\nstudent: {model: bundled:arithmetic-student}\n"
# `X` stands for the file.
COMMANDS = [
    ["train", "-c", "X"],
    ["train", "-c", "small", "--model", "X"],
    ["train", "-c", "small", "--teacher", "X"],
    [*PAIR, "--data", "X"],
    [*PAIR, "--start-adapter", "X"],
    [*PAIR, "--set", "prompt.chat_template=X"],
    ["generate", "X", "-p", "1+1"],
    ["generate", STUDENT, "-p", "1+1", "--adapter-path", "X"],
    ["eval", "X", "--data", "arithmetic"],
    ["eval", STUDENT, "--data", "X"],
    ["eval", STUDENT, "--data", "arithmetic", "--teacher", "X"],
    ["export", "X", "--to", "peft"],
    ["export", "X", "--recipe", "trl"],
    ["report", "X"],
    ["compare", "X"],
]


def missing(_: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def circle(path: Path) -> None:
    """A link to itself, which the system refuses to open for anybody."""
    path.symlink_to(path)


def locked(path: Path) -> None:
    path.write_text("")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("the superuser opens any file")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("make", [missing, folder, empty, circle, locked])
def test_a_file_that_is_none_is_said_in_a_sentence(
    make: object, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert callable(make)
    make(tmp_path / "given")
    done = CliRunner().invoke(main, [word.replace("X", "./given") for word in arguments])
    assert done.exit_code == 2, (done.output, done.exception)
    # One sentence for each mistake: an empty config lacks several keys.
    assert all(line.startswith("trb-mlx: ") for line in done.stderr.splitlines()), done.stderr
    assert "given" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"given", "runs"}
    assert not list(tmp_path.glob("runs/*"))
