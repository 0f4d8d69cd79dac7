"""What is matched and how it is averaged: reverse KL over all response tokens of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from trb_mlx.config import LossConfig, TargetConfig
from trb_mlx.models.pair import Pair
from trb_mlx.ops.fused_head import Arrays, TokenLoss, chunk_tokens, fused_head_loss
from trb_mlx.ops.numerics import log_softmax, logsumexp
from trb_mlx.ops.vocab import shared_logits
from trb_mlx.rollout.packing import Packed
from trb_mlx.rollout.recording import from_host
from trb_mlx.training.target import is_whole, make_pull, make_reverse_kl, target_arrays
from trb_mlx.types import Rollout


@dataclass(frozen=True)
class Objective:
    """The loss of one micro-batch.

    Attributes:
        batch: packed rows → the arrays that `loss` takes.
        loss: batch → (loss, measures), each summed over the batch's tokens and divided by the
            whole step's token count, so that micro-batches simply add up. The measures are
            `logprob_gap`, |student log-prob of the drawn token now − when drawn|, and
            `reverse_kl` where the loss itself is another form.
        plain: why logits of whole micro-batches are held, or None where they never are.
    """

    batch: Callable[[Rollout, Packed, int], Arrays]
    loss: Callable[[Arrays], tuple[mx.array, Arrays]]
    plain: str | None


def make_objective(loss: LossConfig, pair: Pair, target: TargetConfig | None = None) -> Objective:
    """The objective that a config names; its loss runs the student as it is now.

    The student's adapters must be in place: whether its head is trained is decided here.
    Without a `target` the student is pulled to the teacher at every token.
    """
    student, whole, target = pair.student, is_whole(loss), target or TargetConfig()
    plain = why_plain(pair, whole)
    token_loss = _token_loss(loss, target, pair, plain is None)
    chunk = chunk_tokens(student.merge.size, models=2 if whole else 1)

    def batch(rollout: Rollout, packed: Packed, total: int) -> Arrays:
        arrays = _common(rollout, packed, total) | target_arrays(target, rollout, packed)
        return arrays | (
            _whole(pair, rollout, packed, plain is None) if whole else _support(rollout, packed)
        )

    def batch_loss(arrays: Arrays) -> tuple[mx.array, Arrays]:
        weights, known = arrays["weights"], _per_token(arrays)
        if plain is None:
            hidden = _pick(student.hidden(arrays["ids"]), arrays["positions"])
            values, measures = fused_head_loss(hidden, known, student.logits_of, token_loss, chunk)
        else:
            logits = _pick(student.model.module(arrays["ids"]), arrays["positions"])
            values, measures = token_loss(shared_logits(logits, student.merge), known)
        return _weighted_sum(values, weights), {
            name: _weighted_sum(value, weights) for name, value in measures.items()
        }

    return Objective(batch, batch_loss, plain)


def why_plain(pair: Pair, whole: bool) -> str | None:
    """Why the heads cannot be run chunk by chunk, or None where they can.

    The teacher's is needed where the whole vocabulary is matched.
    """
    student, teacher = pair.student, pair.teacher
    apart = "has no head that can be run apart from its body"
    if student.split is None:
        return f"student {student.model.name} {apart}"
    if whole and teacher.split is None:
        return f"teacher {teacher.model.name} {apart}"
    if not student.split.is_frozen():
        return f"the head of student {student.model.name} is trained too"
    return None


def _token_loss(loss: LossConfig, target: TargetConfig, pair: Pair, fused: bool) -> TokenLoss:
    """The loss and measures of some tokens, from the student's logits `[n, V]`."""
    pull, reverse_kl = make_pull(loss, target), make_reverse_kl(loss, target)

    def token_loss(logits: mx.array, arrays: Arrays) -> tuple[mx.array, Arrays]:
        if is_whole(loss):
            given = arrays["teacher"]
            teacher = log_softmax(pair.teacher.logits_of(given) if fused else given)
            arrays = arrays | {"teacher": teacher}
        fixed = mx.stop_gradient(logits)
        now = token_logprobs(fixed, arrays["tokens"], arrays.get("temperature"))
        measures = {"logprob_gap": mx.abs(now - arrays["student_logprob"])}
        if reverse_kl is not None:
            measures["reverse_kl"] = reverse_kl(fixed, arrays)
        return pull(logits, arrays), measures

    return token_loss


def token_logprobs(
    logits: mx.array, tokens: mx.array, temperature: mx.array | None = None
) -> mx.array:
    """Log-probs `[n]` of ids `[n]` under logits `[n, V]` at temperatures `[n]` (None: 1)."""
    if temperature is not None:
        logits = logits / temperature[:, None]
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1).squeeze(-1)
    return chosen - logsumexp(logits)


def _pick(values: mx.array, positions: mx.array) -> mx.array:
    return values.reshape(-1, values.shape[-1])[positions]


def _weighted_sum(values: mx.array, weights: mx.array) -> mx.array:
    """Σ weights·values; a padded place may hold anything, so it is selected away."""
    return mx.where(weights > 0, weights * values, 0.0).sum()


def _per_token(arrays: Arrays) -> Arrays:
    """What is known of each token: all but the rows and the averaging."""
    return {
        name: values
        for name, values in arrays.items()
        if name not in ("ids", "positions", "weights")
    }


def _common(rollout: Rollout, packed: Packed, total: int) -> Arrays:
    records = rollout.records
    assert records is not None
    places = mx.arange(packed.positions.size)
    arrays = {
        "ids": packed.ids,
        "positions": packed.positions,
        "tokens": packed.flat(rollout.tokens),
        "student_logprob": packed.flat(records.student_logprob),
        "weights": mx.where(places < packed.count, 1.0 / total, 0.0),
    }
    if rollout.temperature != 1.0:  # an array, since it may change with the step
        arrays["temperature"] = mx.full(places.shape, rollout.temperature, dtype=mx.float32)
    return arrays


def _support(rollout: Rollout, packed: Packed) -> Arrays:
    """The teacher on the student's support, as the rollout recorded it."""
    names = ("support", "teacher_support", "teacher_rest")
    return {name: packed.flat(getattr(rollout.records, name)) for name in names}


def _whole(pair: Pair, rollout: Rollout, packed: Packed, fused: bool) -> Arrays:
    """The teacher over the whole vocabulary: hidden states `[N, D]`, or logits `[N, V]`.

    Hidden states that the rollout did not keep are computed again, for this micro-batch alone.
    """
    records, teacher = rollout.records, pair.teacher
    if teacher.split is None:
        return {"teacher": packed.pick(teacher.logits(packed.ids))}
    if records is not None and records.teacher_hidden is not None:
        hidden = from_host(packed.flat(records.teacher_hidden))
    else:
        hidden = packed.pick(teacher.hidden(packed.ids))
    return {"teacher": hidden if fused else teacher.logits_of(hidden)}
