"""Cadence: what is told when, whatever the parts do."""

from __future__ import annotations

import os
import signal

import pytest

from trb_mlx.errors import RunError
from trb_mlx.train.interrupts import Interrupted, Interrupts, Shield
from trb_mlx.train.trainer import Cadence, Hook, Trainer, Work
from trb_mlx.types import Metrics, StepResult


class Log(Hook):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_start(self, step: int) -> None:
        self.events.append(("start", step))

    def on_step(self, result: StepResult) -> None:
        self.events.append(("evaluated" if "eval" in result.metrics else "step", result.step))

    def on_save(self, step: int) -> None:
        self.events.append(("save", step))

    def on_end(self, step: int) -> None:
        self.events.append(("end", step))


class Fake:
    """Counts updates; may be told to fail, or to be interrupted in training or evaluating."""

    def __init__(self, bad: set[int] = frozenset(), kill: tuple[str, int] = ("", 0)) -> None:  # type: ignore[assignment]
        self.updates = 0
        self.bad = bad
        self.kill = kill

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
            os.kill(os.getpid(), signal.SIGTERM)

    def work(self) -> Work:
        return Work(self.train, self.evaluate, self.rewind)


def run(fake: Fake, steps: int = 5, start: int = 0) -> Log:
    log = Log()
    trainer = Trainer(fake.work(), Cadence(steps, 2, 3, 2), [log])
    trainer.step = start
    try:
        trainer.run()
    finally:
        fake.log = log  # type: ignore[attr-defined]
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


def test_a_shield_holds_a_signal_back_until_it_ends() -> None:
    interrupts, done = Interrupts(), []
    with interrupts.watching(), pytest.raises(Interrupted):
        with interrupts.shielded():
            with interrupts.shielded():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts().watching():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
