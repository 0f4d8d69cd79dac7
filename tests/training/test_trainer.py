"""Cadence: what is told when, whatever the parts do."""

from __future__ import annotations

import os
import signal

import pytest

from trb_mlx import interrupts
from trb_mlx.errors import RunError
from trb_mlx.interrupts import Interrupted, Shield
from trb_mlx.training.trainer import Cadence, Hook, Trainer, Work
from trb_mlx.types import Metrics, StepResult


class Log(Hook):
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


class Fake:
    """Counts updates; may be told to fail, or to be stopped in training or evaluating."""

    def __init__(self, bad: set[int] = frozenset(), kill: tuple[str, int] = ("", 0)) -> None:  # type: ignore[assignment]
        self.updates = 0
        self.bad = bad
        self.kill = kill
        self.error: Exception | None = None

    def train(self, step: int, shield: Shield) -> StepResult:
        self.interrupt("train", step + 1)
        with shield():
            self.updates = step + 1
        return StepResult(step + 1, {"skipped": float(step + 1 in self.bad)})

    def evaluate(self, step: int) -> Metrics:
        self.interrupt("evaluate", step)
        return {"eval": 1.0}

    def rewind(self, updates: int) -> None:
        self.updates = min(self.updates, updates)

    def interrupt(self, where: str, step: int) -> None:
        if self.kill == (where, step):
            if self.error:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)

    def work(self) -> Work:
        return Work(self.train, self.evaluate, self.rewind)


@pytest.fixture(autouse=True)
def no_earlier_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts._WATCH, "raised", float("-inf"))


def run(fake: Fake, steps: int = 5, start: int = 0) -> Log:
    fake.log = log = Log()  # type: ignore[attr-defined]
    trainer = Trainer(fake.work(), Cadence(steps, 2, 3, 2), [log])
    trainer.step = fake.updates = start
    trainer.run()
    return log


def test_evaluates_first_at_intervals_and_last_and_saves_with_it() -> None:
    assert run(Fake()).events == [
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
    events = run(Fake(), start=3).events
    assert events[:3] == [("start", 3), ("evaluated", 4), ("save", 4)]


def test_a_finished_run_has_nothing_to_do() -> None:
    assert run(Fake(), start=5).events == [("start", 5), ("end", 5)]


def test_bad_steps_stop_the_run_only_in_a_row() -> None:
    run(Fake(bad={1, 3, 5}))
    with pytest.raises(RunError, match="step 4: .* 2 times in a row"):
        run(Fake(bad={3, 4}))


@pytest.mark.parametrize(
    ("kill", "saved"), [(("train", 4), 3), (("evaluate", 4), 3), (("train", 2), 1)]
)
def test_an_interruption_keeps_finished_steps_and_takes_back_others(
    kill: tuple[str, int], saved: int
) -> None:
    fake = Fake(kill=kill)
    with pytest.raises(Interrupted) as caught:
        run(fake)
    assert caught.value.signum == signal.SIGTERM
    events = fake.log.events  # type: ignore[attr-defined]
    assert [step for kind, step in events if kind == "save"][-1] == saved
    assert fake.updates == saved
    assert events[-1] == ("end", saved)


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
    fake = Fake(kill=kill)
    fake.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        run(fake, steps=7, start=4)
    assert fake.log.events[-len(last) :] == last  # type: ignore[attr-defined]


def test_signals_do_not_cut_a_save_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "UNWINDING_S", 0.0)
    fake, log = Fake(kill=("train", 2)), Log()
    log.during_save = signal.SIGINT
    with pytest.raises(Interrupted):
        Trainer(fake.work(), Cadence(5, 2, 3, 2), [log]).run()
    assert log.events[-3:] == [("stop", 1), ("save", 1), ("end", 1)]


def test_a_step_that_a_hook_could_not_keep_does_not_count() -> None:
    class Full(Hook):
        def on_step(self, result: StepResult) -> None:
            if result.step == 5:
                raise OSError("full")

    fake, log = Fake(), Log()
    trainer = Trainer(fake.work(), Cadence(9, 0, 3, 2), [Full(), log])
    with pytest.raises(OSError, match="full"):
        trainer.run()
    assert fake.updates == 4
    assert log.events[-3:] == [("stop", 4), ("save", 4), ("end", 4)]
