"""Cadence only: when to evaluate, roll out, update and save. Knows no formula and no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trb_mlx.errors import RunError
from trb_mlx.train.interrupts import Interrupted, Interrupts, Shield
from trb_mlx.types import Metrics, StepResult


class Hook:
    """What may listen to a run. Every method is optional; steps count finished updates."""

    def on_start(self, step: int) -> None:
        """The run begins, or goes on, after `step` finished updates."""

    def on_step(self, result: StepResult) -> None:
        """A step and its evaluation, if it had one, are done (step 0: evaluation alone)."""

    def on_save(self, step: int) -> None:
        """The state after `step` updates is to be kept."""

    def on_end(self, step: int) -> None:
        """The run is over after `step` updates, finished or interrupted."""


@dataclass(frozen=True)
class Work:
    """What a trainer calls, given the number of finished updates.

    Attributes:
        train: roll out and apply one more update, the update itself under the given shield;
            its metrics hold `skipped`.
        evaluate: metrics on held-out prompts; called before the first update with 0.
        rewind: take back an update that the given count does not include.
    """

    train: Callable[[int, Shield], StepResult]
    evaluate: Callable[[int], Metrics]
    rewind: Callable[[int], None]


@dataclass(frozen=True)
class Cadence:
    """Counts of updates: in all, between evaluations (0: only at both ends), between saves."""

    steps: int
    eval_every: int
    save_every: int
    max_bad_steps: int

    def evaluates(self, step: int) -> bool:
        """Whether the state after `step` updates is evaluated."""
        return step == self.steps or bool(self.eval_every and step % self.eval_every == 0)

    def saves(self, step: int) -> bool:
        """Whether the state after `step` updates is kept."""
        return self.evaluates(step) or step % self.save_every == 0


class Trainer:
    """Runs `work` from where it stands to the end and tells the hooks."""

    def __init__(self, work: Work, cadence: Cadence, hooks: Sequence[Hook]) -> None:
        """Nothing runs yet."""
        self._work = work
        self._cadence = cadence
        self.hooks = hooks
        self._interrupts = Interrupts()
        self.step = 0  # finished updates
        self.bad_steps = 0  # skipped in a row

    def run(self) -> None:
        """Go on from `step` to the last update.

        Raises:
            Interrupted: a signal came; the state was saved first.
            RunError: too many updates in a row were not finite.
        """
        with self._interrupts.watching():
            saved = self.step
            try:
                self._tell("on_start", self.step)
                if self.step == 0:
                    self._finish(StepResult(0, self._work.evaluate(0)))
                while self.step < self._cadence.steps:
                    self._advance()
                    if self._cadence.saves(self.step):
                        saved = self.step
            except Interrupted:
                self._work.rewind(self.step)  # an update whose evaluation was cut off
                if self.step > saved:
                    self._tell("on_save", self.step)
                raise
            finally:
                self._tell("on_end", self.step)

    def _advance(self) -> None:
        """One update, its evaluation and its events."""
        result = self._work.train(self.step, self._interrupts.shielded)
        done = self.step + 1
        if self._cadence.evaluates(done):
            result.metrics.update(self._work.evaluate(done))
        self._finish(result)

    def _finish(self, result: StepResult) -> None:
        with self._interrupts.shielded():
            self.step = result.step
            self.bad_steps = self.bad_steps + 1 if result.metrics.get("skipped") else 0
            for hook in self.hooks:
                hook.on_step(result)
            if self.step and self._cadence.saves(self.step):
                self._tell("on_save", self.step)
        if self.bad_steps >= self._cadence.max_bad_steps:
            raise RunError(
                f"step {self.step}: the loss or gradient was not finite {self.bad_steps} times in "
                "a row (train.max_bad_steps); lower train.learning_rate or look at the data."
            )

    def _tell(self, event: str, step: int) -> None:
        for hook in self.hooks:
            getattr(hook, event)(step)
