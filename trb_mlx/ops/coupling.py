"""Exact draws from one policy with drafts of another."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from trb_mlx.ops.distribution import Distribution
from trb_mlx.ops.numerics import sum_last
from trb_mlx.ops.sampling import draw


def accept_drafts(
    tokens: mx.array, draft: Distribution, behavior_probs: mx.array, uniforms: mx.array
) -> tuple[np.ndarray, np.ndarray]:
    """Which drafted tokens stand, and what is emitted.

    A drafted token z is kept with probability min(1, μ(z)/d(z)), else replaced by a draw from
    the positive part of μ − d. What is emitted has exactly the law of μ, and a draft is rejected
    with probability TV(d, μ) (arXiv 2609.36601). Where rounding leaves μ − d no positive part,
    the replacement is drawn from μ itself, which is then d but for rounding.

    Args:
        tokens: int `[B]`, drawn from the draft policy.
        draft: `[B, V]`, d.
        behavior_probs: `[B, V]`, μ.
        uniforms: in [0, 1), of the test and of the replacement, `[B, 2]`. With uniforms of its
            own, what is emitted at a position does not depend on where a block began.

    Returns:
        On the host, for the replacement is drawn for rejected rows alone: bool `[B]`, whether
        the draft stands; int32 `[B]`, the token emitted.
    """
    _, roots, total = draft
    kept = np.asarray(stands(tokens, roots, total, behavior_probs, uniforms[:, :1]))
    emitted = np.array(tokens, dtype=np.int32)
    if not kept.all():
        rejected = mx.array(np.flatnonzero(~kept).astype(np.int32))
        rows = (values[rejected] for values in (roots, total, behavior_probs, uniforms[:, 1:]))
        emitted[~kept] = np.asarray(replacement(*rows))
    return kept, emitted


@mx.compile
def stands(
    tokens: mx.array, roots: mx.array, total: mx.array, behavior_probs: mx.array, uniforms: mx.array
) -> mx.array:
    """Whether each draft is kept, bool `[B]`: the test of `accept_drafts`, uniforms `[B, 1]`."""
    root, behavior = (
        mx.take_along_axis(values, tokens[:, None], axis=-1) for values in (roots, behavior_probs)
    )
    # u·d < μ never holds where μ(z) = 0.
    return (uniforms * (root * root / total) < behavior).squeeze(-1)


@mx.compile
def replacement(
    roots: mx.array, total: mx.array, behavior_probs: mx.array, uniforms: mx.array
) -> mx.array:
    """A draw from the positive part of μ − d of each row, int32 `[n]`; uniforms `[n, 1]`."""
    residual = mx.maximum(behavior_probs - roots * roots / total, 0.0)
    residual = residual + behavior_probs * (sum_last(residual, keepdims=True) == 0.0)
    return draw(residual, mx.concatenate([uniforms, mx.zeros_like(uniforms)], axis=-1))
