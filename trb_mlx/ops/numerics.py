"""Reductions over the vocabulary that stay accurate on long rows."""

from __future__ import annotations

import mlx.core as mx

# Rows up to this length are reduced directly; longer ones in two levels.
BLOCK = 512


def _blocks(values: mx.array, fill: float) -> mx.array:
    length = values.shape[-1]
    padding = -length % BLOCK
    if padding:
        pad = mx.full((*values.shape[:-1], padding), fill, values.dtype)
        values = mx.concatenate([values, pad], axis=-1)
    return values.reshape(*values.shape[:-1], -1, BLOCK)


def sum_last(values: mx.array, keepdims: bool = False) -> mx.array:
    """Sum over the last axis."""
    values = values.astype(mx.float32)
    if values.shape[-1] > 2 * BLOCK:
        values = _blocks(values, 0.0).sum(-1)
    return values.sum(-1, keepdims=keepdims)


def logsumexp(values: mx.array, keepdims: bool = False) -> mx.array:
    """Log of the sum of exponentials over the last axis."""
    values = values.astype(mx.float32)
    if values.shape[-1] > 2 * BLOCK:
        values = mx.logsumexp(_blocks(values, -mx.inf), axis=-1)
    return mx.logsumexp(values, axis=-1, keepdims=keepdims)


def log_softmax(logits: mx.array) -> mx.array:
    """Normalised log-probs over the last axis."""
    logits = logits.astype(mx.float32)
    return logits - logsumexp(logits, keepdims=True)


def entropy(logprobs: mx.array) -> mx.array:
    """Entropy in nats."""
    return -sum_last(mx.where(logprobs == -mx.inf, 0.0, mx.exp(logprobs) * logprobs))


def kl_divergence(a: mx.array, b: mx.array) -> mx.array:
    """KL(a||b)."""
    d = mx.where(b == -mx.inf, 0.0, a - b)
    e = mx.exp(d)
    terms = mx.where(a == -mx.inf, mx.exp(b), mx.exp(b) * (d * e - mx.expm1(d)))
    return sum_last(terms)


def total_variation(a: mx.array, b: mx.array) -> mx.array:
    """Half the L1 distance."""
    return 0.5 * sum_last(mx.abs(mx.exp(a) - mx.exp(b)))
