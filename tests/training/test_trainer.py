"""The trainer: which callback hears what when, whatever the parts do."""

from __future__ import annotations

import os
import signal
from collections.abc import Set
from typing import Any

import pytest

from trb_mlx import interrupts
from trb_mlx.config_file import load_config
from trb_mlx.errors import RunError
from trb_mlx.interrupts import Interrupted, shielded
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.training.trainer import Trainer
from trb_mlx.types import Metrics, StepResult

PARTS: Any = [None] * 4  # sampler, stepper, evaluator, rewards


class Log(Callback):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.during_save = 0  # a signal

    def on_start(self, step: int) -> None:
        self.events.append(("start", step))

    def on_step(self, result: StepResult) -> None:
        self.events.append(("evaluated" if "eval" in result.metrics else "step", result.step))

    def on_stop(self, step: int) -> None:
        self.events.append(("stop", step))

    def on_save(self, step: int) -> None:
        if self.during_save:
            os.kill(os.getpid(), self.during_save)
        self.events.append(("save", step))

    def on_end(self, step: int) -> None:
        self.events.append(("end", step))


class Fake(Trainer):
    """Counts updates; may be told to fail, or to be stopped in training or evaluating."""

    def __init__(
        self,
        steps: int = 5,
        every: int = 2,
        start: int = 0,
        bad: Set[int] = frozenset(),
        kill: tuple[str, int] = ("", 0),
    ) -> None:
        keys = {"train.steps": steps, "train.max_bad_steps": 2, "eval.every": every}
        models = {"teacher.model": "t", "student.model": "s"}
        config = load_config(models | keys | {"run.save_every": 3})
        self.log = Log()
        super().__init__(config, *PARTS, [self.log])
        self.step = self.updates = start
        self.bad = bad
        self.kill = kill
        self.error: Exception | None = None

    def train_step(self) -> StepResult:
        done = self.step + 1
        self.interrupt("train", done)
        with shielded():
            self.updates = done
        return StepResult(done, {"skipped": float(done in self.bad)})

    def evaluate(self, step: int) -> Metrics:
        self.interrupt("evaluate", step)
        return {"eval": 1.0}

    def rewind(self) -> None:
        self.updates = min(self.updates, self.step)

    def interrupt(self, where: str, step: int) -> None:
        if self.kill == (where, step):
            if self.error:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def no_earlier_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts._WATCH, "raised", float("-inf"))


def events(trainer: Fake) -> list[tuple[str, int]]:
    trainer.run()
    return trainer.log.events


def test_evaluates_first_at_intervals_and_last_and_saves_with_it() -> None:
    assert events(Fake()) == [
        ("start", 0),
        ("evaluated", 0),
        ("step", 1),
        ("evaluated", 2),
        ("save", 2),
        ("step", 3),
        ("save", 3),
        ("evaluated", 4),
        ("save", 4),
        ("evaluated", 5),
        ("save", 5),
        ("end", 5),
    ]


def test_goes_on_where_it_stands() -> None:
    assert events(Fake(start=3))[:3] == [("start", 3), ("evaluated", 4), ("save", 4)]


def test_a_finished_run_has_nothing_to_do() -> None:
    assert events(Fake(start=5)) == [("start", 5), ("end", 5)]


def test_bad_steps_stop_the_run_only_in_a_row() -> None:
    Fake(bad={1, 3, 5}).run()
    with pytest.raises(RunError, match="step 4: .* 2 times in a row"):
        Fake(bad={3, 4}).run()


@pytest.mark.parametrize(
    ("kill", "saved"), [(("train", 4), 3), (("evaluate", 4), 3), (("train", 2), 1)]
)
def test_an_interruption_keeps_finished_steps_and_takes_back_others(
    kill: tuple[str, int], saved: int
) -> None:
    fake = Fake(kill=kill)
    with pytest.raises(Interrupted) as caught:
        fake.run()
    assert caught.value.signum == signal.SIGTERM
    assert [step for kind, step in fake.log.events if kind == "save"][-1] == saved
    assert fake.updates == saved
    assert fake.log.events[-1] == ("end", saved)


@pytest.mark.parametrize(
    ("kill", "last"),
    [
        (("train", 5), [("start", 4), ("end", 4)]),  # nothing is new
        (("evaluate", 6), [("stop", 5), ("save", 5), ("end", 5)]),
    ],
)
def test_whatever_ends_a_run_its_last_whole_step_is_saved(
    kill: tuple[str, int], last: list[tuple[str, int]]
) -> None:
    """Such as too little memory: the advice is to go on with less."""
    fake = Fake(steps=7, start=4, kill=kill)
    fake.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        fake.run()
    assert fake.log.events[-len(last) :] == last


def test_signals_do_not_cut_a_save_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "UNWINDING_S", 0.0)
    fake = Fake(kill=("train", 2))
    fake.log.during_save = signal.SIGINT
    with pytest.raises(Interrupted):
        fake.run()
    assert fake.log.events[-3:] == [("stop", 1), ("save", 1), ("end", 1)]


def test_a_step_that_a_callback_could_not_keep_does_not_count() -> None:
    class Full(Callback):
        def on_step(self, result: StepResult) -> None:
            if result.step == 5:
                raise OSError("full")

    fake = Fake(steps=9, every=0)
    fake.callbacks = [Full(), fake.log]
    with pytest.raises(OSError, match="full"):
        fake.run()
    assert fake.updates == 4
    assert fake.log.events[-3:] == [("stop", 4), ("save", 4), ("end", 4)]
