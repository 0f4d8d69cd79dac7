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
from trb_mlx.rollout.generator import Block, BlockGenerator, ModelGenerator
from trb_mlx.rollout.speculative import SpeculativeGenerator
from trb_mlx.types import Job, Rollout, Sampling


def sample(scorer: Scorer, jobs: Sequence[Job], sampling: Sampling) -> Rollout:
    """Draw from one model alone; at temperature 0 its likeliest tokens, unrecorded."""
    return _generate(ModelGenerator(scorer, sampling), jobs, sampling, scorer, Fixed(1))


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
    """Rounds of decoding until every job is done; `scorer` has the stop event.

    Where the generator can, the next block is submitted before the host looks at the last one, so
    that the device never waits for it; what a row drew beyond its stop, one block, is dropped.
    """
    support = min(sampling.support, scorer.merge.size)
    most = min(sampling.batch_size, most_rows(scorer.merge.size))
    stop_id, readers = scorer.merge.stop_id, generator.readers
    batch = RolloutBatch(jobs, sampling.max_tokens, stop_id, support, readers)
    block: Block | None = None  # submitted, of all rows
    with wired_memory():
        while True:
            if block is None:
                if prompts := batch.admit(most):
                    for decoder, own in zip(generator.decoders, prompts, strict=True):
                        decoder.prefill(own)
                if not len(batch):
                    return batch.result(sampling.temperature)
            rows, left, begun = len(batch), batch.left, time.perf_counter()
            if block is None:
                chosen = draft_length.choose(left, refilled=batch.has_waiting)
                length = min(chosen, max(left), generator.longest_block(rows))
                block = generator.generate(mx.array(batch.last), *batch.uniforms(length))
            ahead = None
            if generator.runs_ahead and max(left) > length and not batch.has_room(most):
                uniforms = batch.uniforms(length, skipped=length)
                ahead = generator.generate(block.tokens[:, -1][None], *uniforms)
            tokens = np.asarray(block.tokens)  # the host has to see which rows stopped
            emitted = np.minimum(block.accepted + 1, length)
            appended, unfinished = batch.append(tokens, emitted)
            if support:
                batch.record(appended, block.records.of_first(appended))
            if len(unfinished) < rows:
                for decoder in generator.decoders:
                    decoder.filter(unfinished)
                batch.filter(unfinished)
                if ahead is not None:
                    batch.drop(rows - len(unfinished), length)
                    ahead = ahead.filtered(unfinished) if unfinished else None
            for decoder in generator.decoders:
                decoder.trim(length - appended[unfinished])
            seconds = time.perf_counter() - begun
            rejected = int((emitted - block.accepted).sum())
            draft_length.observe(rows, length, int(emitted.sum()), rejected, seconds)
            block = ahead
