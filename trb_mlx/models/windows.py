"""Sliding windows of attention where transformers has them and mlx-lm's model has none.

mlx-lm hands every layer of such a model one mask of all that came before. A layer that slides makes
its own mask instead, from the same cache, so that rollouts, scoring and training see one window.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.models import mlxlm


def slide_layers(module: nn.Module, windows: list[int | None]) -> bool:
    """Let each layer attend to `windows[i]` positions, itself included (None for all), in place.

    Returns:
        Whether anything changed: a model that keeps windows in its caches is left as it is.
    """
    if not any(windows):
        return False
    if any(type(cache) is not mlxlm.KVCache for cache in mlxlm.make_prompt_cache(module)):
        return False
    for layer, window in zip(module.layers, windows, strict=True):
        if window is not None:
            layer.__class__ = _sliding(type(layer))
            layer.attention_window = window
    return True


def _sliding(plain: type[nn.Module]) -> type[nn.Module]:
    """The class with a mask of its own: new tokens see a window, themselves included."""

    def call(
        self: nn.Module, hidden: mx.array, mask: Any = None, cache: Any = None, **others: Any
    ) -> Any:
        count, window = hidden.shape[1], self.attention_window
        if cache is not None:
            mask = cache.make_mask(count, return_array=True, window_size=window)
        elif count > window:
            mask = mlxlm.create_causal_mask(count, window_size=window)
        return plain.__call__(self, hidden, mask, cache, **others)

    return type(plain.__name__, (plain,), {"__call__": call})
