"""Draws rollouts from one model or from a behavior policy, as a batch of rows that come and go."""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.bounds import most_rows
from trb_mlx.models.memory import wired_memory
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.rollout.batch import RolloutBatch
from trb_mlx.rollout.behavior import Behavior
from trb_mlx.rollout.draft_length import DraftLength, Fixed
from trb_mlx.rollout.generator import BlockGenerator, ModelGenerator
from trb_mlx.rollout.speculative import SpeculativeGenerator
from trb_mlx.types import Job, Rollout, Sampling

# One model alone draws this share of `max_tokens` before the host checks which rows stopped:
# a check leaves the device idle, and tokens drawn beyond a stop are lost.
CHECK_SHARE, MOST_UNCHECKED = 1 / 24, 16


def sample(scorer: Scorer, jobs: Sequence[Job], sampling: Sampling) -> Rollout:
    """Draw from one model alone; at temperature 0 its likeliest tokens, unrecorded."""
    length = Fixed(check_interval(sampling.max_tokens))
    return _generate(ModelGenerator(scorer, sampling), jobs, sampling, scorer, length)


def check_interval(max_tokens: int) -> int:
    """Tokens between two checks for rows that stopped, of at most so many tokens a row."""
    return min(max(1, round(max_tokens * CHECK_SHARE)), MOST_UNCHECKED)


def sample_blended(
    pair: Pair,
    jobs: Sequence[Job],
    sampling: Sampling,
    behavior: Behavior,
    budget: float,
    draft_length: DraftLength,
) -> Rollout:
    """Draw from the behavior policy: the student drafts blocks, the teacher verifies each at once.

    Token by token where `draft_length` says 1, or where a model's caches cannot be trimmed.
    """
    generator = SpeculativeGenerator(pair, behavior, budget, sampling)
    return _generate(generator, jobs, sampling, pair.student, draft_length)


def _generate(
    generator: BlockGenerator,
    jobs: Sequence[Job],
    sampling: Sampling,
    scorer: Scorer,
    draft_length: DraftLength,
) -> Rollout:
    """Rounds of decoding until every job is done; `scorer` has the stop event."""
    support = min(sampling.support, scorer.merge.size)
    most = min(sampling.batch_size, most_rows(scorer.merge.size))
    stop_id, readers = scorer.merge.stop_id, generator.readers
    batch = RolloutBatch(jobs, sampling.max_tokens, stop_id, support, readers)
    with wired_memory():
        while True:
            if prompts := batch.admit(most):
                for decoder, own in zip(generator.decoders, prompts, strict=True):
                    decoder.prefill(own)
            if not len(batch):
                return batch.result(sampling.temperature)
            rows, begun = len(batch), time.perf_counter()
            length = min(
                draft_length.choose(rows), generator.longest_block(rows), batch.most_left()
            )
            block = generator.generate(mx.array(batch.last), *batch.uniforms(length))
            mx.eval(block.tokens, block.accepted)  # the host has to see which rows stopped
            accepted = np.asarray(block.accepted)
            emitted = np.minimum(accepted + 1, length)
            appended, unfinished = batch.append(np.asarray(block.tokens), emitted)
            if support:
                batch.record(appended, block.records.of_first(appended))
            for decoder in generator.decoders:
                decoder.filter(unfinished)
                decoder.trim(length - appended[unfinished])
            batch.filter(unfinished)
            seconds = time.perf_counter() - begun
            rejected = int((emitted - accepted).sum())
            draft_length.observe(rows, length, int(emitted.sum()), rejected, seconds)
