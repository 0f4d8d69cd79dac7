"""Signals: raised once, held back by a shield, ignored where nohup asks for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trb_mlx import interrupts
from trb_mlx.interrupts import SIGNALS, Interrupted, Stopped, shielded, watching

ME = os.getpid()


@pytest.fixture(autouse=True)
def no_earlier_signal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And a SIGHUP that is heeded, also where the tests themselves run under nohup."""
    monkeypatch.setattr(interrupts._WATCH, "raised", float("-inf"))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_says_its_name_and_the_shells_code(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as caught, watching():
        os.kill(ME, number)
    assert str(caught.value) == f"stopped by {number.name}."
    assert caught.value.code == 128 + number
    caught.value.advice = "go on"
    assert str(caught.value) == f"stopped by {number.name}; go on."


@pytest.mark.parametrize(("code", "end"), [(1, "; go on."), (2, ".")])
def test_what_a_mistake_elsewhere_ended_is_not_gone_on_with(code: int, end: str) -> None:
    error = Stopped("rank 1 stopped: train.seed differs", code)
    error.advice = "go on"
    assert str(error) == f"rank 1 stopped: train.seed differs{end}"


def test_a_shield_holds_a_signal_back_until_it_ends() -> None:
    done = []
    with watching(), pytest.raises(Interrupted):
        with shielded():
            with shielded():
                os.kill(ME, signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]


def test_a_second_signal_does_not_cut_off_what_the_first_one_began() -> None:
    """From the first instruction on, before whoever caught the first could raise a shield."""
    done = []
    with watching(), pytest.raises(Interrupted) as caught:
        try:
            os.kill(ME, signal.SIGINT)
        except Interrupted:
            os.kill(ME, signal.SIGTERM)
            done.append("unshielded yet")
            with shielded():
                os.kill(ME, signal.SIGINT)
                done.append("saved")
            done.append("never")
    assert done == ["unshielded yet", "saved"]
    assert caught.value.signum == signal.SIGINT


def test_a_later_signal_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may swallow the first."""
    monkeypatch.setattr(interrupts, "UNWINDING_S", 0.05)
    with watching():
        for _ in range(2):
            with pytest.raises(Interrupted):
                os.kill(ME, signal.SIGINT)
            time.sleep(0.1)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with watching(), watching():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_closed_terminal_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watching():
            os.kill(ME, signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["click", "yaml", "trb_mlx.cli.train"])
def test_a_start_ends_in_a_sentence(tmp_path: Path, number: signal.Signals, module: str) -> None:
    """The signal comes while a module of the command is imported."""
    program = f"""
import os, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signal())
sys.argv = ["trb-mlx", "train", "-c", "small"]
from trb_mlx.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr == f"trb-mlx: stopped by {number.name}.\n"
    assert not list(tmp_path.iterdir())
