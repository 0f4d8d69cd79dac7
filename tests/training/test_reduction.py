"""A step's gradients shared by ranks: the parts of all are what one process computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from test_step import rollouts

from trb_mlx.config import LoraConfig, LossConfig, TrainConfig
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.ranks.group import ALONE, Group
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper
from trb_mlx.types import Rollout


class Share(Group):
    """One of several ranks, by itself: it keeps what it would send, and hears of zeros."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.sent: list[np.ndarray] = []

    def gather(self, what: str, value: Any) -> list[Any]:
        return [value] * self.size

    def sum(self, array: mx.array) -> mx.array:
        self.sent.append(np.array(array))
        return array

    def stack(self, array: mx.array) -> mx.array:
        self.sent.append(np.array(array))
        return mx.stack([array] + [mx.zeros_like(array)] * (self.size - 1))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.array(leaf).reshape(-1) for _, leaf in tree_flatten(tree)])


def accumulate(pair: Pair, rollout: Rollout, group: Group, deterministic: bool) -> np.ndarray:
    """The step's sums in one process, flat, or the arrays `[N, size]` that a rank sends."""
    config = TrainConfig(micro_batch_size=1, deterministic=deterministic)
    module = pair.student.model.module
    stepper = Stepper(module, Objective(LossConfig(mode="exact"), pair), config, group)
    ranks = np.arange(len(rollout.lengths)) % group.size
    module.train()
    total = flat(stepper._accumulate(replace(rollout, ranks=ranks)))
    module.eval()
    return np.stack(group.sent) if isinstance(group, Share) else total


@pytest.mark.parametrize("size", [2, 3])
def test_the_ranks_sums_are_those_of_one_process(pair: Pair, size: int) -> None:
    """Added by whichever order MLX likes: within 1e-6 of the largest entry."""
    add_lora(pair.student.model.module, LoraConfig(rank=4), seed=0)
    rollout = rollouts(pair)
    alone = accumulate(pair, rollout, ALONE, False)
    parts = [accumulate(pair, rollout, Share(rank, size), False) for rank in range(size)]
    assert [len(part) for part in parts] == [1] * size
    assert all(np.abs(part).max() > 0 for part in parts)
    together = np.concatenate(parts).sum(axis=0)
    assert np.abs(together - alone).max() <= 1e-6 * np.abs(alone).max()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("size", [2, 3])
def test_deterministic_parts_add_up_to_the_bit(pair: Pair, size: int, dropout: float) -> None:
    """One micro-batch after another, dropout's masks included."""
    add_lora(pair.student.model.module, LoraConfig(rank=4, dropout=dropout), seed=0)
    rollout = rollouts(pair)
    alone = accumulate(pair, rollout, ALONE, True)
    sent = [accumulate(pair, rollout, Share(rank, size), True) for rank in range(size)]
    together = sum(sent[turn % size][turn // size] for turn in range(len(rollout.lengths)))
    np.testing.assert_array_equal(together, alone)
    assert dropout == 0.0 or not np.array_equal(alone, accumulate(pair, rollout, ALONE, False))
