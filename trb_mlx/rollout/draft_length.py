"""How many tokens to draft before the teacher looks: the block length that is done first.

With acceptance a, a block of γ emits E = (1 − a^γ)/(1 − a) tokens on average. While prompts wait
for the places of rows that end, the γ chosen maximises E/C(γ), where C(γ) is what a round costs by
the rounds that were drawn. Afterwards all wait for the slowest row, and long blocks scatter the
rows' ends more: then γ minimises the seconds until the last of them is expected to end.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import ndtri

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

    def choose(self, left: Sequence[int], refilled: bool) -> int:
        """The block length of the next round.

        Args:
            left: how many tokens each row may still draw, at least one, int `[B]`.
            refilled: whether another prompt takes the place of a row that ends.
        """

    def observe(self, rows: int, length: int, tokens: int, rejected: int, seconds: float) -> None:
        """A round of `length` emitted `tokens`, of which `rejected` replaced a draft."""


@dataclass(frozen=True)
class Fixed:
    """Always the same length."""

    length: int

    def choose(self, left: Sequence[int], refilled: bool) -> int:
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


class Ahead(NamedTuple):
    """What is ahead by blocks of one length: rounds, and seconds or the unit of the costs."""

    rounds: float
    seconds: float


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
        """C(γ) as it is believed for so many rows, by the nearest number of rows that was timed."""
        sizes = [size for size, rounds in self._rounds.items() if rounds.seconds]
        if not sizes:
            return self.assumed
        rounds = self._rounds[min(sizes, key=lambda size: abs(size - _size(rows)))]
        timed = {length: statistics.median(lately) for length, lately in rounds.seconds.items()}
        costs = {}
        for length, cost in self.assumed.items():
            nearest = min(timed, key=lambda known: abs(math.log(known / length)))
            costs[length] = timed[nearest] * cost / self.assumed[nearest]
        return costs

    def choose(self, left: Sequence[int], refilled: bool) -> int:
        """The length that is done first, or one that is due to be tried again."""
        rows, most = len(left), max(left)
        rounds = self._rounds_of(rows)
        if self.timed and 1 not in rounds.seconds:
            return 1
        lengths = dict.fromkeys(min(length, most) for length in self.assumed)
        if refilled:
            full = self.costs(rows)
            ahead = {length: token_ahead(self.acceptance, length, full) for length in lengths}
        else:
            costs = [self.costs(2**size) for size in range(_size(rows) + 1)]
            ahead = {
                length: batch_ahead(self.acceptance, length, left, costs) for length in lengths
            }
        best = min(ahead, key=lambda length: ahead[length].seconds)
        for length in self.assumed if self.timed else ():
            if length <= most:
                loss = (ahead[length].seconds - ahead[best].seconds) / ahead[length].rounds
                if loss < TRIAL_SHARE * (rounds.elapsed - rounds.drawn.get(length, 0.0)):
                    return length
        return best

    def observe(self, rows: int, length: int, tokens: int, rejected: int, seconds: float) -> None:
        """Update the acceptance, in which older tokens fade, and the costs."""
        fade = min(1.0, MEMORY_TOKENS / (self._tokens + tokens))
        self._tokens = (self._tokens + tokens) * fade
        self._rejected = (self._rejected + rejected) * fade
        if self.timed and length in self.assumed:
            self._rounds.setdefault(_size(rows), _Rounds()).add(length, seconds)

    def _rounds_of(self, rows: int) -> _Rounds:
        return self._rounds.get(_size(rows), _Rounds())

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


def token_ahead(acceptance: float, length: int, costs: Costs) -> Ahead:
    """What a token takes by blocks of γ: 1/E rounds, and C(γ)/E."""
    rounds = 1.0 / expected(acceptance, length)
    return Ahead(rounds, rounds * interpolated(costs, length))


def batch_ahead(
    acceptance: float, length: int, left: Sequence[int], costs: Sequence[Costs]
) -> Ahead:
    """What it takes by blocks of γ until all rows are done.

    Args:
        acceptance: a.
        length: γ.
        left: how many tokens each row may still draw, int `[B]`.
        costs: C(γ) of 1, 2, 4 rows and so on, to about B.
    """
    by_size = np.array([interpolated(table, length) for table in costs])
    at_end = ends(acceptance, length, left)
    seconds = float(np.diff(at_end, prepend=0.0) @ by_size[_sizes(len(left))])
    if length > 1:  # the last block is cut to what its row has left
        token = (by_size[0] - interpolated(costs[0], 1)) / (length - 1)
        seconds -= float(token) * surplus(acceptance, length)
    return Ahead(float(at_end[-1]), seconds)


def surplus(acceptance: float, length: int) -> float:
    """o = (E₂/E − 1)/2, by how many tokens the last of a row's blocks of γ goes too far.

    Renewal theory's mean, where E₂ = Σ (2i + 1)·aⁱ is the mean square of what a block emits.
    """
    return (_mean_square(acceptance, length) / expected(acceptance, length) - 1.0) / 2.0


def ends(acceptance: float, length: int, left: Sequence[int]) -> np.ndarray:
    """After how many blocks of γ each row is expected to end, from the first one to the last.

    A row with n tokens left needs (n + o)/E blocks, with a standard deviation of
    √(n·(E₂ − E²)/E³), by renewal theory. The j-th last of any k rows ends about where a normal
    law has the share (k − j + 5/8)/(k + 1/4) before it (Blom 1958), and the j-th last of all rows
    no earlier than that of the k that have most left, whichever k: the latest of these is taken.

    Returns:
        float64 `[B]`, rising.
    """
    mean, tokens = expected(acceptance, length), np.sort(left)[::-1]
    variance = max(0.0, _mean_square(acceptance, length) - mean**2)
    rounds = (tokens + surplus(acceptance, length)) / mean
    spread = np.sqrt(tokens * variance / mean**3)
    some = slice(len(tokens))
    counted, normal = (table[some, some] for table in _last_of_rows(2 ** len(left).bit_length()))
    latest = np.where(counted, rounds[:, None] + spread[:, None] * normal, 0.0).max(axis=0)
    return np.maximum(latest, np.ceil(tokens / length))[::-1]


@functools.cache
def _last_of_rows(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """For k down and j across: whether j ≤ k, and where the j-th last of k normal values is."""
    count, last = np.arange(1, rows + 1)[:, None], np.arange(1, rows + 1)
    share = (np.maximum(count - last, 0) + 0.625) / (count + 0.25)
    return last <= count, ndtri(share)


def _mean_square(acceptance: float, length: int) -> float:
    return float(sum((2 * place + 1) * acceptance**place for place in range(length)))


def interpolated(costs: Costs, length: int) -> float:
    """C(γ), for a length between two of the costs on the line that joins them."""
    if length in costs:
        return costs[length]
    lengths = sorted(costs)
    return float(np.interp(length, lengths, [costs[known] for known in lengths]))


def _size(rows: int) -> int:
    """The class of row numbers that cost about the same: ⌊log₂ rows⌉."""
    return round(math.log2(rows))


@functools.cache
def _sizes(rows: int) -> np.ndarray:
    """The sizes of `rows` rows, of one less, and so on to one."""
    return np.array([_size(left) for left in range(rows, 0, -1)])


def assumed_costs(student_bytes: int, teacher_bytes: int) -> Costs:
    """C(γ) = γ·S + T where decoding is bound by reading weights: no clock is asked."""
    return {length: length * student_bytes + teacher_bytes for length in LENGTHS}
