"""Held-out evaluation: pass@1 by verifiable answers, and reverse KL on the student's rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trb_mlx.config import EvalConfig
from trb_mlx.data.rewards import Verifier
from trb_mlx.evaluation.distances import mean_reverse_kl
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ranks.group import ALONE, Group
from trb_mlx.rollout.dealing import draw_dealt
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.text import response_texts
from trb_mlx.types import Job, Metrics, Prompt, Rollout, RolloutKey, Sampling

# Held-out draws are keyed apart from every training step, and alike at every evaluation, so
# that two evaluations differ by the model alone.
EVALUATION_STREAM = 2**40
TRUNCATED = 0.5  # a larger share of truncated rollouts suggests that the length limit is wrong
NONE_RIGHT = (
    "warning: no answer was right; does the prompt ask for a form that answers are read in "
    "(\\boxed{…}, or after ####)?"
)


def resolve_eval(config: EvalConfig, max_tokens: int) -> EvalConfig:
    """The settings with a length limit, and one sample where all would be alike."""
    samples = config.samples if config.temperature else 1
    return config.model_copy(update={"max_tokens": max_tokens, "samples": samples})


def truncation_warning(share: float, limit: str) -> str | None:
    """A sentence where most rollouts reached the length limit that is called `limit`."""
    if share <= TRUNCATED:
        return None
    return f"warning: {share:.0%} of the rollouts were cut at {limit}"


def held_out_rollouts(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    config: EvalConfig,
    seed: int,
    batch_size: int,
    group: Group = ALONE,
) -> Rollout:
    """`config.samples` rollouts of each prompt by one model alone, dealt to the group's ranks."""
    assert config.max_tokens is not None
    jobs = [
        Job(prompt, RolloutKey(seed, EVALUATION_STREAM, prompt.index, number))
        for prompt in prompts
        for number in range(config.samples)
    ]
    sampling = Sampling(config.max_tokens, batch_size, config.temperature, top_p=config.top_p)
    return draw_dealt(group, jobs, config.max_tokens, lambda own: sample(scorer, own, sampling))


def answer_rewards(
    scorer: Scorer, rollout: Rollout, verifier: Verifier, group: Group = ALONE
) -> list[float]:
    """1 or 0 for each rollout whose prompt has a gold answer; empty where none has."""
    rewards = row_rewards(scorer, rollout, verifier, group)
    return [reward for reward in rewards if reward is not None]


def row_rewards(
    scorer: Scorer, rollout: Rollout, verifier: Verifier, group: Group = ALONE
) -> list[float | None]:
    """1 or 0 for each rollout, None without a gold answer or where a horizon cut it.

    The group's ranks take turns.
    """
    texts, cut = response_texts(scorer, rollout), rollout.cut
    hands = [list(range(rank, len(texts), group.size)) for rank in range(group.size)]
    mine = [
        None
        if cut[row]
        else answer_reward(texts[row], rollout.jobs[row].prompt, verifier, scorer.is_teacher)
        for row in hands[group.rank]
    ]
    given = zip(hands, group.gather("the rewards", mine), strict=True)
    rewards = {row: reward for hand, part in given for row, reward in zip(hand, part, strict=True)}
    return [rewards[row] for row in range(len(texts))]


def answer_reward(
    text: str, prompt: Prompt, verifier: Verifier, teacher: bool = False
) -> float | None:
    """1 or 0 for a response of the teacher or the student; None without a gold answer.

    A response to a prompt that ends with `<think>` begins inside its thoughts.
    """
    if prompt.answer is None:
        return None
    opening = "<think>" if prompt.text_for(teacher).rstrip().endswith("<think>") else ""
    return verifier.score(opening + text, prompt.answer, prompt.grader)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the student on held-out prompts, and once the teacher for comparison.

    Attributes:
        pair: both models.
        prompts: the problems.
        config: samples a problem, temperature, top-p and length limit (not None).
        verifier: scores answers.
        seed: of the draws.
        rows: how many are decoded at once, and scored at once without a cache.
        group: the ranks that all of it is dealt to.
    """

    pair: Pair
    prompts: Sequence[Prompt]
    config: EvalConfig
    verifier: Verifier
    seed: int
    rows: tuple[int, int]
    group: Group = ALONE

    def evaluate_student(self) -> Metrics:
        """`eval/pass@1` (where there are gold answers), `eval/reverse_kl`, lengths, truncation."""
        rollout, rewards = self._answers(self.pair.student)
        return {
            **({"eval/pass@1": float(np.mean(rewards))} if rewards else {}),
            "eval/reverse_kl": mean_reverse_kl(self.pair, rollout, self.rows[1], self.group),
            "eval/mean_length": float(rollout.lengths.mean()),
            "eval/truncated_fraction": float(1.0 - rollout.stopped.mean()),
        }

    def evaluate_teacher(self) -> Metrics:
        """`eval/teacher_pass@1` (nothing without gold answers)."""
        if all(prompt.answer is None for prompt in self.prompts):
            return {}
        _, rewards = self._answers(self.pair.teacher)
        return {"eval/teacher_pass@1": float(np.mean(rewards))}

    def _answers(self, scorer: Scorer) -> tuple[Rollout, list[float]]:
        rollout = held_out_rollouts(
            scorer, self.prompts, self.config, self.seed, self.rows[0], self.group
        )
        return rollout, answer_rewards(scorer, rollout, self.verifier, self.group)
