"""The group that a process belongs to: meetings of hosts, and sums of arrays."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from trb_mlx.errors import RunError, UserError
from trb_mlx.interrupts import Interrupted, Stopped, stoppable
from trb_mlx.ranks.channel import Channel
from trb_mlx.ranks.engine import Engine
from trb_mlx.ranks.launch import launched, rank_timeout
from trb_mlx.ranks.rendezvous import call_hub, connect

# So long a signal waits for word of a lost rank: a launcher sends it to all when one has ended.
_REASON_S = 1.0


class Group:
    """A process by itself: every meeting ends at once, every sum is its one part.

    Attributes:
        rank: this process's, from 0.
        size: how many there are.
        neighbours: how many of them are on this machine, itself included.
        seconds: spent since they were last taken: `wait` at meetings, `reduce` in collectives.
    """

    rank = 0
    size = 1
    neighbours = 1

    def __init__(self) -> None:
        """A group of one."""
        self.seconds = {"wait": 0.0, "reduce": 0.0}

    @property
    def leads(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0

    def describe(self) -> str:
        """The group in a sentence, or nothing where it is one process."""
        return ""

    def gather_bytes(self, what: str, content: bytes) -> list[bytes]:
        """What every rank gives, in order of rank.

        Raises:
            Interrupted: another rank has ended, or was lost.
        """
        return [content]

    def sum(self, array: mx.array) -> mx.array:
        """The sum of the ranks' arrays, of one shape and float32, in an order of MLX's choice."""
        return array

    def stack(self, array: mx.array) -> mx.array:
        """The ranks' arrays `[…]`, of one shape, as `[R, …]`."""
        return array[None]

    def gather(self, what: str, value: Any) -> list[Any]:
        """What every rank gives, as JSON holds it."""
        if self.size == 1:
            return [value]
        parts = self.gather_bytes(what, json.dumps(value).encode())
        return [json.loads(part) for part in parts]

    def share(self, what: str, value: Any) -> Any:
        """What rank 0 gives, on every rank."""
        return self.gather(what, value if self.leads else None)[0]

    def gather_arrays(
        self, what: str, arrays: Mapping[str, np.ndarray]
    ) -> list[Mapping[str, np.ndarray]]:
        """What every rank gives: arrays by name."""
        if self.size == 1:
            return [arrays]
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        parts = self.gather_bytes(what, buffer.getvalue())
        return [dict(np.load(io.BytesIO(part), allow_pickle=False)) for part in parts]

    def deal(self, costs: Sequence[float]) -> list[list[int]]:
        """Which of the items each rank takes; see `deal`."""
        return deal(costs, self.size)

    def take_seconds(self) -> dict[str, float]:
        """`seconds`, which begin again from 0."""
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken


ALONE = Group()


def deal(costs: Sequence[float], hands: int) -> list[list[int]]:
    """Items dealt to `hands` by their costs, the dearest first, each to the hand with least.

    >>> deal([1, 5, 2, 2], 2)
    [[1], [0, 2, 3]]

    Returns:
        The items of each hand, in their order; equal costs go round.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    load = [0.0] * hands
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        hand = min(range(hands), key=lambda hand: (load[hand], hand))
        dealt[hand].append(item)
        load[hand] += costs[item]
    return [sorted(items) for items in dealt]


class Ranks(Group):
    """One of several processes, joined through MLX's back end and a channel between hosts."""

    def __init__(
        self, rank: int, size: int, backend: str, engine: Engine, group: Any, channel: Channel
    ) -> None:
        """`group` is MLX's; `joined` makes one of these."""
        super().__init__()
        self.rank, self.size, self.channel = rank, size, channel
        self.neighbours = channel.hosts.count(channel.hosts[rank])
        self._backend, self._engine, self._group = backend, engine, group

    def describe(self) -> str:
        """Who they are, and when one is given up."""
        return (
            f"{self.size} ranks over {self._backend}: {', '.join(self.channel.names)}; one that is "
            f"not heard of for {rank_timeout():.0f} s ends all"
        )

    def gather_bytes(self, what: str, content: bytes) -> list[bytes]:
        """What every rank gives, in order of rank."""
        begun = time.perf_counter()
        parts = self.channel.gather(what, content)
        self.seconds["wait"] += time.perf_counter() - begun
        return parts

    def sum(self, array: mx.array) -> mx.array:
        """MLX's all_sum, once all ranks are there."""
        return self._collect(mx.distributed.all_sum, array)

    def stack(self, array: mx.array) -> mx.array:
        """MLX's all_gather, once all ranks are there."""
        return self._collect(mx.distributed.all_gather, array[None])

    def _collect(self, operation: Callable[..., mx.array], array: mx.array) -> mx.array:
        self.gather_bytes("the reduction", b"")
        begun = time.perf_counter()

        def waiting(wait: Callable[[float], bool]) -> None:
            self.channel.watch(wait, "the reduction")

        try:
            result = self._engine.collect(operation, array, self._group, self._backend, waiting)
        except RuntimeError as error:  # its connections are others than the channel's
            self.channel.failed.wait(rank_timeout())
            self.channel.check()
            raise RunError(f"the reduction over {self._backend} failed: {error}.") from error
        self.seconds["reduce"] += time.perf_counter() - begun
        return result


def _code(error: BaseException) -> int:
    """What the command exits with."""
    if isinstance(error, Interrupted):
        return error.code
    return 2 if isinstance(error, UserError) else 1


@contextmanager
def joined() -> Iterator[Group]:
    """The group that the launcher made of this process and others; without one, a group of one.

    An error that ends this rank inside ends all others.

    Raises:
        UserError: the launcher's group is not the one that MLX's back end made.
        RunError: the ranks do not find each other.
        Interrupted: another rank has ended, or was lost.
    """
    launch = launched()
    if launch.size == 1:
        yield ALONE
        return
    timeout, engine = rank_timeout(), Engine()
    group = connect(launch, engine, timeout)
    with stoppable():
        channel = Channel(launch.rank, call_hub(launch, engine, group, timeout), timeout)
        ranks = Ranks(launch.rank, launch.size, launch.backend, engine, group, channel)
        try:
            yield ranks
            ranks.gather("the end", None)
        except BaseException as error:
            channel.stop(error)
            engine.code = _code(error)
            if isinstance(error, Interrupted) and not isinstance(error, Stopped):
                channel.failed.wait(_REASON_S)
                if isinstance(channel.error, Stopped):
                    channel.error.advice = error.advice
                    raise channel.error from error
            raise
        finally:
            channel.close()
