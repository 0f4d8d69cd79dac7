"""Records of finished rollouts: the teacher's, or both models' where the teacher drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.rollout.behavior import Blend
from trb_mlx.rollout.logits import LogitChunk, logit_chunks
from trb_mlx.rollout.recording import pair_records, teacher_records, to_host
from trb_mlx.rollout.sampler import sample
from trb_mlx.types import Job, Records, Rollout, Sampling


def score(
    teacher: Scorer, rollout: Rollout, sizes: tuple[int, int], keep_hidden: bool = False
) -> None:
    """Fill in the teacher's records of finished rollouts.

    Args:
        teacher: the model.
        rollout: with the student's records.
        sizes: the most rows and the most positions of a pass.
        keep_hidden: record the last hidden states too.
    """
    records, temperature = rollout.records, rollout.temperature
    assert records is not None
    for chunk in logit_chunks([teacher], rollout, *sizes):
        tokens, support = chunk.take(rollout.tokens), chunk.take(records.support)
        distribution = softmax(chunk.logits[0], temperature)
        values = teacher_records(distribution, tokens, support, temperature)
        _record(records, chunk, values, keep_hidden)


def sample_teacher(pair: Pair, jobs: Sequence[Job], sampling: Sampling) -> Rollout:
    """Draw from the teacher alone, without records; the stop event is the student's EOS."""
    return sample(pair.teacher, jobs, replace(sampling, support=0, keep_hidden=False))


def score_pair(pair: Pair, rollout: Rollout, sampling: Sampling, sizes: tuple[int, int]) -> None:
    """Fill in both models' records of rollouts that the teacher drew.

    Args:
        pair: both models.
        rollout: from `sample_teacher`.
        sampling: as it was drawn with; what is kept.
        sizes: the most rows and the most positions of a pass.
    """
    support, temperature = min(sampling.support, pair.student.merge.size), rollout.temperature
    rollout.records = Records.empty(len(rollout.jobs), rollout.tokens.shape[1], support)
    for chunk in logit_chunks([pair.student, pair.teacher], rollout, *sizes):
        student, teacher = (softmax(logits, temperature) for logits in chunk.logits)
        tokens = chunk.take(rollout.tokens)
        blend = Blend(
            teacher.probs,
            mx.ones(tokens.shape),
            kl_divergence(teacher.logprobs, student.logprobs),
            total_variation(teacher.probs, student.probs),
        )
        values = pair_records(student, teacher, blend, tokens, support, temperature)
        _record(rollout.records, chunk, values, sampling.keep_hidden)


def _record(
    records: Records, chunk: LogitChunk, values: dict[str, mx.array], keep_hidden: bool
) -> None:
    """Keep the values by name, and the last model's hidden states on request."""
    if keep_hidden:
        values["teacher_hidden"] = chunk.hidden[-1]
    mx.eval(values)
    for name, array in values.items():
        records.put(name, chunk.rows, chunk.positions, to_host(array))
