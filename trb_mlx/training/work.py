"""One training step from prompts to metrics: roll out, score, reward, update."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from trb_mlx.config import Config
from trb_mlx.data.prompts import order
from trb_mlx.interrupts import Shield
from trb_mlx.models.pair import Pair
from trb_mlx.ops.schedules import learning_rate
from trb_mlx.rollout.behavior import Behavior
from trb_mlx.rollout.draft_length import Adaptive, DraftLength, Fixed, assumed_costs, measured_costs
from trb_mlx.rollout.sampler import Sampling, sample, sample_blended
from trb_mlx.rollout.scoring import sample_teacher, score
from trb_mlx.rollout.speculative import SpeculativeGenerator
from trb_mlx.training.metrics import reward_metrics, rollout_metrics
from trb_mlx.training.step import Stepper
from trb_mlx.training.target import is_supervised
from trb_mlx.types import Job, Metrics, Prompt, Rollout, RolloutKey, StepResult


@dataclass
class TrainingWork:
    """Everything one step needs; `rewards` gives 1 or 0 for rollouts with a gold answer."""

    config: Config
    pair: Pair
    prompts: Sequence[Prompt]
    behavior: Behavior
    stepper: Stepper
    rewards: Callable[[Rollout], list[float]]
    keep_hidden: bool = False  # the teacher's hidden states, from rollout to update
    draft_length: DraftLength | None = None  # chosen when the teacher is first asked
    _before: tuple[int, dict[str, Any] | None] = (-1, None)  # a step, and `drafting` at its begin

    @property
    def drafting(self) -> dict[str, Any] | None:
        """What the choice of draft lengths has seen, as a checkpoint keeps it."""
        return self.draft_length.state() if isinstance(self.draft_length, Adaptive) else None

    @drafting.setter
    def drafting(self, kept: dict[str, Any] | None) -> None:
        """Go on with what a checkpoint kept."""
        self.draft_length = None if kept is None else Adaptive.restored(kept)

    def rewind(self, updates: int) -> None:
        """Forget an update that the given count does not include, and what its rollout showed."""
        self.stepper.rewind(updates)
        if self._before[0] == updates:
            self.drafting = self._before[1]

    def train(self, step: int, shield: Shield) -> StepResult:
        """Update number `step` + 1, with its metrics."""
        self._before = step, self.drafting
        mx.reset_peak_memory()
        # Dropout is the only thing that draws from MLX's own state, and a resumed run has none.
        mx.random.seed((self.config.train.seed * 1_000_003 + step) % 2**63)
        begin = time.perf_counter()
        rollout = self.roll_out(step)
        mx.clear_cache()  # what the caches held is of other shapes than what the update needs
        drawn = time.perf_counter()
        rate = self.config.train
        metrics = self.stepper.update(
            rollout, learning_rate(step, rate.learning_rate, rate.lr_warmup_steps), shield
        )
        updated = time.perf_counter()
        rewards = self.rewards(rollout)
        metrics["skipped_updates"] = float(self.stepper.skipped)
        metrics |= rollout_metrics(rollout, self._budget(step)) | reward_metrics(rewards)
        metrics |= _timings(rollout, drawn - begin, updated - drawn, time.perf_counter() - updated)
        return StepResult(step + 1, metrics, rollout, rewards)

    def roll_out(self, step: int) -> Rollout:
        """The rollouts of one step, with both models' records."""
        jobs, train = self._jobs(step), self.config.train
        sizes = train.micro_batch_size, train.micro_batch_tokens
        sampling = self._sampling(step)
        if is_supervised(self.config.target, step):
            return sample_teacher(self.pair, jobs, sampling, sizes)
        if self.behavior.needs_teacher(step):
            budget = self.behavior.budget(step)
            if self.draft_length is None:
                self.draft_length = self._draft_length(sampling, budget)
            return sample_blended(
                self.pair, jobs, sampling, self.behavior, budget, self.draft_length
            )
        rollout = sample(self.pair.student, jobs, sampling)
        score(self.pair.teacher, rollout, sizes, self.keep_hidden)
        return rollout

    def _sampling(self, step: int) -> Sampling:
        settings, temperature = self.config.rollout, self.config.rollout.temperature
        if not is_supervised(self.config.target, step):
            temperature *= self.behavior.temperature(step)
        return Sampling(
            settings.max_tokens,
            settings.batch_size,
            temperature,
            self.config.loss.top_k,
            self.keep_hidden,
        )

    def _budget(self, step: int) -> float:
        """ε, which is 0 where no behavior policy draws."""
        return 0.0 if is_supervised(self.config.target, step) else self.behavior.budget(step)

    def _draft_length(self, sampling: Sampling, budget: float) -> DraftLength:
        setting = self.config.rollout.draft_length
        rollouts = self.config.train.prompts_per_step * self.config.rollout.rollouts_per_prompt
        if setting != "auto":
            return Fixed(setting)
        if self.config.train.deterministic:
            sizes = (self.pair.student.model.nbytes(), self.pair.teacher.model.nbytes())
            return Adaptive(assumed_costs(*sizes))
        return Adaptive(
            measured_costs(
                lambda: SpeculativeGenerator(self.pair, self.behavior, budget, sampling),
                min(sampling.batch_size, rollouts),
            )
        )

    def _jobs(self, step: int) -> list[Job]:
        train = self.config.train
        chosen = order(len(self.prompts), train.seed, step, train.prompts_per_step)
        copies = self.config.rollout.rollouts_per_prompt
        seen: Counter[int] = Counter()  # a small set may give one prompt twice in a step
        jobs = []
        for index in chosen:
            prompt = self.prompts[index]
            for _ in range(copies):
                jobs.append(Job(prompt, RolloutKey(train.seed, step, prompt.index, seen[index])))
                seen[index] += 1
        return jobs


def _timings(rollout: Rollout, draw: float, update: float, rest: float) -> Metrics:
    return {
        "tokens_per_second": float(rollout.lengths.sum()) / (draw + update + rest),
        "time/rollout_s": draw,
        "time/update_s": update,
        "time/reward_s": rest,
        "memory/peak_gb": mx.get_peak_memory() / 2**30,
    }
