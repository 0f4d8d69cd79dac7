"""Cadence only: when to evaluate, roll out, update and save. Knows no formula and no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

from trb_mlx.errors import RunError
from trb_mlx.interrupts import Interrupted, Shield, shielded, watching
from trb_mlx.types import Metrics, StepResult

Phase = Literal["update", "evaluation"]


class Hook:
    """What may listen to a run. Every method is optional; steps count finished updates."""

    def on_start(self, step: int) -> None:
        """The run begins, or goes on, after `step` finished updates."""

    def on_phase(self, phase: Phase, step: int) -> None:
        """The update that makes `step` of them begins, or the evaluation after `step` updates."""

    def on_step(self, result: StepResult) -> None:
        """A step and its evaluation, if it had one, are done (step 0: evaluation alone)."""

    def on_stop(self, step: int) -> None:
        """The run is cut off, and its state after `step` updates is saved before it ends."""

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
        rewind: take back whatever came of an update that the given count does not include.
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
        self._saved = 0
        self.step = 0  # finished updates
        self.bad_steps = 0  # skipped in a row

    def run(self) -> None:
        """Go on from `step` to the last update.

        Raises:
            Interrupted: a signal came; the last whole step was saved first, as it is when
                anything else ends the run.
            RunError: too many updates in a row were not finite.
        """
        with watching():
            self._saved = self.step
            try:
                self._tell("on_start", self.step)
                if self.step == 0:
                    self._finish(StepResult(0, self._evaluate(0)))
                while self.step < self._cadence.steps:
                    self._advance()
            except BaseException as error:
                # What made a run fail may make its save fail too, and is what there is to say.
                quiet = nullcontext() if isinstance(error, Interrupted) else suppress(Exception)
                with shielded(), quiet:
                    self._save_last()
                raise
            finally:
                with shielded():
                    self._tell("on_end", self.step)

    def _save_last(self) -> None:
        """Save the last whole step where that has not been done yet."""
        self._work.rewind(self.step)
        if self.step > self._saved:
            self._tell("on_stop", self.step)
            self._save()

    def _save(self) -> None:
        self._tell("on_save", self.step)
        self._saved = self.step

    def _advance(self) -> None:
        """One update, its evaluation and its events."""
        done = self.step + 1
        self._begin("update", done)
        result = self._work.train(self.step, shielded)
        if self._cadence.evaluates(done):
            result.metrics.update(self._evaluate(done))
        self._finish(result)

    def _evaluate(self, step: int) -> Metrics:
        self._begin("evaluation", step)
        return self._work.evaluate(step)

    def _begin(self, phase: Phase, step: int) -> None:
        for hook in self.hooks:
            hook.on_phase(phase, step)

    def _finish(self, result: StepResult) -> None:
        with shielded():
            for hook in self.hooks:
                hook.on_step(result)
            self.step = result.step
            self.bad_steps = self.bad_steps + 1 if result.metrics.get("skipped") else 0
            if self.step and self._cadence.saves(self.step):
                self._save()
        if self.bad_steps >= self._cadence.max_bad_steps:
            raise RunError(
                f"step {self.step}: the loss or gradient was not finite {self.bad_steps} times in "
                "a row (train.max_bad_steps); look at the data, or go on after it with --resume "
                "and a lower train.learning_rate."
            )

    def _tell(self, event: str, step: int) -> None:
        for hook in self.hooks:
            getattr(hook, event)(step)
