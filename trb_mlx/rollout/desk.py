"""The host's side of a rollout: which job sits in which row, what it has drawn, who comes next."""

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


class Desk:
    """Seats jobs in rows, takes what the rows draw, and gathers it in the jobs' order.

    Attributes:
        rows: the job in each row, int `[B]`.
        drawn: how many tokens each row has drawn, int `[B]`.
        last: the token that each row's models read next, int `[B]`.
    """

    def __init__(
        self, jobs: Sequence[Job], max_tokens: int, stop_id: int, records: Records | None
    ) -> None:
        """All jobs wait; `records` are filled where there are any."""
        self._jobs = jobs
        self._waiting = deque(range(len(jobs)))
        self._length = max_tokens
        self._stop_id = stop_id
        self._tokens = np.zeros((len(jobs), max_tokens), np.int32)
        self._lengths = np.zeros(len(jobs), np.int32)
        self._stopped = np.zeros(len(jobs), bool)
        self._records = records
        self._rounds = self._drafted = 0
        self._pending: list[tuple[np.ndarray, np.ndarray, Mapping[str, mx.array]]] = []
        self.rows = np.zeros(0, np.int64)
        self.drawn = np.zeros(0, np.int32)
        self.last = np.zeros(0, np.int32)
        self._uniforms = np.zeros((0, max_tokens, 2, 2), np.float32)

    def seat(self, rows_at_once: int) -> list[tuple[int, ...]]:
        """Fill the free rows with waiting jobs, below the others; their prompts."""
        free = min(rows_at_once - len(self.rows), len(self._waiting))
        new = [self._waiting.popleft() for _ in range(free)]
        if not new:
            return []
        prompts = [self._jobs[job].prompt.tokens for job in new]
        noise = [_uniforms(self._jobs[job], self._length) for job in new]
        self.rows = np.concatenate([self.rows, new]).astype(np.int64)
        self.drawn = np.concatenate([self.drawn, np.zeros(free, np.int32)])
        self.last = np.concatenate([self.last, [prompt[-1] for prompt in prompts]]).astype(np.int32)
        self._uniforms = np.concatenate([self._uniforms, np.stack(noise)])
        return prompts

    def most_left(self) -> int:
        """The most tokens that any row may still draw."""
        return self._length - int(self.drawn.min())

    def uniforms(self, count: int) -> tuple[mx.array, mx.array]:
        """For each row's next `count` positions: of drafts, and of tests, each `[B, count, 2]`."""
        places = np.minimum(self.drawn[:, None] + np.arange(count), self._length - 1)
        found = self._uniforms[np.arange(len(self.rows))[:, None], places]
        return mx.array(found[:, :, DRAFTS]), mx.array(found[:, :, TESTS])

    def take(self, emitted: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Keep each row's tokens up to its stop event and its length limit.

        Args:
            emitted: int `[B, T]`, drawn from the behavior policy.
            counts: int `[B]`, how many of them.

        Returns:
            int `[B]`, how many were kept, and the rows that go on.
        """
        self._rounds += len(self.rows)
        self._drafted += emitted.size
        places = np.arange(emitted.shape[1])
        counts = np.minimum(counts, self._length - self.drawn)
        stops = (emitted == self._stop_id) & (places < counts[:, None])
        stopped = stops.any(axis=1)
        counts = np.where(stopped, stops.argmax(axis=1) + 1, counts)
        taken = places < counts[:, None]
        at = (self.drawn[:, None] + places)[taken]
        self._tokens[np.repeat(self.rows, counts), at] = emitted[taken]
        self.drawn = self.drawn + counts.astype(np.int32)
        self._lengths[self.rows] = self.drawn
        self._stopped[self.rows] = stopped
        self.last = emitted[np.arange(len(counts)), counts - 1].astype(np.int32)
        return counts, np.flatnonzero(~stopped & (self.drawn < self._length)).tolist()

    def record(self, counts: np.ndarray, values: Mapping[str, mx.array]) -> None:
        """Keep what is known of the tokens just taken; `[N, …]`, row by row.

        The arrays may still be on their way: they are read at the next call.
        """
        begins = np.repeat(self.drawn - counts.cumsum(), counts)  # of each row, less those before
        places = begins + np.arange(len(begins))
        self._settle()
        self._pending.append((np.repeat(self.rows, counts), places, values))

    def keep(self, rows: list[int]) -> None:
        """Free every row that is not listed."""
        self.rows, self.drawn = self.rows[rows], self.drawn[rows]
        self.last = self.last[rows]
        self._uniforms = self._uniforms[rows]

    def result(self, temperature: float) -> Rollout:
        """All rollouts, cut to the longest."""
        self._settle()
        width = max(int(self._lengths.max(initial=1)), 1)
        records = None if self._records is None else self._records.cut(width)
        tokens = self._tokens[:, :width]
        return Rollout(
            list(self._jobs),
            tokens,
            self._lengths,
            self._stopped,
            records,
            temperature,
            self._rounds,
            self._drafted,
        )

    def _settle(self) -> None:
        for jobs, places, values in self._pending:
            assert self._records is not None
            for name, array in values.items():
                self._records.put(name, jobs, places, to_host(array))
        self._pending = []


def _uniforms(job: Job, length: int) -> np.ndarray:
    """`[length, streams, 2]`: what a job draws depends on its key and the position alone."""
    key = job.key
    streams = [
        row_uniforms(key.seed, key.step, key.prompt, key.rollout, length, stream)
        for stream in (DRAFTS, TESTS)
    ]
    return np.stack(streams, axis=1)
