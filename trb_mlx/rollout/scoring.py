"""Records of finished rollouts: the teacher's, or both models' where the teacher drew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.fused_head import chunk_tokens
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.rollout.packing import Packed, pack_rollout
from trb_mlx.rollout.recording import student_records, teacher_records, to_host
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
    records = rollout.records
    assert records is not None
    for part in _parts((teacher,), rollout, sizes):
        (logits,) = part.logits
        tokens, support = part.flat(rollout.tokens), part.flat(records.support)
        rows = softmax(logits, rollout.temperature)
        found = teacher_records(rows, tokens, support, rollout.temperature)
        _keep(records, part, found, keep_hidden)


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
    for part in _parts((pair.student, pair.teacher), rollout, sizes):
        ours, theirs = part.logits
        found = _both(ours, theirs, part.flat(rollout.tokens), rollout.temperature, support)
        _keep(rollout.records, part, found, sampling.keep_hidden)
    return rollout


class _Part(NamedTuple):
    """Some tokens of a rollout: where they stand, their ids, and both kinds of outputs a model."""

    rows: np.ndarray
    places: np.ndarray
    packed: Packed
    within: slice
    hidden: list[mx.array]
    logits: list[mx.array]

    def flat(self, values: np.ndarray) -> mx.array:
        """`[n, …]` of these tokens from `[B, T, …]` of the rollout."""
        return self.packed.flat(values)[self.within]


def _parts(scorers: Sequence[Scorer], rollout: Rollout, sizes: tuple[int, int]) -> Iterator[_Part]:
    """All tokens in batched passes without a cache, logits of a few tokens at a time."""
    chunk = chunk_tokens(scorers[0].merge.size, len(scorers))
    for packed in pack_rollout(rollout, *sizes):
        read = [packed.pick(scorer.read(packed.ids)) for scorer in scorers]
        rows, places = np.nonzero(packed.mask)
        for start in range(0, packed.count, chunk):
            within = slice(start, start + chunk)
            hidden = [values[within] for values in read]
            logits = [s.logits_of(h) for s, h in zip(scorers, hidden, strict=True)]
            at = packed.rows[rows[within]], places[within]
            yield _Part(*at, packed, within, hidden, logits)


def _keep(records: Records, part: _Part, found: dict[str, mx.array], keep_hidden: bool) -> None:
    """Record what was found, and the last model's hidden states on request."""
    if keep_hidden:
        found["teacher_hidden"] = part.hidden[-1]
    mx.eval(found)
    for name, values in found.items():
        records.put(name, part.rows, part.places, to_host(values))


def _both(
    logits: mx.array,
    teacher_logits: mx.array,
    tokens: mx.array,
    temperature: float,
    support: int,
) -> dict[str, mx.array]:
    student, teacher = (softmax(x, temperature) for x in (logits, teacher_logits))
    found = student_records(student, tokens, support, temperature)
    found |= teacher_records(teacher, tokens, found["support"], temperature)
    return found | {
        "weight": mx.ones(tokens.shape),
        "kl_behavior": kl_divergence(teacher.logprobs, student.logprobs),
        "total_variation": total_variation(teacher.probs, student.probs),
    }
