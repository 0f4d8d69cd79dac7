"""One step's gradients of several ranks: what each computes, and how they are added.

By default a rank takes the rows that it drew, and one sum of one flat float32 array a step adds
what the ranks have. With `train.deterministic` the step's micro-batches, which depend on its
rollouts alone, go round the ranks and are added one after another in their order: as one process
adds them, to the bit where a pass's rounding does not depend on the rows beside a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from trb_mlx.ranks.group import Group
from trb_mlx.types import Rollout


class Reduction:
    """Adds the parts of a step, in one process or in several."""

    def __init__(self, group: Group, ordered: bool) -> None:
        """`ordered`: micro-batches are added in one order, whoever computes them."""
        self._group = group
        self._ordered = ordered and group.size > 1

    def rows(self, rollout: Rollout) -> np.ndarray | None:
        """The rows whose micro-batches this rank makes; None for all."""
        if rollout.ranks is None or self._ordered:
            return None
        return np.flatnonzero(rollout.ranks == self._group.rank)

    def takes(self, number: int) -> bool:
        """Whether this rank computes a micro-batch of those that it makes."""
        return not self._ordered or number % self._group.size == self._group.rank

    def add(self, parts: list[Any], part: Any) -> list[Any]:
        """The parts with one more: their sum so far, or each by itself where order matters."""
        if self._ordered or not parts:
            return [*parts, part]
        return [tree_map(mx.add, parts[0], part)]

    def total(self, parts: Sequence[Any], count: int) -> Any:
        """The sum over all ranks, the same on each.

        Args:
            parts: trees of float32 arrays, as `add` gives them; a rank without rows has none.
            count: of the micro-batches that all ranks made, where order matters.
        """
        group = self._group
        if group.size == 1:
            return parts[0]
        mine = [[name, list(leaf.shape)] for part in parts[:1] for name, leaf in tree_flatten(part)]
        layout = next(each for each in group.gather("the update", mine) if each)
        size = sum(int(np.prod(shape)) for _, shape in layout)
        flat = [_flat(part) for part in parts]
        if not self._ordered:
            return _tree(group.sum(flat[0] if flat else mx.zeros(size)), layout)
        total: mx.array | None = None
        for turn in range(-(-count // group.size)):
            stacked = group.stack(flat[turn] if turn < len(flat) else mx.zeros(size))
            for row in stacked[: count - turn * group.size]:
                total = row if total is None else total + row
            mx.eval(total)
        assert total is not None
        return _tree(total, layout)


def _flat(tree: Any) -> mx.array:
    return mx.concatenate([leaf.reshape(-1) for _, leaf in tree_flatten(tree)])


def _tree(flat: mx.array, layout: Sequence[Any]) -> Any:
    leaves, start = [], 0
    for name, shape in layout:
        end = start + int(np.prod(shape))
        leaves.append((name, flat[start:end].reshape(shape)))
        start = end
    return tree_unflatten(leaves)
