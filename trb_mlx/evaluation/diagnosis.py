"""The paper's diagnostics of a run's start, measured with its models (arXiv 2605.31159).

All rollouts are of the student before training, one a held-out prompt, so that they are
independent: alone, and with the behavior policy under several budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trb_mlx.config import BehaviorConfig, Config
from trb_mlx.data.context import fit_context, shortest_context
from trb_mlx.data.held_out import held_out_prompts
from trb_mlx.data.rewards import Verifier
from trb_mlx.evaluation.diagnostics import (
    BudgetRollouts,
    Continuation,
    Diagnostics,
    Excerpt,
    ExcerptPair,
    Sizes,
    default_sizes,
    read_diagnostics,
    write_diagnostics,
)
from trb_mlx.evaluation.evaluator import answer_rewards, responses
from trb_mlx.evaluation.excerpts import excerpt
from trb_mlx.files import disk_errors
from trb_mlx.models.loading import prepare_backend
from trb_mlx.models.pair import Pair, load_pair
from trb_mlx.rollout.behavior import Behavior, make_behavior
from trb_mlx.rollout.continuation import continue_rollouts
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import Sampling, sample, sample_blended
from trb_mlx.rollout.scoring import score
from trb_mlx.runs.folder import RunFolder
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey

# Draws keyed apart from training and evaluation; continuations take the numbers above.
STREAM = 2**41
EXCERPTS = 3
DRAFT_LENGTH = 4  # the law does not depend on it
Say = Callable[[str], None]


def run_diagnostics(
    folder: RunFolder,
    config: Config,
    say: Say,
    prompts: int | None = None,
    cuts: Sequence[int] | None = None,
    budgets: Sequence[float] | None = None,
) -> Diagnostics:
    """A run's diagnostics: those of its folder, or measured now and kept there.

    Args:
        folder: the run's.
        config: the run's.
        say: takes lines about progress.
        prompts, cuts, budgets: as in `default_sizes`; what was measured before is measured again
            only where another size is asked for.

    Raises:
        UserError: the models or the prompts cannot be loaded, or a size does not fit the run.
        RunError: the file could not be written.
    """
    path = folder.diagnostics
    known = read_diagnostics(path)
    sizes = default_sizes(config, prompts, cuts, budgets)
    if known is not None and (known.sizes == sizes or not (prompts or cuts or budgets)):
        say(f"{path} is there already")
        return known
    say(f"measuring {folder.path}")
    found = diagnose(config, sizes, say)
    with disk_errors(str(path)):
        write_diagnostics(path, found)
    return found


def diagnose(config: Config, sizes: Sizes, say: Say) -> Diagnostics:
    """Measure with the run's models, the student as it was before training.

    Raises:
        UserError: the models or the prompts cannot be loaded.
    """
    begun = time.perf_counter()
    prepare_backend()
    pair = load_pair(config.student, config.teacher)
    held = config.eval.model_copy(update={"prompts": sizes.prompts})
    prompts = held_out_prompts(
        config.model_copy(update={"eval": held}), pair.student.model.tokenizer, say
    )
    contexts = (pair.student.model.context, pair.teacher.model.context)
    limit, longest = config.rollout.max_tokens, config.data.max_prompt_tokens
    prompts, limit = fit_context(
        prompts, shortest_context(contexts), limit, longest, "held-out", say
    )
    drawn = config.rollout.model_copy(update={"max_tokens": limit})
    config = config.model_copy(update={"rollout": drawn})
    with Verifier() as verifier:
        return _Bench(config, sizes, pair, prompts, verifier).run(say, begun)


@dataclass(frozen=True)
class _Bench:
    config: Config
    sizes: Sizes
    pair: Pair
    prompts: Sequence[Prompt]
    verifier: Verifier

    def run(self, say: Say, begun: float) -> Diagnostics:
        """Draw, continue, score; `begun` is when the work, loading included, began."""
        drawn: dict[float, Rollout] = {}
        for budget in self.sizes.budgets:
            say(f"rollouts of {len(self.prompts)} prompts under budget {budget:g}")
            drawn[budget] = self._draw(_fixed(budget))
        vanilla, (name, blended) = drawn[0.0], self._own(drawn)
        return Diagnostics(
            student=self.config.student.model,
            teacher=self.config.teacher.model,
            behavior=name,
            max_tokens=self.config.rollout.max_tokens,
            temperature=self.config.rollout.temperature,
            sizes=self.sizes,
            budgets=[self._told(budget, rollout) for budget, rollout in drawn.items()],
            continuations=self._continuations(vanilla, blended, say),
            excerpts=self._excerpts(vanilla, blended),
            seconds=round(time.perf_counter() - begun, 1),
        )

    @property
    def _sampling(self) -> Sampling:
        rollout = self.config.rollout
        return Sampling(rollout.max_tokens, rollout.batch_size, rollout.temperature, support=1)

    def _draw(self, behavior: Behavior) -> Rollout:
        """One rollout a prompt by the behavior policy of step 0, with both models' records."""
        seed = self.config.train.seed
        jobs = [Job(p, RolloutKey(seed, STREAM, p.index, 0)) for p in self.prompts]
        if behavior.needs_teacher(0):
            budget = behavior.budget(0)
            drafting = Fixed(DRAFT_LENGTH)
            return sample_blended(self.pair, jobs, self._sampling, behavior, budget, drafting)
        rollout = sample(self.pair.student, jobs, self._sampling)
        train = self.config.train
        sizes = train.micro_batch_size, train.micro_batch_tokens
        score(self.pair.teacher, rollout, sizes, keep_hidden=False)
        return rollout

    def _own(self, drawn: dict[float, Rollout]) -> tuple[str, Rollout]:
        """What the run's own first step draws; for a vanilla run, what its budget would."""
        config = self.config.behavior
        behavior = make_behavior(config)
        blends = config.kind in ("trb", "fixed", "vanilla")
        if blends or not behavior.needs_teacher(0):
            return f"TRB, ε = {config.budget:g}", drawn[config.budget]
        return config.kind, self._draw(behavior)

    def _rewards(self, rollout: Rollout) -> list[float]:
        return answer_rewards(self.pair.student, rollout, self.verifier)

    def _told(self, budget: float, rollout: Rollout) -> BudgetRollouts:
        assert rollout.records is not None
        return BudgetRollouts(
            budget=budget,
            rewards=self._rewards(rollout),
            student_logprob=_row_means(rollout, rollout.records.student_logprob),
            teacher_logprob=_row_means(rollout, rollout.records.teacher_logprob),
        )

    def _continuations(self, vanilla: Rollout, blended: Rollout, say: Say) -> list[Continuation]:
        """Nothing where no prompt has a gold answer: then there is no success to compare."""
        if all(prompt.answer is None for prompt in self.prompts):
            return []
        found = []
        for number, cut in enumerate(self.sizes.cuts, start=1):
            say(f"continuations from {cut} tokens")
            for model in ("teacher", "student"):
                scorer = getattr(self.pair, model)
                rewards = {
                    name: self._rewards(
                        continue_rollouts(scorer, rollout, cut, self._sampling, STREAM + number)
                    )
                    for name, rollout in (("vanilla", vanilla), ("blended", blended))
                }
                found.append(Continuation(model=model, cut=cut, **rewards))
        return found

    def _excerpts(self, vanilla: Rollout, blended: Rollout) -> list[ExcerptPair]:
        """Of the first prompts, whatever they show."""
        pairs = []
        for row, prompt in enumerate(self.prompts[:EXCERPTS]):
            ours, theirs = (self._excerpt(rollout, row) for rollout in (vanilla, blended))
            pairs.append(
                ExcerptPair(prompt=prompt.text, answer=prompt.answer, vanilla=ours, blended=theirs)
            )
        return pairs

    def _excerpt(self, rollout: Rollout, row: int) -> Excerpt:
        answer = rollout.jobs[row].prompt.answer
        text = responses(self.pair.student, rollout)[row]
        reward = None if answer is None else self.verifier.score(text, answer)
        return excerpt(self.pair.student, rollout, row, reward)


def _fixed(budget: float) -> Behavior:
    return make_behavior(BehaviorConfig(kind="fixed", budget=budget))


def _row_means(rollout: Rollout, values: np.ndarray) -> list[float]:
    """The mean over each row's response tokens."""
    sums = np.where(rollout.mask, values, 0.0).sum(axis=1, dtype=np.float64)
    return [round(float(value), 6) for value in sums / rollout.lengths]
