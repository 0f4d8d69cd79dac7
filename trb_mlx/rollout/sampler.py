"""The token-by-token sampler: serves every behavior policy, with any cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Scorer
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.ops.sampling import inverse_cdf, nucleus, row_uniforms
from trb_mlx.rollout.behavior import Behavior
from trb_mlx.rollout.kv_cache import CachedModel, second_stream
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.recording import student_records, teacher_records, tempered
from trb_mlx.types import Job, Records, Rollout


@dataclass(frozen=True)
class Sampling:
    """How rollouts are drawn: length limit, rows at once, temperature τ, K recorded (0: none).

    `top_p` cuts the tail off one model's draws, in evaluations alone: training draws from the
    whole distribution, and what is recorded is of the whole distribution.
    """

    max_tokens: int
    batch_size: int = 64
    temperature: float = 1.0
    support: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class _Drawn:
    tokens: mx.array  # int [B]
    records: dict[str, mx.array]


Draw = Callable[[mx.array, mx.array], _Drawn]  # (tokens [B], uniforms [B, 2]) → the next tokens


def sample(scorer: Scorer, jobs: Sequence[Job], sampling: Sampling) -> Rollout:
    """Draw from one model alone; at temperature 0 its likeliest tokens, unrecorded."""

    def begin(prompts: list[tuple[int, ...]]) -> tuple[Draw, list[CachedModel]]:
        model = CachedModel(scorer, prompts)

        def draw(tokens: mx.array, uniforms: mx.array) -> _Drawn:
            logits = model.step(tokens)
            if sampling.temperature == 0.0:
                return _Drawn(mx.argmax(logits, axis=-1).astype(mx.int32), {})
            logprobs = tempered(logits, sampling.temperature)
            drawn = inverse_cdf(nucleus(logprobs, sampling.top_p), uniforms)
            if not sampling.support:
                return _Drawn(drawn, {})
            return _Drawn(drawn, student_records(logits, logprobs, drawn, sampling.support))

        return draw, [model]

    return _sample(begin, jobs, sampling, scorer.merge.stop_id, scorer.merge.size)


def sample_blended(
    student: Scorer,
    teacher: Scorer,
    jobs: Sequence[Job],
    sampling: Sampling,
    behavior: Behavior,
    budget: float,
) -> Rollout:
    """Draw from the behavior policy, asking both models at every token.

    Both models' log-probs are tempered before the blend is solved, drawn from and recorded.
    """
    limit = mx.array(budget, dtype=mx.float32)

    def begin(prompts: list[tuple[int, ...]]) -> tuple[Draw, list[CachedModel]]:
        ours, theirs = CachedModel(student, prompts), CachedModel(teacher, prompts)

        def draw(tokens: mx.array, uniforms: mx.array) -> _Drawn:
            student_logits = ours.step(tokens)
            with mx.stream(second_stream()):
                teacher_logits = theirs.step(tokens)
            student_logprobs = tempered(student_logits, sampling.temperature)
            teacher_logprobs = tempered(teacher_logits, sampling.temperature)
            blend = behavior.blend(student_logprobs, teacher_logprobs, limit)
            drawn = inverse_cdf(blend.logprobs, uniforms)
            records = student_records(student_logits, student_logprobs, drawn, sampling.support)
            records |= teacher_records(teacher_logits, teacher_logprobs, drawn, records["support"])
            records["weight"] = blend.weight
            records["kl_behavior"] = kl_divergence(blend.logprobs, student_logprobs)
            records["total_variation"] = total_variation(blend.logprobs, student_logprobs)
            return _Drawn(drawn, records)

        return draw, [ours, theirs]

    return _sample(begin, jobs, sampling, student.merge.stop_id, student.merge.size)


def score(teacher: Scorer, rollout: Rollout, rows_at_once: int) -> None:
    """Fill in the teacher's records of finished rollouts, in batched passes without a cache."""
    records = rollout.records
    assert records is not None
    for packed in pack_rollout(rollout, rows_at_once):
        logits = packed.pick(teacher.logits(packed.ids))
        tokens, support = packed.flat(rollout.tokens), packed.flat(records.support)
        found = teacher_records(logits, tempered(logits, rollout.temperature), tokens, support)
        mx.eval(found)
        for name, values in found.items():
            kept = getattr(records, name)
            block = kept[packed.rows]
            block[packed.mask] = np.asarray(values)
            kept[packed.rows] = block


def _sample(
    begin: Callable[[list[tuple[int, ...]]], tuple[Draw, list[CachedModel]]],
    jobs: Sequence[Job],
    sampling: Sampling,
    stop_id: int,
    vocab: int,
) -> Rollout:
    """Draw every job, `batch_size` rows at a time, and gather the results in the jobs' order."""
    length = sampling.max_tokens
    tokens = np.zeros((len(jobs), length), np.int32)
    lengths = np.zeros(len(jobs), np.int32)
    stopped = np.zeros(len(jobs), bool)
    support = min(sampling.support, vocab)
    records = Records.empty(len(jobs), length, support) if support else None
    for start in range(0, len(jobs), sampling.batch_size):
        batch = list(range(start, min(start + sampling.batch_size, len(jobs))))
        draw, models = begin([jobs[row].prompt.tokens for row in batch])
        for position, rows, drawn in _decode(draw, models, jobs, batch, length, stop_id):
            chosen = np.asarray(drawn.tokens)
            tokens[rows, position] = chosen
            lengths[rows] = position + 1
            stopped[rows] = chosen == stop_id
            if records is not None:
                for name, values in drawn.records.items():
                    getattr(records, name)[rows, position] = np.asarray(values)
    width = max(int(lengths.max(initial=1)), 1)
    if records is not None:
        records = Records(**{name: value[:, :width] for name, value in vars(records).items()})
    return Rollout(list(jobs), tokens[:, :width], lengths, stopped, records, sampling.temperature)


def _decode(
    draw: Draw,
    models: list[CachedModel],
    jobs: Sequence[Job],
    rows: list[int],
    length: int,
    stop_id: int,
) -> Iterator[tuple[int, list[int], _Drawn]]:
    """Yield (position, rows still going, what they drew); a row leaves after its stop event."""
    tokens = mx.array([jobs[row].prompt.tokens[-1] for row in rows])
    uniforms = np.stack([row_uniforms(*_key(jobs[row]), length) for row in rows])
    for position in range(length):
        drawn = draw(tokens, mx.array(uniforms[:, position]))
        mx.eval(drawn.tokens, drawn.records)
        yield position, rows, drawn
        alive = np.flatnonzero(np.asarray(drawn.tokens) != stop_id)
        if alive.size == 0:
            return
        tokens = drawn.tokens
        if alive.size < len(rows):
            for model in models:
                model.keep(alive.tolist())
            rows = [rows[index] for index in alive]
            tokens, uniforms = tokens[mx.array(alive)], uniforms[alive]


def _key(job: Job) -> tuple[int, int, int, int]:
    return job.key.seed, job.key.step, job.key.prompt, job.key.rollout
