"""The gated delta rule and linear attention with decays, in chunks of tokens.

A state S `[Dv, Dk]` of each head reads one token after another (Gated DeltaNet, arXiv 2412.06464):

    S_t = S_{t-1} G_t + u_t k_tᵀ,   u_t = β_t (v_t − S_{t-1} G_t k_t),   o_t = S_t q_t

where G_t decays all of S or its Dk columns each. Without the term in k_t, u_t = β_t v_t: linear
attention with decays, and the state space of Mamba 2 (2405.21060). Within a chunk the u_t solve a
triangular system (DeltaNet in parallel, 2406.06484), so that only the states between chunks follow
one another, and the rest is products of matrices.

A span of chunks is computed again in the backward pass: of the forward pass only the states between
spans are kept.

Axis letters: B rows, T tokens, Hv value heads, Hk key heads (Hv a multiple), Dv and Dk their
widths, c the gates of a head (1 or Dk), n the chunks of a span, C the tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

# Tokens of a chunk with one gate a head, and with Dk: the decays between all tokens of a chunk take
# C² numbers a gate. And chunks of a span (docs/log.md compares sizes).
CHUNK, CHUNK_OF_CHANNELS = 64, 16
CHUNKS = 4


def gated_delta_rule(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
    reads: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """The gated delta rule over T tokens, differentiable by every input but `mask`.

    Sums are formed in float32 whatever the inputs' type. β up to 2 and equal keys are sound.

    Args:
        q, k: `[B, T, Hk, Dk]`, as they are multiplied (normalized by the caller).
        v: `[B, T, Hv, Dv]`.
        log_decay: log G, at most 0 (−inf forgets all): `[B, T, Hv]`, or `[B, T, Hv, Dk]` for
            gates of channels.
        beta: `[B, T, Hv]`, in [0, 2].
        state: `[B, Hv, Dv, Dk]`, zero where None.
        mask: `[B, T]`, False for tokens that leave the state alone; their outputs mean nothing.
        reads: `[B, T, Hk, Dk]`, r in u_t = β_t (v_t − S_{t-1} G_t r_t), where it is another than k.

    Returns:
        o `[B, T, Hv, Dv]` in q's type, and the last state in float32.
    """
    return _recurrence(q, k, v, log_decay, beta, state, mask, k if reads is None else reads)


def decayed_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """`gated_delta_rule` with u_t = β_t v_t: S_t = S_{t-1} G_t + β_t v_t k_tᵀ, o_t = S_t q_t."""
    return _recurrence(q, k, v, log_decay, beta, state, mask, None)


def _recurrence(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array | None,
    mask: mx.array | None,
    reads: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """Span after span, as one function with a backward pass of its own."""
    if state is None:
        state = mx.zeros((v.shape[0], *v.shape[2:], k.shape[-1]))
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if mask is not None:
        log_decay = mx.where(mask[..., None, None], log_decay, 0)
        beta = mx.where(mask[..., None], beta, 0)
    limit = CHUNK if log_decay.shape[-1] == 1 else CHUNK_OF_CHANNELS
    size = min(limit, 1 << (q.shape[1] - 1).bit_length())
    length = CHUNKS * size
    starts = range(0, q.shape[1], length)

    def span(*inputs: mx.array) -> tuple[mx.array, mx.array]:
        return _span(size, *inputs)

    def parts(inputs: list[mx.array], start: int, done: list[mx.array]) -> list[mx.array]:
        """A span's inputs, which wait for what is done: MLX would hold all spans side by side."""
        cut = [array[:, start : start + length] for array in inputs]
        return mx.depends(cut, done) if done else cut

    def forward(state: mx.array, *inputs: mx.array) -> tuple[mx.array, ...]:
        outputs: list[mx.array] = []
        states = [state]
        for start in starts:
            done = [outputs[-1], states[-1]] if outputs else []
            output, state = span(states[-1], *parts(list(inputs), start, done))
            outputs.append(output)
            states.append(state)
        return mx.concatenate(outputs, axis=1), *states[1:]

    def backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        state, *inputs = primals
        states = [state, *outputs[1:-1]]
        done: list[mx.array] = []
        grads: list[list[mx.array]] = []
        by_state = cotangents[-1]
        for start, before in zip(reversed(starts), reversed(states), strict=True):
            *cut, by_output = parts([*inputs, cotangents[0]], start, done)
            _, done = mx.vjp(span, [before, *cut], [by_output, by_state])
            by_state = done[0]
            grads.append(done[1:])
        columns = zip(*reversed(grads), strict=True)
        return by_state, *(mx.concatenate(list(column), axis=1) for column in columns)

    recomputed: Any = mx.custom_function(forward)
    recomputed.vjp(backward)
    inputs = [q, k, v, log_decay, beta] + ([] if reads is None else [reads])
    output, *states = recomputed(state.astype(mx.float32), *inputs)
    return output, states[-1]


