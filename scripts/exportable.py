"""Custom functions as plain operations, so that MLX can export what calls them; import this first.

A loss's own gradient then comes of (x − x₀)·g(x₀) beside its value, with x₀ constant: as many wide
arrays as the gradient itself, and the same to a caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx


class PlainFunction:
    """In place of `mx.custom_function`, for losses that are computed row by row."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Without a `vjp` it is the function itself."""
        self._function = function
        self._vjp: Callable[..., Any] | None = None

    def vjp(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As MLX's."""
        self._vjp = function
        return function

    def __call__(self, *primals: mx.array) -> Any:
        """The function's values; the first of them has the gradient."""
        if self._vjp is None:
            return self._function(*primals)
        fixed = [mx.stop_gradient(each) for each in primals]
        outputs = self._function(*fixed)
        several = isinstance(outputs, tuple | list)
        values = list(outputs) if several else [outputs]
        ones = [mx.ones_like(each) for each in values]
        grads = self._vjp(fixed, ones if several else ones[0], outputs)
        for primal, constant, grad in zip(primals, fixed, grads, strict=False):
            if mx.issubdtype(primal.dtype, mx.floating) and primal.shape == grad.shape:
                change = (primal - constant) * mx.stop_gradient(grad)
                values[0] = values[0] + (change.sum(-1) if primal.ndim > values[0].ndim else change)
        return tuple(values) if several else values[0]


mx.custom_function = PlainFunction  # type: ignore[assignment,misc]
