"""Exact draws from one policy with drafts of another."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from trb_mlx.ops.numerics import sum_last
from trb_mlx.ops.sampling import draw


def accept_drafts(
    tokens: mx.array, draft_probs: mx.array, behavior_probs: mx.array, uniforms: mx.array
) -> tuple[np.ndarray, np.ndarray]:
    """Which drafted tokens stand, and what is emitted.

    A drafted token z is kept with probability min(1, μ(z)/d(z)), else replaced by a draw from
    the positive part of μ − d. What is emitted has exactly the law of μ, and a draft is rejected
    with probability TV(d, μ) (arXiv 2609.36601). Where rounding leaves μ − d no positive part,
    the replacement is drawn from μ itself, which is then d but for rounding.

    Args:
        tokens: int `[B]`, drawn from the draft policy.
        draft_probs: `[B, V]`, d.
        behavior_probs: `[B, V]`, μ.
        uniforms: in [0, 1), of the test and of the replacement, `[B, 2]`. With uniforms of its
            own, what is emitted at a position does not depend on where a block began.

    Returns:
        On the host, for the replacement is drawn for rejected rows alone: bool `[B]`, whether
        the draft stands; int32 `[B]`, the token emitted.
    """
    draft, behavior = (
        mx.take_along_axis(probs, tokens[:, None], axis=-1).squeeze(-1)
        for probs in (draft_probs, behavior_probs)
    )
    # u·d < μ never holds where μ(z) = 0.
    kept = np.asarray(uniforms[:, 0] * draft < behavior)
    emitted = np.array(tokens, dtype=np.int32)
    if not kept.all():
        rejected = mx.array(np.flatnonzero(~kept).astype(np.int32))
        behavior = behavior_probs[rejected]
        residual = mx.maximum(behavior - draft_probs[rejected], 0.0)
        residual = residual + behavior * (sum_last(residual, keepdims=True) == 0.0)
        last = uniforms[rejected, 1:]
        replacement = draw(residual, mx.concatenate([last, mx.zeros_like(last)], axis=-1))
        emitted[~kept] = np.asarray(replacement)
    return kept, emitted
