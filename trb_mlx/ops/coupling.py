"""Exact draws from one policy with drafts of another."""

from __future__ import annotations

import mlx.core as mx

from trb_mlx.ops.numerics import sum_last
from trb_mlx.ops.sampling import inverse_cdf


def accept_drafts(
    tokens: mx.array, draft_logprobs: mx.array, behavior_logprobs: mx.array, uniforms: mx.array
) -> tuple[mx.array, mx.array]:
    """How much of each row's draft stands, and what replaces the first token that does not.

    A drafted token z is kept with probability min(1, μ(z)/d(z)); at the first rejection the
    replacement is drawn from the positive part of μ − d. Tokens kept and replaced then have
    exactly the law of μ, and a position is rejected with probability TV(d, μ)
    (arXiv 2609.36601). Where rounding leaves μ − d no positive part, the replacement is drawn
    from μ itself, which is then d but for rounding.

    Args:
        tokens: int `[B, T]`, drawn from the draft policy.
        draft_logprobs: `[B, T, V]`, log d at each position.
        behavior_logprobs: `[B, T, V]`, log μ there.
        uniforms: in [0, 1), one an acceptance test, then those of the replacement: `[B, T + 1]`,
            one for wherever it falls, or `[B, 2·T]`, each position's own, so that what is emitted
            at a position does not depend on where a block began.

    Returns:
        int32 `[B]`, the drafts kept; int32 `[B]`, the replacement, −1 where all were kept.
    """
    length = tokens.shape[1]
    tests, others = uniforms[:, :length], uniforms[:, length:]
    kept = _leading(_is_kept(tokens, draft_logprobs, behavior_logprobs, tests))
    first = mx.minimum(kept, length - 1)[:, None, None]
    draft, behavior = (
        mx.exp(mx.take_along_axis(logprobs.astype(mx.float32), first, axis=1).squeeze(1))
        for logprobs in (draft_logprobs, behavior_logprobs)
    )
    residual = mx.maximum(behavior - draft, 0.0)
    residual = mx.where(sum_last(residual, keepdims=True) > 0.0, residual, behavior)
    place = mx.minimum(kept, others.shape[1] - 1)[:, None]
    last = mx.take_along_axis(others, place, axis=1)
    drawn = inverse_cdf(mx.log(residual), mx.concatenate([last, mx.zeros_like(last)], axis=-1))
    return kept, mx.where(kept < length, drawn, -1)


def _is_kept(
    tokens: mx.array, draft_logprobs: mx.array, behavior_logprobs: mx.array, uniforms: mx.array
) -> mx.array:
    """Bool `[B, T]`: each test on its own. u < μ/d never holds where μ(z) = 0."""
    draft, behavior = (
        mx.take_along_axis(logprobs.astype(mx.float32), tokens[..., None], axis=-1).squeeze(-1)
        for logprobs in (draft_logprobs, behavior_logprobs)
    )
    return uniforms < mx.exp(behavior - draft)


def _leading(kept: mx.array) -> mx.array:
    """How many positions from the start are all True, int32 `[B]`."""
    return mx.cumprod(kept.astype(mx.int32), axis=1).sum(axis=1).astype(mx.int32)
