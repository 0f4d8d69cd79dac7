"""Recurrent layers read long texts in chunks, where mlx-lm loops or needs much memory.

mlx-lm's gated delta rule is a loop over tokens in training, and everywhere without Metal; its state
space (Mamba 2) keeps all decays of 256 tokens for the backward pass. Its linear attention of
bailing_moe_linear is always a loop, and RWKV 7 is one without Metal, where its kernel has no
backward. Few tokens at a time, as they are drafted and verified, are left to mlx-lm, whose
recurrence rounds alike whatever the block.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.backend import on_metal
from trb_mlx.models.gated_delta import decayed_attention, gated_delta_rule
from trb_mlx.models.rebinding import Function, rebind

# From here on a pass without a gradient goes in chunks: no block of drafts is as long.
LONG = 64


def chunk_recurrences(module: nn.Module) -> None:
    """Let a loaded model's recurrent layers read long texts in chunks, in place."""
    for name, wrap in RULES.items():
        rebind(module, name, wrap)
    for layer in module.modules():
        if hasattr(layer, "_wkv7"):
            layer.__class__ = _chunked_wkv7(type(layer))


def chunked_gated_delta(plain: Function) -> Function:
    """mlx-lm's `gated_delta_update`, which is told by `use_kernel` that there is no training."""

    def gated_delta_update(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        a: mx.array,
        b: mx.array,
        A_log: mx.array,
        dt_bias: mx.array,
        state: mx.array | None = None,
        mask: mx.array | None = None,
        *,
        use_kernel: bool = True,
        lower_bound: float | None = None,
        allow_neg_eigval: bool = False,
    ) -> tuple[mx.array, mx.array]:
        has_kernel = on_metal() and k.shape[-1] % 32 == 0
        if use_kernel and (has_kernel or q.shape[1] < LONG):
            kinds = {"lower_bound": lower_bound, "allow_neg_eigval": allow_neg_eigval}
            return plain(q, k, v, a, b, A_log, dt_bias, state, mask, use_kernel=True, **kinds)
        beta = mx.sigmoid(b) * (2 if allow_neg_eigval else 1)
        speed = mx.exp(A_log.astype(mx.float32))
        if lower_bound is None:
            log_decay = -speed * nn.softplus(a + dt_bias)
        else:
            log_decay = lower_bound * mx.sigmoid(speed * (a.astype(mx.float32) + dt_bias))
        return gated_delta_rule(q, k, v, log_decay, beta, state, mask)

    return gated_delta_update


def chunked_state_space(plain: Function) -> Function:
    """mlx-lm's `ssm_update`: dt is the strength of a write, B the key and C the query."""

    def ssm_update(
        hidden_states: mx.array,
        A_log: mx.array,
        B: mx.array,
        C: mx.array,
        D: mx.array,
        dt: mx.array,
        dt_bias: mx.array,
        state: mx.array | None = None,
        time_step_limit: tuple[float, float] = (0.001, 100.0),
        mask: mx.array | None = None,
        lengths: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        length = hidden_states.shape[1]
        if length < LONG:
            arguments: tuple[Any, ...] = (A_log, B, C, D, dt, dt_bias, state, time_step_limit)
            return plain(hidden_states, *arguments, mask, lengths)
        if lengths is not None:
            inside = mx.arange(length) < lengths[:, None]
            mask = inside if mask is None else mask & inside
        steps = mx.clip(nn.softplus(dt.astype(mx.float32) + dt_bias), *time_step_limit)
        log_decay = -mx.exp(A_log.astype(mx.float32)) * steps
        read, state = decayed_attention(C, B, hidden_states, log_decay, steps, state, mask)
        return read.astype(hidden_states.dtype) + hidden_states * D[:, None], state

    return ssm_update


def _linear_attention(plain: Function) -> Function:
    """mlx-lm's `recurrent_gla`: one decay a head, heads before tokens, states `[B, H, Dk, Dv]`."""

    def recurrent_gla(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        g: mx.array,
        scale: float,
        h: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        if q.shape[2] < LONG:
            return plain(q, k, v, g, scale, h)
        rows, heads, length, _ = v.shape
        log_decay = mx.broadcast_to(g.astype(mx.float32), (rows, length, heads))
        state = None if h is None else h.swapaxes(-1, -2)
        q, k, v = (array.swapaxes(1, 2) for array in (q * scale, k, v))
        read, state = decayed_attention(q, k, v, log_decay, mx.ones_like(log_decay), state)
        return read.swapaxes(1, 2), state.swapaxes(-1, -2).astype(q.dtype)

    return recurrent_gla


def _chunked_wkv7(plain: type[nn.Module]) -> type[nn.Module]:
    """RWKV 7's layer: S_t = S_{t-1} (diag(w_t) + a_t b_tᵀ) + v_t k_tᵀ (arXiv 2503.14456).

    Each token is two of the gated delta rule: one removes S a, as it is read before the decay, and
    one decays and writes.
    """

    def wkv7(
        self: Any,
        r: mx.array,
        w: mx.array,
        k: mx.array,
        v: mx.array,
        a: mx.array,
        b: mx.array,
        state: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        if not self.training and (on_metal() or r.shape[1] < LONG):
            return plain._wkv7(self, r, w, k, v, a, b, state)
        nothing, decay = mx.zeros_like(r), w.astype(mx.float32)

        def both(first: mx.array, second: mx.array) -> mx.array:
            return mx.stack([first, second], axis=2).flatten(1, 2)

        read, state = gated_delta_rule(
            both(nothing, r),
            both(b / decay, k.astype(mx.float32)),
            both(nothing, v),
            both(mx.zeros_like(decay), mx.log(decay)),
            mx.ones((r.shape[0], 2 * r.shape[1], r.shape[2])),
            state,
            reads=both(-a, nothing),
        )
        return read[:, 1::2], state.astype(r.dtype)

    return type(plain.__name__, (plain,), {"_wkv7": wkv7})


# The functions by the names that mlx-lm's models import or define them under.
RULES = {
    "gated_delta_update": chunked_gated_delta,
    "ssm_update": chunked_state_space,
    "recurrent_gla": _linear_attention,
}
