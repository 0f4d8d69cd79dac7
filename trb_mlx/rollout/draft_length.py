"""How many tokens to draft before the teacher looks: the block length of most tokens a second.

With acceptance a, a block of γ emits E = (1 − a^γ)/(1 − a) tokens on average. The γ chosen
maximises E/C(γ), where C(γ) is what a round costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from trb_mlx.rollout.generator import BlockGenerator

LENGTHS = (1, 2, 4, 8, 12)
# What is believed of acceptance before anything is seen, as if of so many tokens.
PRIOR_REJECTIONS, PRIOR_TOKENS = 8.0, 32.0
# Older tokens are forgotten: the budget changes every step, and acceptance with it.
MEMORY_TOKENS = 2048.0

Costs = Mapping[int, Mapping[int, float]]  # rows → block length → seconds, or any other unit


class DraftLength(Protocol):
    """Chooses each round's block length."""

    def choose(self, rows: int) -> int:
        """The block length for so many rows."""

    def observe(self, tokens: int, rejected: int) -> None:
        """A round emitted `tokens`, of which `rejected` replaced a draft."""


@dataclass(frozen=True)
class Fixed:
    """Always the same length."""

    length: int

    def choose(self, rows: int) -> int:
        """The one length, whatever the rows."""
        return self.length

    def observe(self, tokens: int, rejected: int) -> None:
        """Nothing is learned."""


class Adaptive:
    """Follows the measured acceptance under costs that are measured once."""

    def __init__(self, costs: Costs) -> None:
        """`costs` for at least one number of rows and one length."""
        self.costs = costs
        self._tokens, self._rejected = PRIOR_TOKENS, PRIOR_REJECTIONS

    @property
    def acceptance(self) -> float:
        """The share of drafts that was kept lately."""
        return 1.0 - self._rejected / self._tokens

    def choose(self, rows: int) -> int:
        """The length of most expected tokens a second under the nearest known costs."""
        nearest = min(self.costs, key=lambda known: abs(np.log(known / rows)))
        table = self.costs[nearest]
        return max(table, key=lambda length: expected(self.acceptance, length) / table[length])

    def observe(self, tokens: int, rejected: int) -> None:
        """Update the measured acceptance, in which older tokens fade."""
        fade = min(1.0, MEMORY_TOKENS / (self._tokens + tokens))
        self._tokens = (self._tokens + tokens) * fade
        self._rejected = (self._rejected + rejected) * fade

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        costs = {str(rows): {str(k): v for k, v in t.items()} for rows, t in self.costs.items()}
        return {"costs": costs, "tokens": self._tokens, "rejected": self._rejected}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Adaptive:
        """The chooser whose `state` was kept."""
        tables = state["costs"].items()
        restored = cls({int(rows): {int(k): v for k, v in t.items()} for rows, t in tables})
        restored._tokens, restored._rejected = state["tokens"], state["rejected"]
        return restored


def expected(acceptance: float, length: int) -> float:
    """E = (1 − a^γ)/(1 − a), the tokens that a block emits on average (γ at a = 1)."""
    return float(sum(acceptance**place for place in range(length)))


def assumed_costs(student_bytes: int, teacher_bytes: int) -> Costs:
    """C(γ) = γ·S + T where decoding is bound by reading weights: no clock is asked."""
    return {1: {length: length * student_bytes + teacher_bytes for length in LENGTHS}}


def measured_costs(
    make_generator: Callable[[], BlockGenerator], rows: int, repeats: int = 2
) -> Costs:
    """Seconds of a round at each block length, for all rows and for a quarter of them.

    Args:
        make_generator: gives one without rows.
        rows: rows decoded at once.
        repeats: rounds at each length, of which the fastest counts; the first warms up.
    """
    return {
        count: _measured(make_generator(), count, repeats)
        for count in sorted({rows, max(1, rows // 4)})
    }


def _measured(generator: BlockGenerator, rows: int, repeats: int) -> dict[int, float]:
    for decoder in generator.decoders:
        decoder.prefill([tuple(range(1, 33))] * rows)
    costs = {}
    for length in (length for length in LENGTHS if length <= generator.max_block):
        seconds = []
        for number in range(repeats + 1):
            begun = time.perf_counter()
            block = generator.generate(mx.ones((rows,), mx.int32), *_noise(rows, length, number))
            mx.eval(block.tokens, block.accepted)
            seconds.append(time.perf_counter() - begun)
            for decoder in generator.decoders if generator.max_block > 1 else ():
                decoder.trim(np.full(rows, length))
        costs[length] = min(seconds[1:])
    return costs


def _noise(rows: int, length: int, seed: int) -> tuple[mx.array, mx.array]:
    generator = np.random.default_rng(seed)
    noise = generator.random((2, rows, length, 2), np.float32) * (1 - 2.0**-24)
    return mx.array(noise[0].astype(np.float32)), mx.array(noise[1].astype(np.float32))