def _span(
    size: int,
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    reads: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Outputs `[B, L, Hv, Dv]` of L tokens, and the state after them, from `state` before."""
    rows, length, heads, width = v.shape

    def chunked(array: mx.array) -> mx.array:
        """`[B, L, H, d]` as `[B, Hk, H / Hk, n, C, d]`, padded by tokens that do nothing."""
        groups = array.shape[2] // k.shape[2]
        padded = mx.pad(array.astype(mx.float32), [(0, 0), (0, -length % size), (0, 0), (0, 0)])
        apart = padded.reshape(rows, -1, size, k.shape[2], groups, array.shape[3])
        return apart.transpose(0, 3, 4, 1, 2, 5)

    queries, keys, values, logs, betas = map(chunked, (q, k, v, log_decay, beta[..., None]))
    between = _decays_between(logs)
    since_start = mx.exp(mx.cumsum(logs, axis=-2))
    writes = betas * values
    removals = writes  # unused without a correction
    if reads is not None:
        readers = chunked(reads)
        inverse = _inverse(betas * mx.tril(_products(readers, keys, between), -1))
        writes = inverse @ writes
        removals = inverse @ (betas * since_start * readers)
    scores = mx.tril(_products(queries, keys, between))
    columns = (
        since_start * queries,
        scores,
        writes,
        removals,
        between[..., -1, :, :] * keys,
        since_start[..., -1:, :],
    )
    chunks = zip(*map(_cut, columns), strict=True)
    state = state.reshape(*queries.shape[:2], -1, *state.shape[2:])
    outputs = []
    for query, score, write, removal, key, decay in chunks:
        if reads is not None:
            write = write - removal @ state.swapaxes(-1, -2)
        outputs.append(query @ state.swapaxes(-1, -2) + score @ write)
        state = decay * state + write.swapaxes(-1, -2) @ key
    output = mx.stack(outputs, axis=3)  # [B, Hk, Hv / Hk, n, C, Dv]
    output = output.transpose(0, 3, 4, 1, 2, 5).reshape(rows, -1, heads, width)[:, :length]
    return output.astype(q.dtype), state.reshape(rows, heads, *state.shape[3:])


def _cut_forward(array: mx.array) -> tuple[mx.array, ...]:
    return tuple(array[..., i, :, :] for i in range(array.shape[-3]))


def _cut_backward(array: mx.array, cotangents: Any, _: Any) -> mx.array:
    return mx.stack(list(cotangents), axis=-3)


# The chunks `[…, C, d]` of `[…, n, C, d]`. The gradient of a slice would be a whole array of zeros
# around it, and mx.split is merged wrongly by mx.compile where a graph is computed twice.
_cut: Any = mx.custom_function(_cut_forward)
_cut.vjp(_cut_backward)


def _decays_between(logs: mx.array) -> mx.array:
    """The decay after token i up to t: logs `[…, C, c]` → `[…, C (t), C (i), c]`, 0 for t < i.

    Each interval is summed by itself: differences of sums from the start would lose all that
    follows a gate of almost 0.
    """
    size = logs.shape[-2]
    later = mx.tri(size, size, -1, dtype=mx.bool_)[..., None]
    sums = mx.cumsum(mx.where(later, logs[..., :, None, :], 0), axis=-3)
    return mx.where(mx.tri(size, size, 0, dtype=mx.bool_)[..., None], mx.exp(sums), 0)


def _products(readers: mx.array, keys: mx.array, between: mx.array) -> mx.array:
    """Σ_d reader_t,d · key_i,d · decay_ti,d: `[…, C, Dk]` of both → `[…, C (t), C (i)]`."""
    if between.shape[-1] == 1:
        return between.squeeze(-1) * (readers @ keys.swapaxes(-1, -2))
    return ((between * keys[..., None, :, :]) @ readers[..., None]).squeeze(-1)


def _inverse_forward(lower: mx.array) -> mx.array:
    """(I + A)⁻¹ of strictly lower triangular A `[…, C, C]`, C a power of two, by halves.

    The inverse of [[P, 0], [A', Q]] is [[P⁻¹, 0], [−Q⁻¹ A' P⁻¹, Q⁻¹]]. A sum of powers of A would
    lose everything where keys are alike.
    """
    if lower.shape[-1] == 1:
        return mx.ones_like(lower)
    half = lower.shape[-1] // 2
    both = mx.stack([lower[..., :half, :half], lower[..., half:, half:]], axis=-3)
    both = _inverse_forward(both)
    first, second = both[..., 0, :, :], both[..., 1, :, :]
    corner = -second @ lower[..., half:, :half] @ first
    top = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([top, mx.concatenate([corner, second], axis=-1)], axis=-2)


def _inverse_backward(primal: mx.array, cotangent: mx.array, inverse: mx.array) -> mx.array:
    transposed = inverse.swapaxes(-1, -2)
    return -(transposed @ cotangent @ transposed)


_inverse: Any = mx.custom_function(_inverse_forward)
_inverse.vjp(_inverse_backward)
