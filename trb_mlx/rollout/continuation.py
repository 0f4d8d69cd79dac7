"""Rollouts cut at some length and continued by one model alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trb_mlx.models.pair import Scorer
from trb_mlx.rollout.sampler import Sampling, sample
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey


def continue_rollouts(
    scorer: Scorer, rollout: Rollout, cut: int, sampling: Sampling, stream: int
) -> Rollout:
    """The first `cut` tokens of each rollout, then what `scorer` makes of them.

    Args:
        scorer: the model that goes on, alone.
        rollout: finished rollouts; one that stopped within the cut stays as it is.
        cut: tokens kept, 1 ≤ cut < `sampling.max_tokens`.
        sampling: of the whole response: `max_tokens` counts the tokens kept.
        stream: keys the draws apart from those that made the rollouts.

    Returns:
        The same jobs with the new responses, without records.
    """
    going = np.flatnonzero((rollout.lengths > cut) | ~rollout.stopped)
    tokens = np.zeros((len(rollout.jobs), sampling.max_tokens), np.int32)
    kept = min(cut, rollout.tokens.shape[1])
    tokens[:, :kept] = rollout.tokens[:, :kept]
    lengths, stopped = rollout.lengths.copy(), rollout.stopped.copy()
    if going.size:
        jobs = [_shortened(rollout.jobs[row], rollout.tokens[row, :cut], stream) for row in going]
        more = sample(scorer, jobs, replace(sampling, max_tokens=sampling.max_tokens - cut))
        tokens[going, cut : cut + more.tokens.shape[1]] = more.tokens
        lengths[going], stopped[going] = cut + more.lengths, more.stopped
    return Rollout(rollout.jobs, tokens, lengths, stopped, None, sampling.temperature)


def _shortened(job: Job, prefix: np.ndarray, stream: int) -> Job:
    """The prompt with its kept tokens behind it."""
    prompt = job.prompt
    longer = Prompt(prompt.index, prompt.text, (*prompt.tokens, *prefix.tolist()), prompt.answer)
    return Job(longer, RolloutKey(job.key.seed, stream, job.key.prompt, job.key.rollout))
