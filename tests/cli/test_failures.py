"""The last net: what nobody foresaw, odd arguments, odd encodings and readers that leave."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli.conftest import assert_one_sentence
from click.testing import CliRunner

from trb_mlx.cli import main
from trb_mlx.cli.failures import SHOW, ending_plainly
from trb_mlx.errors import RunError, UserError
from trb_mlx.interrupts import Interrupted
from trb_mlx.text import RunConsole, say


def ended(error: BaseException) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        with ending_plainly():
            raise error
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("a mistake."), 2, "trb-mlx: a mistake.\n"),
        (UserError("one.\ntwo."), 2, "trb-mlx: one.\ntrb-mlx: two.\n"),
        (UserError(f"{'x' * 5000} \x1b[2J"), 2, f"trb-mlx: {'x' * 900}…\n"),
        (UserError("a \x1b[2Jb\u2028c."), 2, "trb-mlx: a �[2Jb�c.\n"),
        (RunError("it stopped."), 1, "trb-mlx: it stopped.\n"),
        (Interrupted(signal.SIGTERM), 143, "trb-mlx: stopped by SIGTERM.\n"),
        (PermissionError(13, "Permission denied", "a/b"), 1, "trb-mlx: a/b: Permission denied.\n"),
        (
            RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"),
            1,
            "trb-mlx: the memory is not enough ([metal::malloc] Attempting to allocate 9 bytes); "
            "README.md says what saves it.\n",
        ),
    ],
)
def test_an_end_is_a_sentence_and_a_code(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error) == code
    assert capsys.readouterr().err == sentence


def test_what_nobody_foresaw_asks_for_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert ended(KeyError("x\ny")) == 1
    (kept,) = tmp_path.iterdir()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "this is a fault in trb-mlx (KeyError:" in message
    assert str(kept) in message
    assert "Traceback (most recent call last)" in kept.read_text()


def test_a_variable_shows_where_a_failure_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SHOW, "1")
    assert ended(UserError("a mistake.")) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("trb-mlx: a mistake.\n")


@pytest.mark.parametrize("error", [click.UsageError("x"), BrokenPipeError(32, "Broken pipe")])
def test_clicks_own_ends_pass(error: Exception) -> None:
    with pytest.raises(type(error)):
        with ending_plainly():
            raise error


def test_an_argument_that_is_no_text_is_one_sentence() -> None:
    r"""Python gives the byte 0xE9 of `$(printf 'caf\xe9')` as half of a surrogate pair."""
    arguments = ["generate", "bundled:arithmetic-student", "-p", "caf\udce9"]
    assert_one_sentence(arguments, r"the argument 'caf\udce9' is not text in this terminal's")


def test_every_command_is_listed_and_has_help() -> None:
    listed = CliRunner().invoke(main, ["--help"]).output
    for name in ("train", "generate", "eval", "export", "report", "compare", "doctor"):
        assert f"\n  {name} " in listed
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_a_console_prints_what_its_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(SystemExit):
        main(["--version"])  # prepares the output
    say(RunConsole(), "student ← teacher")
    sys.stdout.flush()
    assert written.getvalue().endswith(b"student ? teacher\n")


def test_a_run_goes_on_when_its_reader_leaves(tmp_path: Path) -> None:
    """As with `trb-mlx train … | head -1`."""
    code = (
        "from trb_mlx.text import RunConsole, say\n"
        "from pathlib import Path\n"
        "console = RunConsole()\n"
        "for number in range(5000):\n"
        "    say(console, f'line {number}')\n"
        "Path('done').touch()\n"
    )
    command = f"'{sys.executable}' -c \"$CODE\" | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=tmp_path,
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\n", "")
    assert (tmp_path / "done").exists()
