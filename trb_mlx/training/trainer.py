"""The trainer: rolls out, updates, evaluates and saves on time, and calls callbacks back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import mlx.core as mx

from trb_mlx.config import Config
from trb_mlx.errors import RunError
from trb_mlx.evaluation.evaluator import Evaluator
from trb_mlx.interrupts import Interrupted, shielded, watching
from trb_mlx.ops.schedules import learning_rate
from trb_mlx.ranks.group import ALONE, Group
from trb_mlx.runs.checkpoint import TrainingState
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.training.cost import cost_metrics, is_over, tokens_read
from trb_mlx.training.metrics import horizon_metrics, rank_metrics, reward_metrics, rollout_metrics
from trb_mlx.training.rollouts import RolloutSampler
from trb_mlx.training.step import Stepper
from trb_mlx.training.target import is_exact
from trb_mlx.types import Cost, Metrics, Rollout, StepResult


class Trainer:
    """Trains a student from `step` finished updates to `train.steps`. Knows no formula, no file."""

    def __init__(
        self,
        config: Config,
        sampler: RolloutSampler,
        stepper: Stepper,
        evaluator: Evaluator,
        rewards: Callable[[Rollout], list[float | None]],
        callbacks: Sequence[Callback] = (),
        group: Group = ALONE,
    ) -> None:
        """`rewards` gives 1, 0 or None for each rollout; `group` are the ranks that share it."""
        self.config = config
        self.sampler = sampler
        self.stepper = stepper
        self.evaluator = evaluator
        self.rewards = rewards
        self.callbacks = callbacks
        self.group = group
        self.step = 0  # finished updates
        self.bad_steps = 0  # skipped in a row
        self.cost = Cost()  # of the finished updates
        self._saved = 0
        self._ticked = 0.0  # when `cost.minutes` was counted last

    def run(self) -> None:
        """Go on from `step` to the last update.

        Raises:
            Interrupted: a signal came; the last whole step was saved first, as it is when
                anything else ends the run.
            RunError: too many updates in a row were not finite.
        """
        with watching():
            self._saved = self.step
            self._ticked = time.perf_counter()
            try:
                self._call("on_start", self.step)
                if self.step == 0:
                    self._finish(StepResult(0, self.evaluate(0)))
                while not self._is_over(self.step, self.cost):
                    result = self.train_step()
                    if self._evaluates(result):
                        result.metrics |= self.evaluate(result.step)
                    self._finish(result)
            except BaseException as error:
                # What made a run fail may make its save fail too, and is what there is to say.
                quiet = nullcontext() if isinstance(error, Interrupted) else suppress(Exception)
                with shielded(), quiet:
                    self.rewind()
                    if self.step > self._saved:
                        self._call("on_stop", self.step)
                        self._save()
                raise
            finally:
                with shielded():
                    self._call("on_end", self.step)

    def train_step(self) -> StepResult:
        """Roll out, score, update and reward: one more update than `step`, not counted yet."""
        step, train = self.step, self.config.train
        self._call("on_phase", "update", step + 1)
        # Dropout is the only thing that draws from MLX's own state, and a resumed run has none.
        mx.random.seed((train.seed * 1_000_003 + step) % 2**63)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        rollout = self.sampler.sample(step)
        trained = self.stepper.objective.in_loss(rollout)
        mx.clear_cache()  # what the caches held is of other shapes than what the update needs
        sampled = time.perf_counter()
        rate = learning_rate(step, train.learning_rate, train.lr_warmup_steps)
        with self.sampler.peaks.phase("update"):
            metrics = self.stepper.update(trained, rate)
        updated = time.perf_counter()
        rewards = self.rewards(rollout)
        metrics["skipped_updates"] = float(self.stepper.skipped)
        metrics |= rollout_metrics(rollout, self.sampler.budget(step)) | reward_metrics(rewards)
        ended = time.perf_counter()
        metrics |= {
            "tokens_per_second": float(rollout.lengths.sum()) / (ended - begun),
            "time/rollout_s": sampled - begun,
            "time/update_s": updated - sampled,
            "time/reward_s": ended - updated,
        }
        peaks = self.sampler.peaks.take()
        metrics |= {"memory/peak_gb": max(peaks.values())} | peaks
        if self.config.rollout.horizon is not None:
            metrics |= horizon_metrics(rollout, self.config.rollout.max_tokens)
        if rollout.ranks is not None:
            metrics |= rank_metrics(rollout, self.group.size, self.group.take_seconds())
        cost = self.cost + self._cost(rollout, trained, time.process_time() - cpu_begun)
        return StepResult(step + 1, metrics | cost_metrics(cost), rollout, rewards, cost)

    def _cost(self, rollout: Rollout, trained: Rollout, cpu_seconds: float) -> Cost:
        """Of the step that these rollouts are of; the clock ran since the one before."""
        assert rollout.records is not None
        kept, ticked = rollout.records.teacher_hidden is not None, self._ticked
        self._ticked = time.perf_counter()
        drawers = self.sampler.drawers(rollout.step)
        again = is_exact(self.config.loss) and not kept
        student_tokens, teacher_tokens = tokens_read(rollout, trained, drawers, again)
        # The clock is rank 0's, for all have to end at one step.
        clocks = self.group.gather("the step's end", [(self._ticked - ticked) / 60, cpu_seconds])
        return Cost(
            int(trained.lengths.sum()),
            student_tokens,
            teacher_tokens,
            clocks[0][0],
            sum(cpu for _, cpu in clocks),
        )

    def evaluate(self, step: int) -> Metrics:
        """Metrics on held-out prompts after `step` updates, before the first the teacher's too."""
        self._call("on_phase", "evaluation", step)
        begun, peaks = time.perf_counter(), self.sampler.peaks
        with peaks.phase("eval"):
            metrics = self.evaluator.evaluate_student()
            if step == 0 and self.config.eval.teacher:
                metrics |= self.evaluator.evaluate_teacher()
        return metrics | {"time/eval_s": time.perf_counter() - begun} | peaks.take()

    def _is_over(self, step: int, cost: Cost) -> bool:
        return is_over(self.config.train, step, cost)

    def _evaluates(self, result: StepResult) -> bool:
        every = self.config.eval.every  # 0: only at both ends
        due = bool(every and result.step % every == 0)
        return due or self._is_over(result.step, result.cost)

    def _finish(self, result: StepResult) -> None:
        """Count a step once every callback has it, and save where it is time."""
        with shielded():
            self._call("on_step", result)
            self.step = step = result.step
            self.cost = result.cost
            self.bad_steps = self.bad_steps + 1 if result.metrics.get("skipped") else 0
            if step and (self._evaluates(result) or step % self.config.run.save_every == 0):
                self._save()
        if self.bad_steps >= self.config.train.max_bad_steps:
            raise RunError(
                f"step {self.step}: the loss or gradient was not finite {self.bad_steps} times in "
                "a row (train.max_bad_steps); look at the data, or go on after it with --resume "
                "and a lower train.learning_rate."
            )

    def _save(self) -> None:
        self._call("on_save", self.step)
        self._saved = self.step

    def _call(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*details)

    def rewind(self) -> None:
        """Take back whatever came of an update that is not counted."""
        self.stepper.rewind(self.step)
        self.sampler.rewind(self.step)

    @property
    def state(self) -> TrainingState:
        """What a checkpoint keeps beside arrays."""
        skipped, drafting = self.stepper.skipped, self.sampler.drafting
        return TrainingState(self.step, self.bad_steps, skipped, drafting, self.cost)

    def restore(self, state: TrainingState) -> None:
        """Go on from a checkpoint's state."""
        self.step = self.stepper.updates = state.step
        self.stepper.skipped = state.skipped
        self.cost = state.cost
        # A run that was stopped for its bad steps is resumed to get past them.
        stopped = state.bad_steps >= self.config.train.max_bad_steps
        self.bad_steps = 0 if stopped else state.bad_steps
        if self.config.rollout.draft_length == "auto":
            self.sampler.drafting = state.drafting
