"""Rows with offsets of their own: what their tokens see."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.rollout.row_cache import Offsets, RowKVCache

LENGTHS = [5, 2, 9]


def caches(*windows: int | None) -> list[RowKVCache]:
    offsets = Offsets(LENGTHS)
    return [RowKVCache(offsets, window) for window in windows]


@pytest.mark.parametrize("window", [None, 1, 4, 40])
def test_a_token_sees_what_stands_before_it_in_its_window(window: int | None) -> None:
    (cache,) = caches(window)
    mask = np.asarray(cache.make_mask(3))
    for row, length in enumerate(LENGTHS):
        for token in range(3):
            own = length + token
            first = 0 if window is None else max(0, own - window + 1)
            assert np.flatnonzero(mask[row, 0, token]).tolist() == [*range(first, own + 1)]


def test_layers_that_ask_alike_share_a_mask_until_the_rows_move() -> None:
    """A model's own window and one that the layer is told of are the same."""
    one, two, told = caches(4, 4, None)
    mask = one.make_mask(3)
    assert mask is two.make_mask(3)
    assert mask is told.make_mask(3, return_array=True, window_size=4)
    assert mask is not told.make_mask(3)
    one.offsets.set(one.offsets.lengths + 1)
    assert not mx.array_equal(mask, two.make_mask(3)[..., :12])
