"""The paper's diagnostics of a run's start, measured with its models (arXiv 2605.31159).

All rollouts are of the student before training, one a held-out prompt, so that they are
independent: alone, and with the behavior policy under several budgets.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from trb_mlx.backend import prepare_backend
from trb_mlx.bounds import bounded
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
from trb_mlx.evaluation.evaluator import answer_reward, answer_rewards
from trb_mlx.files import disk_errors
from trb_mlx.models.pair import Pair, Scorer, load_pair
from trb_mlx.rollout.behavior import Behavior, make_behavior
from trb_mlx.rollout.continuation import continue_rollouts
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.scoring import score
from trb_mlx.rollout.text import response_texts, token_texts
from trb_mlx.runs.folder import RunFolder
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling, Say

# Draws keyed apart from training and evaluation; continuations take the numbers above.
STREAM = 2**41
EXCERPTS = 3
EXCERPT_TOKENS = 200  # shown of a rollout
DRAFT_LENGTH = 4  # the law does not depend on it


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
    kept = read_diagnostics(path)
    sizes = default_sizes(config, prompts, cuts, budgets)
    if kept is not None and (kept.sizes == sizes or not (prompts or cuts or budgets)):
        say(f"{path} is there already")
        return kept
    say(f"measuring {folder.path}")
    measured = diagnose(config, sizes, say)
    with disk_errors(str(path)):
        write_diagnostics(path, measured)
    return measured


def diagnose(config: Config, sizes: Sizes, say: Say) -> Diagnostics:
    """Measure with the run's models, the student as it was before training.

    Raises:
        UserError: the models or the prompts cannot be loaded.
    """
    start = time.perf_counter()
    prepare_backend()
    pair = load_pair(config.student, config.teacher)
    config, prompts = _fit_prompts(config, sizes.prompts, pair, say)
    rollouts: dict[float, Rollout] = {}
    for budget in sizes.budgets:
        say(f"rollouts of {len(prompts)} prompts under budget {budget:g}")
        behavior = make_behavior(BehaviorConfig(kind="fixed", budget=budget))
        rollouts[budget] = _sample(config, pair, prompts, behavior)
    vanilla = rollouts[0.0]
    # What the run's own first step draws; for a vanilla run, what its budget would.
    own, behavior = config.behavior, make_behavior(config.behavior)
    if own.kind in ("trb", "fixed", "vanilla") or not behavior.needs_teacher(0):
        name, blended = f"TRB, ε = {own.budget:g}", rollouts[own.budget]
    else:
        name, blended = own.kind, _sample(config, pair, prompts, behavior)
    with Verifier() as verifier, bounded(config.train.vocabulary_mb):
        return Diagnostics(
            student=config.student.model,
            teacher=config.teacher.model,
            behavior=name,
            max_tokens=config.rollout.max_tokens,
            temperature=config.rollout.temperature,
            sizes=sizes,
            budgets=[
                _budget_rollouts(budget, rollout, answer_rewards(pair.student, rollout, verifier))
                for budget, rollout in rollouts.items()
            ],
            continuations=_continuations(config, pair, (vanilla, blended), sizes, verifier, say),
            excerpts=excerpt_pairs(pair.student, vanilla, blended, verifier),
            seconds=round(time.perf_counter() - start, 1),
        )


def _fit_prompts(
    config: Config, count: int, pair: Pair, say: Say
) -> tuple[Config, Sequence[Prompt]]:
    """The held-out prompts that fit both contexts, and the config with the length left to them."""
    held_out = config.eval.model_copy(update={"prompts": count})
    prompts = held_out_prompts(
        config.model_copy(update={"eval": held_out}),
        pair.student.model.tokenizer,
        say,
        pair.teacher.model.tokenizer,
    )
    context = shortest_context((pair.student.model.context, pair.teacher.model.context))
    limit, longest = config.rollout.max_tokens, config.data.max_prompt_tokens
    prompts, limit = fit_context(prompts, context, limit, longest, "held-out", say)
    rollout = config.rollout.model_copy(update={"max_tokens": limit})
    return config.model_copy(update={"rollout": rollout}), prompts


def _sampling(config: Config) -> Sampling:
    rollout = config.rollout
    return Sampling(rollout.max_tokens, rollout.batch_size, rollout.temperature, support=1)


def _sample(config: Config, pair: Pair, prompts: Sequence[Prompt], behavior: Behavior) -> Rollout:
    """One rollout a prompt by the behavior policy of step 0, with both models' records."""
    train, sampling = config.train, _sampling(config)
    jobs = [Job(prompt, RolloutKey(train.seed, STREAM, prompt.index, 0)) for prompt in prompts]
    if behavior.needs_teacher(0):
        budget, drafting = behavior.budget(0), Fixed(DRAFT_LENGTH)
        return sample_blended(pair, jobs, sampling, behavior, budget, drafting)
    rollout = sample(pair.student, jobs, sampling)
    sizes = train.micro_batch_size, train.micro_batch_tokens
    score(pair.teacher, rollout, sizes, keep_hidden=False)
    return rollout


