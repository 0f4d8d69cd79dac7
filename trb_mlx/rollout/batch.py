"""The host's side of a rollout: which job is in which row, what it has generated, who is next."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.ops.sampling import row_uniforms
from trb_mlx.rollout.recording import to_host
from trb_mlx.types import Job, Records, Rollout

# Streams of uniforms: for drafts, and for tests and replacements (ops.coupling).
DRAFTS, TESTS = 0, 1


class RolloutBatch:
    """Rows of unfinished rollouts; what they generate is gathered in the jobs' order.

    Attributes:
        jobs: the index of each row's job, int `[B]`.
        last: the token that each reader reads next in each row, int `[R, B]`: once a row has
            generated something it is the same for all.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        max_tokens: int,
        stop_id: int,
        support: int,
        readers: Sequence[bool] = (False,),
    ) -> None:
        """No rows yet: all jobs wait.

        Args:
            jobs: what is to be generated.
            max_tokens: the longest response.
            stop_id: what ends one.
            support: K; records are kept where it is not 0.
            readers: for each model that reads the rows, whether it is the teacher.
        """
        self._all_jobs = jobs
        self._readers = readers
        self._waiting = deque(range(len(jobs)))
        self._max_tokens = max_tokens
        self._stop_id = stop_id
        self._tokens = np.zeros((len(jobs), max_tokens), np.int32)
        self._lengths = np.zeros(len(jobs), np.int32)
        self._stopped = np.zeros(len(jobs), bool)
        self._records = Records.empty(len(jobs), max_tokens, support) if support else None
        self._pending: tuple[np.ndarray, np.ndarray, Mapping[str, mx.array]] | None = None
        self._rounds = self._drafted = 0
        self._uniforms = np.zeros((0, max_tokens, 2, 2), np.float32)
        self.jobs = np.zeros(0, np.int64)
        self.last = np.zeros((len(readers), 0), np.int32)

    def __len__(self) -> int:
        """B, the rows now in the batch."""
        return len(self.jobs)

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens each row has generated, int `[B]`."""
        return self._lengths[self.jobs]

    def admit(self, batch_size: int) -> list[list[tuple[int, ...]]]:
        """Add waiting jobs below the rows, up to `batch_size` of them.

        Returns:
            The new rows' prompts, for each reader its own; nothing where there are no new rows.
        """
        free = min(batch_size - len(self), len(self._waiting))
        if not free:
            return []
        new = [self._waiting.popleft() for _ in range(free)]
        prompts = [
            [self._all_jobs[job].prompt.tokens_for(teacher) for job in new]
            for teacher in self._readers
        ]
        uniforms = [_uniforms(self._all_jobs[job], self._max_tokens) for job in new]
        self._uniforms = np.concatenate([self._uniforms, np.stack(uniforms)])
        self.jobs = np.concatenate([self.jobs, new]).astype(np.int64)
        ends = np.array([[prompt[-1] for prompt in own] for own in prompts], np.int32)
        self.last = np.concatenate([self.last, ends], axis=1)
        return prompts

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits for the place of a row that ends."""
        return bool(self._waiting)

    def has_room(self, batch_size: int) -> bool:
        """Whether `admit` would add a job."""
        return self.has_waiting and len(self) < batch_size

    @property
    def left(self) -> list[int]:
        """How many tokens each row may still generate."""
        left: list[int] = (self._max_tokens - self.lengths).tolist()
        return left

    def uniforms(self, count: int, skipped: int = 0) -> tuple[mx.array, mx.array]:
        """For `count` positions of each row, the next ones but for those that are `skipped`.

        Of drafts, and of tests, each `[B, count, 2]`.
        """
        places = skipped + np.arange(count)
        positions = np.minimum(self.lengths[:, None] + places, self._max_tokens - 1)
        uniforms = self._uniforms[np.arange(len(self))[:, None], positions]
        return mx.array(uniforms[:, :, DRAFTS]), mx.array(uniforms[:, :, TESTS])

    def append(self, tokens: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Append tokens to each row, up to its stop event and its length limit.

        Args:
            tokens: int `[B, T]`, drawn from the behavior policy.
            counts: int `[B]`, how many of them.

        Returns:
            int `[B]`, how many were appended, and the rows that are unfinished, in an order
            in which few change their place: the last ones take the places of those that leave.
        """
        self._rounds += len(self)
        self._drafted += tokens.size
        appended, last, unfinished = [], [], []
        rows = zip(self.jobs.tolist(), tokens.tolist(), counts.tolist(), strict=True)
        for job, drawn, count in rows:  # numpy on arrays so small costs more than a loop
            length = int(self._lengths[job])
            drawn = drawn[: min(count, self._max_tokens - length)]
            if self._stop_id in drawn:
                drawn = drawn[: drawn.index(self._stop_id) + 1]
                self._stopped[job] = True
            self._lengths[job] = length + len(drawn)
            self._tokens[job, length : length + len(drawn)] = drawn
            appended.append(len(drawn))
            last.append(drawn[-1])
            unfinished.append(not self._stopped[job] and self._lengths[job] < self._max_tokens)
        self.last = np.broadcast_to(np.array(last, np.int32), self.last.shape)
        return np.array(appended), _closed_up(unfinished)

    def record(self, counts: np.ndarray, values: Mapping[str, mx.array]) -> None:
        """Keep what is recorded of the tokens just appended: by name `[N, …]`, row by row.

        The arrays may still be on their way: they are read at the next call.
        """
        mx.async_eval(values)  # type: ignore[no-untyped-call]
        begins = np.repeat(self.lengths - counts.cumsum(), counts)  # of each row, less those before
        positions = begins + np.arange(len(begins))
        self._read_pending()
        self._pending = np.repeat(self.jobs, counts), positions, values

    def drop(self, rows: int, length: int) -> None:
        """Count a round of `rows` rows whose `length` tokens nobody reads."""
        self._rounds += rows
        self._drafted += rows * length

    def filter(self, rows: list[int]) -> None:
        """Keep the listed rows only."""
        self.jobs, self.last, self._uniforms = (
            self.jobs[rows],
            self.last[:, rows],
            self._uniforms[rows],
        )

    def result(self, temperature: float) -> Rollout:
        """All rollouts, cut to the longest."""
        self._read_pending()
        width = max(int(self._lengths.max(initial=1)), 1)
        return Rollout(
            list(self._all_jobs),
            self._tokens[:, :width],
            self._lengths,
            self._stopped,
            None if self._records is None else self._records.cut(width),
            temperature,
            self._rounds,
            self._drafted,
        )

    def _read_pending(self) -> None:
        if self._pending is not None:
            assert self._records is not None
            jobs, positions, values = self._pending
            for name, array in values.items():
                self._records.put(name, jobs, positions, to_host(array))
        self._pending = None


def _closed_up(unfinished: list[bool]) -> list[int]:
    """The unfinished rows; those behind the first n take the places that are free among them."""
    rows = [row for row, goes_on in enumerate(unfinished) if goes_on]
    moved = iter([row for row in rows if row >= len(rows)])
    return [row if unfinished[row] else next(moved) for row in range(len(rows))]


def _uniforms(job: Job, length: int) -> np.ndarray:
    """`[length, streams, 2]`: what a job draws depends on its key and the position alone."""
    key = job.key
    streams = [
        row_uniforms(key.seed, key.step, key.prompt, key.rollout, length, stream)
        for stream in (DRAFTS, TESTS)
    ]
    return np.stack(streams, axis=1)
