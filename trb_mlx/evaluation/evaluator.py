"""Held-out evaluation: pass@1 by verifiable answers, and reverse KL on the student's rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trb_mlx.config import EvalConfig
from trb_mlx.data.rewards import Verifier
from trb_mlx.evaluation.distances import mean_reverse_kl
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.rollout.sampler import Sampling, sample
from trb_mlx.rollout.text import response_texts
from trb_mlx.types import Job, Metrics, Prompt, Rollout, RolloutKey

# Held-out draws are keyed apart from every training step, and alike at every evaluation, so
# that two evaluations differ by the model alone.
EVALUATION_STREAM = 2**40
MOST = 0.5  # above this share of rollouts that were cut, a length limit is likely to be wrong
NONE_RIGHT = (
    "warning: no answer was right; does the prompt ask for a form that answers are read in "
    "(\\boxed{…}, or after ####)?"
)


def as_drawn(config: EvalConfig, max_tokens: int) -> EvalConfig:
    """The settings with a length limit, and one sample where all would be alike."""
    samples = config.samples if config.temperature else 1
    return config.model_copy(update={"max_tokens": max_tokens, "samples": samples})


def truncation_warning(share: float, limit: str) -> str | None:
    """A sentence where most rollouts reached the length limit that is called `limit`."""
    return f"warning: {share:.0%} of the rollouts were cut at {limit}" if share > MOST else None


def held_out_rollouts(
    scorer: Scorer, prompts: Sequence[Prompt], config: EvalConfig, seed: int, batch_size: int
) -> Rollout:
    """`config.samples` rollouts of each prompt by one model alone."""
    assert config.max_tokens is not None
    jobs = [
        Job(prompt, RolloutKey(seed, EVALUATION_STREAM, prompt.index, number))
        for prompt in prompts
        for number in range(config.samples)
    ]
    sampling = Sampling(config.max_tokens, batch_size, config.temperature, top_p=config.top_p)
    return sample(scorer, jobs, sampling)


def answer_rewards(scorer: Scorer, rollout: Rollout, verifier: Verifier) -> list[float]:
    """1 or 0 for each rollout whose prompt has a gold answer; empty where none has.

    A response to a prompt that ends with `<think>` begins inside its thoughts.
    """
    items = [
        (
            ("<think>" if job.prompt.text.rstrip().endswith("<think>") else "") + text,
            job.prompt.answer,
            job.prompt.grader,
        )
        for text, job in zip(response_texts(scorer, rollout), rollout.jobs, strict=True)
        if job.prompt.answer is not None
    ]
    return verifier.score_all(items)


class Evaluator:
    """Evaluates the student on held-out prompts, and once the teacher for comparison."""

    def __init__(
        self,
        pair: Pair,
        prompts: Sequence[Prompt],
        config: EvalConfig,
        verifier: Verifier,
        seed: int,
        rows: tuple[int, int],
    ) -> None:
        """`rows` are decoded at once, and scored at once without a cache."""
        self._pair = pair
        self._prompts = prompts
        self._config = config
        self._verifier = verifier
        self._seed = seed
        self._rows = rows

    def student(self) -> Metrics:
        """`eval/pass@1`, `eval/reverse_kl`, mean length and truncated fraction."""
        scorer = self._pair.student
        rollout = self._rollout(scorer)
        return {
            **_pass_at_1("eval/pass@1", answer_rewards(scorer, rollout, self._verifier)),
            "eval/reverse_kl": mean_reverse_kl(self._pair, rollout, self._rows[1]),
            "eval/mean_length": float(rollout.lengths.mean()),
            "eval/truncated_fraction": float(1.0 - rollout.stopped.mean()),
        }

    def teacher(self) -> Metrics:
        """`eval/teacher_pass@1` (nothing without gold answers)."""
        if all(prompt.answer is None for prompt in self._prompts):
            return {}
        scorer = self._pair.teacher
        rewards = answer_rewards(scorer, self._rollout(scorer), self._verifier)
        return _pass_at_1("eval/teacher_pass@1", rewards)

    def _rollout(self, scorer: Scorer) -> Rollout:
        return held_out_rollouts(scorer, self._prompts, self._config, self._seed, self._rows[0])


def _pass_at_1(name: str, rewards: Sequence[float]) -> Metrics:
    return {name: float(np.mean(rewards))} if rewards else {}
