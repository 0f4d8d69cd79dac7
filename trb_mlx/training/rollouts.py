"""The rollouts of a training step: its prompts, who draws the tokens, and both models' records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trb_mlx.config import Config
from trb_mlx.data.prompts import order
from trb_mlx.models.pair import Pair
from trb_mlx.ops.schedules import growing_horizon
from trb_mlx.ranks.group import ALONE, Group
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.dealing import draw_dealt
from trb_mlx.rollout.draft_length import Adaptive, DraftLength, Fixed, assumed_costs
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.scoring import sample_teacher, score, score_pair
from trb_mlx.training.peak_memory import PeakMemory
from trb_mlx.training.target import is_supervised
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling


class RolloutSampler:
    """Draws each step's rollouts from the behavior policy, scored by both models.

    `draft_length` is chosen when the teacher is first asked; `peaks` measures its phases.
    """

    def __init__(
        self,
        config: Config,
        pair: Pair,
        prompts: Sequence[Prompt],
        keep_hidden: bool = False,
        group: Group = ALONE,
    ) -> None:
        """With `keep_hidden` the teacher's last hidden states are recorded too."""
        self._group = group
        self.behavior = make_behavior(config.behavior)
        self.draft_length: DraftLength | None = None
        self.peaks = PeakMemory()
        self._config = config
        self._pair = pair
        self._prompts = prompts
        self._keep_hidden = keep_hidden
        self._timed = not config.train.deterministic
        # A step, and `drafting` when it began.
        self._before: tuple[int, dict[str, Any] | None] = (-1, None)

    @property
    def drafting(self) -> dict[str, Any] | None:
        """What the choice of draft lengths has seen, as a checkpoint keeps it."""
        return self.draft_length.state() if isinstance(self.draft_length, Adaptive) else None

    @drafting.setter
    def drafting(self, state: dict[str, Any] | None) -> None:
        """Go on with what a checkpoint kept."""
        self.draft_length = None if state is None else Adaptive.restored(state, self._timed)

    def rewind(self, step: int) -> None:
        """Forget what the rollouts of a step showed, where they are the last that were drawn."""
        if self._before[0] == step:
            self.drafting = self._before[1]

    def budget(self, step: int) -> float:
        """ε, which is 0 where no behavior policy draws."""
        return 0.0 if is_supervised(self._config.target, step) else self.behavior.budget(step)

    def drawers(self, step: int) -> tuple[bool, bool]:
        """Whether the student and the teacher take part in drawing."""
        if is_supervised(self._config.target, step):
            return False, True
        return True, self.behavior.needs_teacher(step)

    def max_tokens(self, step: int) -> int:
        """The length limit of a step, that of a growing horizon perhaps."""
        limit, horizon = self._config.rollout.max_tokens, self._config.rollout.horizon
        if horizon is None:
            return limit
        return growing_horizon(step, horizon.start, limit, horizon.steps)

    def sample(self, step: int) -> Rollout:
        """The rollouts of a step, counted from 0, with both models' records."""
        self._before = step, self.drafting
        limit, whole = self.max_tokens(step), self._config.train.deterministic
        rollout = draw_dealt(
            self._group, self._jobs(step), limit, lambda jobs: self._draw(step, jobs), whole
        )
        rollout.horizon = limit if limit < self._config.rollout.max_tokens else None
        return rollout

    def _draw(self, step: int, jobs: list[Job]) -> Rollout:
        config, pair = self._config, self._pair
        sizes = config.train.micro_batch_size, config.train.micro_batch_tokens
        supervised = is_supervised(config.target, step)
        warmed = 1.0 if supervised else self.behavior.temperature(step)
        sampling = Sampling(
            self.max_tokens(step),
            config.rollout.batch_size,
            config.rollout.temperature * warmed,
            config.loss.top_k,
            self._keep_hidden,
        )
        if supervised:
            with self.peaks.phase("rollout"):
                rollout = sample_teacher(pair, jobs, sampling)
            with self.peaks.phase("score"):
                score_pair(pair, rollout, sampling, sizes)
            return rollout
        if self.behavior.needs_teacher(step):
            budget = self.behavior.budget(step)
            if self.draft_length is None:
                self.draft_length = self._draft_length()
            with self.peaks.phase("rollout"):
                return sample_blended(
                    pair, jobs, sampling, self.behavior, budget, self.draft_length
                )
        with self.peaks.phase("rollout"):
            rollout = sample(pair.student, jobs, sampling)
        with self.peaks.phase("score"):
            score(pair.teacher, rollout, sizes, self._keep_hidden)
        return rollout

    def _draft_length(self) -> DraftLength:
        setting, pair = self._config.rollout.draft_length, self._pair
        if setting != "auto":
            return Fixed(setting)
        costs = assumed_costs(pair.student.model.nbytes(), pair.teacher.model.nbytes())
        return Adaptive(costs, self._timed)

    def _jobs(self, step: int) -> list[Job]:
        train = self._config.train
        copies = self._config.rollout.rollouts_per_prompt
        seen: Counter[int] = Counter()  # a small set may give one prompt twice in a step
        jobs = []
        for index in order(len(self._prompts), train.seed, step, train.prompts_per_step):
            prompt = self._prompts[index]
            for _ in range(copies):
                jobs.append(Job(prompt, RolloutKey(train.seed, step, prompt.index, seen[index])))
                seen[index] += 1
        return jobs
