"""How many tokens to draft before the teacher looks: the block length of most tokens a second.

With acceptance a, a block of γ emits E = (1 − a^γ)/(1 − a) tokens on average. The γ chosen
maximises E/C(γ), where C(γ) is what a round costs by the rounds that were drawn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

LENGTHS = (1, 2, 4, 8, 12)
# What is believed of acceptance before anything is seen, as if of so many tokens.
PRIOR_REJECTIONS, PRIOR_TOKENS = 8.0, 32.0
# Older tokens are forgotten: the budget changes every step, and acceptance with it.
MEMORY_TOKENS = 2048.0
# The rounds of a length whose median counts: few, since caches grow and machines are shared.
MEMORY_ROUNDS = 5
# The share of the time that trying one length again may lose.
TRIAL_SHARE = 0.0025

Costs = Mapping[int, float]  # block length → seconds, or any other unit


class DraftLength(Protocol):
    """Chooses each round's block length."""

    def choose(self, rows: int) -> int:
        """The block length for so many rows."""

    def observe(self, rows: int, length: int, tokens: int, rejected: int, seconds: float) -> None:
        """A round of `length` emitted `tokens`, of which `rejected` replaced a draft."""


@dataclass(frozen=True)
class Fixed:
    """Always the same length."""

    length: int

    def choose(self, rows: int) -> int:
        """The one length, whatever the rows."""
        return self.length

    def observe(self, rows: int, length: int, tokens: int, rejected: int, seconds: float) -> None:
        """Nothing is learned."""


@dataclass
class _Rounds:
    """What rounds of about so many rows took: by length the last ones' seconds.

    The first of a length warms up and is not among them. `drawn` is how many `elapsed` seconds
    there were when a length was last drawn.
    """

    elapsed: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    drawn: dict[int, float] = field(default_factory=dict)

    def add(self, length: int, seconds: float) -> None:
        """A round, which has ended."""
        self.elapsed += seconds
        if length in self.drawn:
            self.seconds[length] = [*self.seconds.get(length, []), seconds][-MEMORY_ROUNDS:]
        self.drawn[length] = self.elapsed


class Adaptive:
    """Follows the acceptance and the costs of the rounds that are drawn anyway.

    Costs are learned for each power of two of rows, beginning token by token. A length that was
    not timed is believed to cost what was assumed, times how far off the assumption was at the
    nearest that was: assumptions are low, so what promises most is tried, and left if it fails.
    """

    def __init__(self, assumed: Costs, timed: bool = True) -> None:
        """The `assumed` costs of every length; they stay where rounds are not `timed`."""
        self.assumed = dict(assumed)
        self.timed = timed
        self._tokens, self._rejected = PRIOR_TOKENS, PRIOR_REJECTIONS
        self._rounds: dict[int, _Rounds] = {}  # by ⌊log₂ rows⌉

    @property
    def acceptance(self) -> float:
        """The share of drafts that was kept lately."""
        return 1.0 - self._rejected / self._tokens

    def costs(self, rows: int) -> dict[int, float]:
        """C(γ) as it is believed for so many rows."""
        rounds = self._rounds_of(rows)
        timed = {length: statistics.median(lately) for length, lately in rounds.seconds.items()}
        if not timed:
            return self.assumed
        costs = {}
        for length, cost in self.assumed.items():
            nearest = min(timed, key=lambda known: abs(math.log(known / length)))
            costs[length] = timed[nearest] * cost / self.assumed[nearest]
        return costs

    def choose(self, rows: int) -> int:
        """The length of most expected tokens a second, or one that is due to be tried again."""
        rounds, costs = self._rounds_of(rows), self.costs(rows)
        if self.timed and 1 not in rounds.seconds:
            return 1
        emitted = {length: expected(self.acceptance, length) for length in costs}
        best = max(costs, key=lambda length: emitted[length] / costs[length])
        for length in costs if self.timed else ():
            loss = costs[length] - emitted[length] * costs[best] / emitted[best]
            if loss < TRIAL_SHARE * (rounds.elapsed - rounds.drawn.get(length, 0.0)):
                return length
        return best

    def observe(self, rows: int, length: int, tokens: int, rejected: int, seconds: float) -> None:
        """Update the acceptance, in which older tokens fade, and the costs."""
        fade = min(1.0, MEMORY_TOKENS / (self._tokens + tokens))
        self._tokens = (self._tokens + tokens) * fade
        self._rejected = (self._rejected + rejected) * fade
        if self.timed and length in self.assumed:
            self._rounds.setdefault(round(math.log2(rows)), _Rounds()).add(length, seconds)

    def _rounds_of(self, rows: int) -> _Rounds:
        return self._rounds.get(round(math.log2(rows)), _Rounds())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {
            "costs": {"1": {str(length): cost for length, cost in self.assumed.items()}},
            "tokens": self._tokens,
            "rejected": self._rejected,
            "rounds": {str(size): asdict(rounds) for size, rounds in self._rounds.items()},
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], timed: bool = True) -> Adaptive:
        """The chooser whose `state` was kept, from 0.2.0's assuming its costs of fewest rows."""
        assumed = state["costs"][min(state["costs"], key=int)]
        restored = cls({int(length): cost for length, cost in assumed.items()}, timed)
        restored._tokens, restored._rejected = state["tokens"], state["rejected"]
        for size, rounds in state.get("rounds", {}).items():
            seconds, drawn = (
                {int(length): value for length, value in rounds[name].items()}
                for name in ("seconds", "drawn")
            )
            restored._rounds[int(size)] = _Rounds(rounds["elapsed"], seconds, drawn)
        return restored


def expected(acceptance: float, length: int) -> float:
    """E = (1 − a^γ)/(1 − a), the tokens that a block emits on average (γ at a = 1)."""
    return float(sum(acceptance**place for place in range(length)))


def assumed_costs(student_bytes: int, teacher_bytes: int) -> Costs:
    """C(γ) = γ·S + T where decoding is bound by reading weights: no clock is asked."""
    return {length: length * student_bytes + teacher_bytes for length in LENGTHS}
