"""What is matched and how it is averaged: reverse KL over all response tokens of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from trb_mlx.config import LossConfig, TargetConfig
from trb_mlx.models.pair import Pair
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.vocab import shared_logits
from trb_mlx.rollout.packing import Packed
from trb_mlx.rollout.recording import at_tokens
from trb_mlx.train.target import make_pull, make_reverse_kl, pull_arrays
from trb_mlx.types import Rollout

Batch = dict[str, mx.array]
Metrics = dict[str, mx.array]


@dataclass(frozen=True)
class Objective:
    """The loss of one micro-batch.

    Attributes:
        batch: packed rows → the arrays that `loss` takes.
        loss: batch → (loss, measures), each summed over the batch's tokens and divided by the
            whole step's token count, so that micro-batches simply add up. The measures are
            `logprob_gap`, |student log-prob of the drawn token now − when drawn|, and
            `reverse_kl` where the loss itself is another form.
    """

    batch: Callable[[Rollout, Packed, int], Batch]
    loss: Callable[[Batch], tuple[mx.array, Metrics]]


def make_objective(config: LossConfig, pair: Pair, target: TargetConfig | None = None) -> Objective:
    """The objective that a config names; its loss runs the student as it is now."""
    target = target or TargetConfig()
    student = pair.student
    pull, reverse_kl = make_pull(config, target), make_reverse_kl(config, target)

    def batch(rollout: Rollout, packed: Packed, total: int) -> Batch:
        arrays = _batch(rollout, packed, total, None if config.mode != "exact" else pair)
        return arrays | pull_arrays(target, rollout, packed)

    def loss(arrays: Batch) -> tuple[mx.array, Metrics]:
        hidden = student.model.module(arrays["ids"])
        logits = hidden.reshape(-1, hidden.shape[-1])[arrays["positions"]]
        logits = shared_logits(logits, student.merge)
        per_token = pull(logits, arrays)
        fixed = mx.stop_gradient(logits)
        now = at_tokens(log_softmax(fixed / arrays["temperature"]), arrays["tokens"])
        measures = {"logprob_gap": mx.abs(now - arrays["student_logprob"])}
        if reverse_kl is not None:
            measures["reverse_kl"] = reverse_kl(fixed, arrays)
        weights = arrays["weights"]
        return _weighted_sum(per_token, weights), {
            name: _weighted_sum(values, weights) for name, values in measures.items()
        }

    return Objective(batch, loss)


def _weighted_sum(values: mx.array, weights: mx.array) -> mx.array:
    """Σ weights·values; a padded place may hold anything, so it is selected away."""
    return mx.where(weights > 0, weights * values, 0.0).sum()


def _batch(rollout: Rollout, packed: Packed, total: int, pair: Pair | None) -> Batch:
    """The arrays of one micro-batch; `pair` is given where the whole vocabulary is matched."""
    records = rollout.records
    assert records is not None
    places = mx.arange(packed.positions.size)
    arrays = {
        "ids": packed.ids,
        "positions": packed.positions,
        "tokens": packed.flat(rollout.tokens),
        "student_logprob": packed.flat(records.student_logprob),
        "temperature": mx.full((packed.positions.size, 1), rollout.temperature, dtype=mx.float32),
        "weights": mx.where(places < packed.count, 1.0 / total, 0.0),
    }
    if pair is not None:
        arrays["teacher"] = log_softmax(packed.pick(pair.teacher.logits(packed.ids)))
        return arrays
    arrays["support"] = packed.flat(records.support)
    arrays["teacher_support"] = packed.flat(records.teacher_support)
    arrays["teacher_rest"] = packed.flat(records.teacher_rest)
    return arrays
