"""One vocabulary for two models: padded rows cut off, and one shared stop event."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from trb_mlx.ops.numerics import logsumexp


@dataclass(frozen=True)
class StopMerge:
    """How one model's logits map to the shared vocabulary.

    Attributes:
        size: V, the ids both models know; rows beyond are padding.
        stop_id: the id that stands for the stop event (the student's EOS).
        own: the model's own EOS ids, whose probability moves onto `stop_id`.
        masked: the other members of both models' EOS sets, which get probability 0.
    """

    size: int
    stop_id: int
    own: tuple[int, ...]
    masked: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the model stops with `stop_id` alone, so that nothing moves."""
        return self.own == (self.stop_id,) and not self.masked


def merge_stops(size: int, stop_id: int, own: Iterable[int], other: Iterable[int]) -> StopMerge:
    """The map of a model whose EOS ids are `own`, paired with one whose EOS ids are `other`."""
    known = tuple(sorted(token for token in set(own) if token < size))
    union = set(known) | {token for token in other if token < size}
    return StopMerge(size, stop_id, known, tuple(sorted(union - {stop_id})))


def shared_logits(logits: mx.array, merge: StopMerge) -> mx.array:
    """Float32 logits over the shared vocabulary.

    EOS canonicalisation of arXiv 2605.31159: the stop event's logit is the logsumexp over the
    model's own EOS ids; every other id of either model's EOS set is masked.

    Args:
        logits: `[..., W]` of the model, W ≥ V (padded rows are dropped).
        merge: the model's map.

    Returns:
        `[..., V]`, unnormalised, −inf at masked ids.
    """
    logits = logits[..., : merge.size].astype(mx.float32)
    if merge.is_plain:
        return logits
    stop = logsumexp(logits[..., mx.array(merge.own)], keepdims=True)
    ids = np.arange(merge.size)
    logits = mx.where(mx.array(np.isin(ids, merge.masked)), -mx.inf, logits)
    return mx.where(mx.array(ids == merge.stop_id), stop, logits)
