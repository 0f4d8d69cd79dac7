"""A per-token loss from hidden states, without logits of more than a few tokens at once.

The loss of a token depends on its own hidden state alone, and the head is frozen. So each chunk
of tokens goes through the head, the loss and their backward at once, and all that is kept of it
is the loss and its gradient with respect to the hidden states: the later backward pass only scales
that gradient. Logits `[N, V]` of all tokens never exist, and no head runs twice (docs/log.md
compares this with computing the chunks again in the backward pass).

Axis letters: N response tokens, n the tokens of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

Arrays = dict[str, mx.array]
# Logits [n, V] of one model and arrays [n, …] of the same tokens → loss [n] and measures [n].
TokenLoss = Callable[[mx.array, Arrays], tuple[mx.array, Arrays]]


def fused_head_loss(
    hidden: mx.array,
    arrays: Arrays,
    head: Callable[[mx.array], mx.array],
    token_loss: TokenLoss,
    chunk: int,
) -> tuple[mx.array, Arrays]:
    """`token_loss(head(hidden), arrays)`, computed chunk by chunk with its gradient.

    Only `hidden` is differentiable: whatever `head` and `token_loss` read beside it is taken as
    constant, and so are the measures.

    Args:
        hidden: `[N, D]`, the last hidden states.
        arrays: `[N, …]`, what `token_loss` needs to know of each token.
        head: `[n, D]` → logits `[n, V]`, frozen.
        token_loss: (logits `[n, V]`, arrays `[n, …]`) → (loss `[n]`, measures `[n]` by name).
        chunk: n, tokens at a time.

    Returns:
        The loss `[N]` and the measures `[N]` by name.
    """
    fixed = mx.stop_gradient(hidden)
    parts: list[tuple[mx.array, mx.array, Arrays]] = []
    for start in range(0, hidden.shape[0], chunk):
        end = start + chunk
        inputs = {name: values[start:end] for name, values in arrays.items()}
        rows = fixed[start:end]
        if parts:
            rows, inputs = _after(parts[-1], rows, inputs)
        parts.append(_loss_and_gradient(rows, inputs, head, token_loss))
    losses, grads, chunks = (list(values) for values in zip(*parts, strict=True))
    measures = {name: mx.concatenate([part[name] for part in chunks]) for name in chunks[0]}
    return _with_gradient(hidden, mx.concatenate(losses), mx.concatenate(grads)), measures


def _loss_and_gradient(
    rows: mx.array,
    inputs: Arrays,
    head: Callable[[mx.array], mx.array],
    token_loss: TokenLoss,
) -> tuple[mx.array, mx.array, Arrays]:
    """Loss `[n]`, its gradient `[n, D]` by the hidden states, and the measures of one chunk."""
    measures: Arrays = {}

    def of_hidden(rows: mx.array) -> mx.array:
        loss, values = token_loss(head(rows), inputs)
        measures.update({name: mx.stop_gradient(value) for name, value in values.items()})
        return loss

    (loss,), (grad,) = mx.vjp(of_hidden, [rows], [mx.ones(rows.shape[0])])
    return loss, grad, measures


def _after(
    done: tuple[mx.array, mx.array, Arrays], rows: mx.array, inputs: Arrays
) -> tuple[mx.array, Arrays]:
    """A chunk's inputs that wait for the chunk before.

    MLX evaluates a graph breadth first: independent chunks would all stand side by side.
    """
    loss, grad, measures = done
    waiting = mx.depends([rows, *inputs.values()], [loss, grad, *measures.values()])
    return waiting[0], dict(zip(inputs, waiting[1:], strict=True))


def _given_loss(hidden: mx.array, loss: mx.array, grad: mx.array) -> mx.array:
    return loss


def _given_gradient(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, ...]:
    hidden, loss, grad = primals
    scaled = grad.astype(mx.float32) * cotangent[:, None]
    return scaled.astype(hidden.dtype), mx.zeros_like(loss), mx.zeros_like(grad)


# (hidden [N, D], loss [N], grad [N, D]) → the loss, whose gradient by `hidden` is `grad`.
_with_gradient: Any = mx.custom_function(_given_loss)
_with_gradient.vjp(_given_gradient)
