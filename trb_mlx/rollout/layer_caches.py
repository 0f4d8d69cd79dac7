"""Our caches of a model's layers: whichever has rows that are extended, trimmed and filtered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import mlx.core as mx

from trb_mlx.models import mlxlm
from trb_mlx.rollout.recurrent_cache import RecurrentCache
from trb_mlx.rollout.row_cache import Offsets, RowKVCache

RowCache: TypeAlias = "RowKVCache | RecurrentCache | tuple[RowCache, ...]"


def make_row_cache(kept: Any, offsets: Offsets, grouped: bool) -> RowCache:
    """Our cache of a layer for which mlx-lm keeps `kept`.

    Raises:
        TypeError: there is none.
    """
    if type(kept) is mlxlm.KVCache:
        return RowKVCache(offsets, None, grouped)
    if type(kept) is mlxlm.RotatingKVCache and not kept.keep:
        return RowKVCache(offsets, int(kept.max_size), grouped)
    if type(kept) is mlxlm.ArraysCache:
        return RecurrentCache(len(kept.cache))
    if type(kept) is mlxlm.CacheList:
        return tuple(make_row_cache(each, offsets, grouped) for each in kept.caches)
    raise TypeError(type(kept).__name__)


def flatten(layers: Iterable[RowCache]) -> list[Any]:
    """All caches, those of layers that have several too."""
    return [each for one in layers for each in (flatten(one) if isinstance(one, tuple) else [one])]


def recurrent(layers: Iterable[RowCache]) -> list[RecurrentCache]:
    """Those of windows and states."""
    return [each for each in flatten(layers) if isinstance(each, RecurrentCache)]


def extract(layer: RowCache, rows: mx.array) -> RowCache:
    """A layer's caches of the listed rows, int `[n]`."""
    if isinstance(layer, tuple):
        return tuple(extract(each, rows) for each in layer)
    return layer.extract(rows)
