"""Rollouts of the teacher itself, with the records of a behavior policy that is the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair
from trb_mlx.ops.fused_head import chunk_tokens
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.recording import student_records, teacher_records, tempered, to_host
from trb_mlx.rollout.sampler import sample
from trb_mlx.types import Job, Records, Rollout, Sampling


def sample_teacher(
    pair: Pair, jobs: Sequence[Job], sampling: Sampling, sizes: tuple[int, int]
) -> Rollout:
    """Draw from the teacher alone, then score with both models.

    Args:
        pair: both models; the stop event is the student's EOS, as in every rollout.
        jobs: what is to be drawn.
        sampling: as for other rollouts.
        sizes: the most rows and the most positions of a scoring pass.
    """
    rollout = sample(pair.teacher, jobs, replace(sampling, support=0, keep_hidden=False))
    support = min(sampling.support, pair.student.merge.size)
    rollout.records = Records.empty(len(jobs), rollout.tokens.shape[1], support)
    _score(pair, rollout, rollout.records, sizes, sampling.keep_hidden)
    return rollout


def _score(
    pair: Pair, rollout: Rollout, records: Records, sizes: tuple[int, int], keep_hidden: bool
) -> None:
    """All records, in batched passes of both models without a cache."""
    chunk = chunk_tokens(pair.student.merge.size, models=2)
    for packed in pack_rollout(rollout, *sizes):
        hidden = [packed.pick(scorer.read(packed.ids)) for scorer in (pair.student, pair.teacher)]
        tokens = packed.flat(rollout.tokens)
        rows, places = np.nonzero(packed.mask)
        for start in range(0, packed.count, chunk):
            part = slice(start, start + chunk)
            logits = pair.student.logits_of(hidden[0][part])
            teacher_logits = pair.teacher.logits_of(hidden[1][part])
            found = _both(logits, teacher_logits, tokens[part], rollout.temperature, records)
            if keep_hidden:
                found["teacher_hidden"] = hidden[1][part]
            mx.eval(found)
            for name, values in found.items():
                records.put(name, packed.rows[rows[part]], places[part], to_host(values))


def _both(
    logits: mx.array,
    teacher_logits: mx.array,
    tokens: mx.array,
    temperature: float,
    records: Records,
) -> dict[str, mx.array]:
    ours, theirs = (tempered(x, temperature) for x in (logits, teacher_logits))
    found = student_records(logits, ours, tokens, records.support.shape[-1])
    found |= teacher_records(teacher_logits, theirs, tokens, found["support"])
    return found | {
        "weight": mx.ones(tokens.shape),
        "kl_behavior": kl_divergence(theirs, ours),
        "total_variation": total_variation(theirs, ours),
    }
