"""What is kept of each drawn token: statistics of both models at one position, on the device.

The names are those of `trb_mlx.types.Records`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from trb_mlx.ops.divergence import support_logprobs
from trb_mlx.ops.numerics import entropy, log_softmax

# Hidden states may take this share of the machine's memory: models, caches and the update's
# activations need the rest, and beyond it the teacher's body is run again instead.
KEEP_SHARE = 1 / 8


def top_k(logits: mx.array, count: int) -> mx.array:
    """Ids `[..., K]` of the largest logits, in no particular order."""
    count = min(count, logits.shape[-1])
    return mx.argpartition(-logits, kth=count - 1, axis=-1)[..., :count].astype(mx.int32)


def tempered(logits: mx.array, temperature: float) -> mx.array:
    """log softmax(logits / τ), float32 `[..., V]`."""
    return log_softmax(logits if temperature == 1.0 else logits / temperature)


def at_tokens(logprobs: mx.array, tokens: mx.array) -> mx.array:
    """The entries `[...]` of `[..., V]` at the drawn ids `[...]`."""
    return mx.take_along_axis(logprobs, tokens[..., None], axis=-1).squeeze(-1)


def student_records(
    logits: mx.array, logprobs: mx.array, tokens: mx.array, count: int
) -> dict[str, mx.array]:
    """The student's part: its support at temperature 1, and tempered statistics.

    Args:
        logits: `[..., V]`.
        logprobs: `[..., V]`, tempered.
        tokens: int `[...]`, the drawn ids.
        count: K.
    """
    support = top_k(logits, count)
    inside, _ = support_logprobs(logits, support)
    return {
        "support": support,
        "student_mass": mx.exp(inside).sum(-1),
        "student_entropy": entropy(logprobs),
        "student_logprob": at_tokens(logprobs, tokens),
    }


def teacher_records(
    logits: mx.array, logprobs: mx.array, tokens: mx.array, support: mx.array
) -> dict[str, mx.array]:
    """The teacher's part: its log-probs on the student's support, at temperature 1, and the rest.

    Arguments as in `student_records`; `support` is int `[..., K]`.
    """
    inside, rest = support_logprobs(logits, support)
    own = top_k(logits, support.shape[-1])
    shared = (own[..., :, None] == support[..., None, :]).sum(axis=(-1, -2))
    likeliest = mx.argmax(mx.take_along_axis(logits, own, axis=-1), axis=-1)
    return {
        "teacher_support": inside,
        "teacher_rest": rest,
        "overlap": shared.astype(mx.int32),
        "teacher_entropy": entropy(logprobs),
        "teacher_logprob": at_tokens(logprobs, tokens),
        "teacher_top": at_tokens(own, likeliest),
    }


def to_host(values: mx.array) -> np.ndarray:
    """A host array of the same bits (bfloat16, which numpy lacks, as uint16)."""
    return np.asarray(values.view(mx.uint16) if values.dtype == mx.bfloat16 else values)


def from_host(values: mx.array) -> mx.array:
    """What `to_host` was given, from its result brought back to the device."""
    return values.view(mx.bfloat16) if values.dtype == mx.uint16 else values


@dataclass(frozen=True)
class HiddenPlan:
    """Whether the teacher's hidden states are kept from rollout to update, and why."""

    keep: bool
    reason: str


def plan_hidden(setting: str, tokens: int, width: int, itemsize: int, memory: int) -> HiddenPlan:
    """Decide whether the hidden states of one step's tokens are kept.

    Args:
        setting: `loss.keep_hidden`: `on`, `off`, or `auto` for `KEEP_SHARE` of the memory.
        tokens: the most response tokens that a step can have.
        width: D of the teacher.
        itemsize: bytes a number.
        memory: bytes of the machine.
    """
    needed, limit = tokens * width * itemsize, int(memory * KEEP_SHARE)
    keep = setting == "on" or (setting == "auto" and needed <= limit)
    size = f"at most {needed / 2**20:,.0f} MiB for {tokens:,} tokens"
    share = f"{limit / 2**20:,.0f} MiB, an eighth of the memory"
    why = {
        "on": f"({size}; loss.keep_hidden is on)",
        "off": "(loss.keep_hidden is off): its body runs again in the update",
        "auto": f"({size}, within {share})"
        if keep
        else f"({size}, above {share}): its body runs again in the update",
    }
    kept = "are kept" if keep else "are not kept"
    return HiddenPlan(keep, f"the teacher's hidden states {kept} {why[setting]}")
