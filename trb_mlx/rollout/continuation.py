"""Rollouts cut at some length and continued by one model alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trb_mlx.models.pair import Scorer
from trb_mlx.rollout.sampler import sample
from trb_mlx.types import Job, Rollout, Sampling


def continue_rollouts(
    scorer: Scorer, rollout: Rollout, cut: int, sampling: Sampling, stream: int
) -> Rollout:
    """The first `cut` tokens of each rollout, then what `scorer` makes of them.

    Args:
        scorer: the model that continues them, alone.
        rollout: finished rollouts; one that stopped within the cut stays as it is.
        cut: tokens kept, 1 ≤ cut < `sampling.max_tokens`.
        sampling: of the whole response: `max_tokens` counts the tokens kept.
        stream: keys the draws apart from those that made the rollouts.

    Returns:
        The same jobs with the new responses, without records.
    """
    unfinished = np.flatnonzero((rollout.lengths > cut) | ~rollout.stopped)
    tokens = np.zeros((len(rollout.jobs), sampling.max_tokens), np.int32)
    kept = min(cut, rollout.tokens.shape[1])
    tokens[:, :kept] = rollout.tokens[:, :kept]
    lengths, stopped = rollout.lengths.copy(), rollout.stopped.copy()
    if unfinished.size:
        jobs = [_continued(rollout.jobs[i], rollout.tokens[i, :cut], stream) for i in unfinished]
        more = sample(scorer, jobs, replace(sampling, max_tokens=sampling.max_tokens - cut))
        tokens[unfinished, cut : cut + more.tokens.shape[1]] = more.tokens
        lengths[unfinished], stopped[unfinished] = cut + more.lengths, more.stopped
    return Rollout(rollout.jobs, tokens, lengths, stopped, None, sampling.temperature)


def _continued(job: Job, prefix: np.ndarray, stream: int) -> Job:
    """The job with the kept tokens behind its prompt."""
    prompt, key = job.prompt, job.key
    kept, own = tuple(prefix.tolist()), prompt.teacher_tokens
    longer = replace(
        prompt,
        tokens=prompt.tokens + kept,
        teacher_tokens=None if own is None else own + kept,
    )
    return Job(longer, replace(key, step=stream))
