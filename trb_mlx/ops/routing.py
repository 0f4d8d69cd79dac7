"""Tokens with a label train towards it, the others by whatever divergence was computed."""

from __future__ import annotations

import mlx.core as mx

from trb_mlx.ops.numerics import log_softmax

NO_LABEL = -1


def toward_labels(losses: mx.array, logits: mx.array, labels: mx.array) -> mx.array:
    """−log π_S(label) where there is a label, the given loss elsewhere.

    With the drawn tokens as labels this is supervised fine-tuning; with the teacher's likeliest
    token at positions that a coupling corrected, SAKI's routing (after arXiv 2609.36601).

    Args:
        losses: `[N]`, in nats.
        logits: the student's `[N, V]`, unnormalised.
        labels: int `[N]`, ids below V, or `NO_LABEL`.

    Returns:
        `[N]` in nats. Labelled rows have the gradient p − 1[v = label], and none through `losses`.
    """
    chosen = mx.maximum(labels, 0)[:, None]
    logprobs = mx.take_along_axis(log_softmax(logits), chosen, axis=-1).squeeze(-1)
    return mx.where(labels == NO_LABEL, losses, -logprobs)
