"""Recurrent layers read long texts in chunks, where mlx-lm loops or needs much memory.

mlx-lm's gated delta rule is a loop over tokens in training, and everywhere without Metal; its state
space (Mamba 2) keeps all decays of 256 tokens for the backward pass. Few tokens at a time, as they
are drafted and verified, are left to mlx-lm, whose recurrence rounds alike whatever the block.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.backend import on_metal
from trb_mlx.models.rebinding import Function, rebind
from trb_mlx.ops.gated_delta import decayed_attention, gated_delta_rule

# From here on a pass without a gradient goes in chunks: no block of drafts is as long.
LONG = 64


def chunk_recurrences(module: nn.Module) -> bool:
    """Let a loaded model's recurrent layers read long texts in chunks, in place.

    Returns:
        Whether it has layers that do.
    """
    delta = rebind(module, "gated_delta_update", chunked_gated_delta)
    return rebind(module, "ssm_update", chunked_state_space) or delta


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
