"""What is matched and how it is averaged: reverse KL over all response tokens of a step."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from trb_mlx.bounds import chunk_tokens
from trb_mlx.config import LossConfig, TargetConfig
from trb_mlx.models.pair import Pair
from trb_mlx.ops.fused_head import Arrays, fused_head_loss
from trb_mlx.ops.numerics import log_softmax, logsumexp
from trb_mlx.rollout.packing import Packed
from trb_mlx.rollout.recording import from_host
from trb_mlx.training.target import is_exact, reverse_kl_measure, target_arrays, target_loss
from trb_mlx.types import Rollout


class Objective:
    """The loss of one micro-batch, of the student as it is when it is called.

    `unfused` says why logits of whole micro-batches are held at once, or is None where the head
    runs chunk by chunk.
    """

    def __init__(self, loss: LossConfig, pair: Pair, target: TargetConfig | None = None) -> None:
        """The objective that a config names; without a `target` the teacher is matched everywhere.

        The student's adapters must be in place: whether its head is trained is decided here.
        """
        self.unfused = why_unfused(pair, is_exact(loss))
        self._loss = loss
        self._target = target or TargetConfig()
        self._teacher = pair.teacher
        # Without a split a scorer's hidden states are its raw logits.
        self._student = pair.student if self.unfused is None else replace(pair.student, split=None)

    def in_loss(self, rollout: Rollout) -> Rollout:
        """The part of a rollout whose tokens are in the loss; no model need read on behind it."""
        position = self._loss.position
        return rollout if position is None else rollout.first(position.tokens)

    def batch(self, rollout: Rollout, packed: Packed, total: int) -> Arrays:
        """The arrays that `loss` takes of packed rows, in a step of `total` response tokens.

        `ids` `[B, L]` are the rows and `positions` `[N]` their places that predict a token; the
        others, `[N, …]`, give each token's id, its weight in the average and what the teacher says.
        """
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
        arrays |= target_arrays(self._target, rollout, packed)
        if not is_exact(self._loss):
            names = ("support", "teacher_support", "teacher_rest")
            return arrays | {name: packed.flat(getattr(records, name)) for name in names}
        if records.teacher_hidden is not None:
            return arrays | {"teacher_hidden": from_host(packed.flat(records.teacher_hidden))}
        own = packed.read_by(self._teacher.is_teacher)
        return arrays | {"teacher_hidden": own.pick(self._teacher.hidden(own.ids))}

    def readers(self, rollout: Rollout) -> list[bool]:
        """For each model whose body runs in the update, whether it reads the teacher's prompts."""
        records = rollout.records
        runs_teacher = is_exact(self._loss) and (records is None or records.teacher_hidden is None)
        return [self._student.is_teacher, *([self._teacher.is_teacher] if runs_teacher else [])]

    def loss(self, arrays: Arrays) -> tuple[mx.array, Arrays]:
        """(loss, measures) of a batch, each summed over its tokens and divided by the step's.

        Micro-batches so add up. The measures are `logprob_gap`, |student log-prob of the drawn
        token now − when drawn|, and `reverse_kl` where the loss itself is another form.
        """
        student, arrays = self._student, dict(arrays)
        ids, positions, weights = (arrays.pop(name) for name in ("ids", "positions", "weights"))
        hidden = student.hidden(ids)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        if self.unfused is None:
            chunk = chunk_tokens(student.merge.size, models=2 if is_exact(self._loss) else 1)
            losses, measures = fused_head_loss(
                hidden, arrays, student.logits_of, self._token_loss, chunk
            )
        else:
            losses, measures = self._token_loss(student.logits_of(hidden), arrays)
        return _weighted_sum(losses, weights), {
            name: _weighted_sum(values, weights) for name, values in measures.items()
        }

    def _token_loss(self, logits: mx.array, arrays: Arrays) -> tuple[mx.array, Arrays]:
        """Loss and measures `[n]` of some tokens, from the student's logits `[n, V]`."""
        if is_exact(self._loss):
            teacher_logits = self._teacher.logits_of(arrays["teacher_hidden"])
            arrays = arrays | {"teacher_logprobs": log_softmax(teacher_logits)}
        fixed = mx.stop_gradient(logits)
        logprobs = token_logprobs(fixed, arrays["tokens"], arrays.get("temperature"))
        measures = {"logprob_gap": mx.abs(logprobs - arrays["student_logprob"])}
        reverse_kl = reverse_kl_measure(self._loss, self._target, fixed, arrays)
        if reverse_kl is not None:
            measures["reverse_kl"] = reverse_kl
        return target_loss(self._loss, self._target, logits, arrays), measures


def why_unfused(pair: Pair, exact: bool) -> str | None:
    """Why the heads cannot be run chunk by chunk, or None where they can.

    The teacher's is needed where the whole vocabulary is matched.
    """
    student, teacher = pair.student, pair.teacher
    reason = "has no head that can be run apart from its body"
    if student.split is None:
        return f"student {student.model.name} {reason}"
    if exact and teacher.split is None:
        return f"teacher {teacher.model.name} {reason}"
    if not student.split.is_frozen():
        return f"the head of student {student.model.name} is trained too"
    return None


def token_logprobs(
    logits: mx.array, tokens: mx.array, temperature: mx.array | None = None
) -> mx.array:
    """Log-probs `[n]` of ids `[n]` under logits `[n, V]` at temperatures `[n]` (None: 1)."""
    if temperature is not None:
        logits = logits / temperature[:, None]
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1).squeeze(-1)
    return chosen - logsumexp(logits)


def _weighted_sum(values: mx.array, weights: mx.array) -> mx.array:
    """Σ weights·values; a padded place may hold anything, so it is selected away."""
    return mx.where(weights > 0, weights * values, 0.0).sum()