def _budget_rollouts(budget: float, rollout: Rollout, rewards: list[float]) -> BudgetRollouts:
    assert rollout.records is not None

    def row_means(values: np.ndarray) -> list[float]:
        sums = np.where(rollout.mask, values, 0.0).sum(axis=1, dtype=np.float64)
        return [round(float(value), 6) for value in sums / rollout.lengths]

    return BudgetRollouts(
        budget=budget,
        rewards=rewards,
        student_logprob=row_means(rollout.records.student_logprob),
        teacher_logprob=row_means(rollout.records.teacher_logprob),
    )


def _continuations(
    config: Config,
    pair: Pair,
    rollouts: tuple[Rollout, Rollout],
    sizes: Sizes,
    verifier: Verifier,
    say: Say,
) -> list[Continuation]:
    """Nothing where no prompt has a gold answer: then there is no success to compare.

    `rollouts` are the student's alone, and the behavior policy's.
    """
    if all(job.prompt.answer is None for job in rollouts[0].jobs):
        return []
    continuations = []
    for number, cut in enumerate(sizes.cuts, start=1):
        say(f"continuations from {cut} tokens")
        for model, scorer in (("teacher", pair.teacher), ("student", pair.student)):
            vanilla, blended = (
                continue_rollouts(scorer, rollout, cut, _sampling(config), STREAM + number)
                for rollout in rollouts
            )
            continuations.append(
                Continuation(
                    model=model,
                    cut=cut,
                    vanilla=answer_rewards(pair.student, vanilla, verifier),
                    blended=answer_rewards(pair.student, blended, verifier),
                )
            )
    return continuations


def excerpt_pairs(
    scorer: Scorer, vanilla: Rollout, blended: Rollout, verifier: Verifier
) -> list[ExcerptPair]:
    """Of the first prompts, whatever they show."""
    pairs = []
    for row, job in enumerate(vanilla.jobs[:EXCERPTS]):
        prompt = job.prompt
        excerpts = []
        for rollout in (vanilla, blended):
            text = response_texts(scorer, rollout)[row]
            reward = answer_reward(text, prompt, verifier)
            excerpts.append(excerpt(scorer, rollout, row, reward))
        pairs.append(
            ExcerptPair(
                prompt=prompt.text, answer=prompt.answer, vanilla=excerpts[0], blended=excerpts[1]
            )
        )
    return pairs


def excerpt(scorer: Scorer, rollout: Rollout, row: int, reward: float | None) -> Excerpt:
    """One row of a rollout with records; the stop token is shown as `⟨stop⟩`."""
    records = rollout.records
    assert records is not None
    ids = rollout.response(row)
    ratios = (records.teacher_logprob - records.student_logprob)[row, : len(ids)].tolist()
    pieces = token_texts(scorer.model.tokenizer, ids[:EXCERPT_TOKENS])
    if len(ids) <= EXCERPT_TOKENS and ids[-1] == scorer.merge.stop_id:
        pieces[-1] = "⟨stop⟩"
    return Excerpt(
        pieces=pieces,
        scores=[round(float(ratio), 3) for ratio in ratios[:EXCERPT_TOKENS]],
        score=round(sum(ratios) / len(ratios), 4),
        length=len(ids),
        stopped=bool(rollout.stopped[row]),
        reward=reward,
    )
