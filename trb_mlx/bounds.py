"""How much of what is as wide as the vocabulary exists at once: one number bounds every array.

Solver, records, losses, drafts, scoring and evaluation take so many rows at a time that no array
[rows, V] has more than `MOST_ENTRIES` entries, whatever the batch. docs/models.md says what a run
holds with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from trb_mlx.backend import on_gpu

# Entries (rows × V) of one array: 64 MiB of float32, 110 rows of 151,936 ids. A kernel over so
# many takes a GPU far longer than its launch.
MOST_ENTRIES = 2**24
# What is computed from logits is taken in smaller parts on a CPU, which stay in its cache: for
# larger arrays MLX gets fresh pages, which cost as much as the work.
CPU_ENTRIES = 2**19
# Float32 logits of one chunk of a loss, both models' where both are formed (docs/log.md: about six
# times this is held at once; smaller chunks read the heads more often).
CHUNK_BYTES = 48 * 2**20

_most_entries = ContextVar("most_entries", default=MOST_ENTRIES)


@contextmanager
def bounded(mebibytes: float) -> Iterator[None]:
    """Inside, an array [rows, V] takes at most so many MiB of float32."""
    token = _most_entries.set(int(mebibytes * 2**20) // 4)
    try:
        yield
    finally:
        _most_entries.reset(token)


def most_rows(vocab: int) -> int:
    """The most rows of V entries that any array has: those that are decoded at once, too."""
    return max(1, _most_entries.get() // vocab)


def rows_at_once(vocab: int) -> int:
    """How many rows are blended, drawn and recorded at a time on the default device."""
    most = most_rows(vocab)
    return most if on_gpu() else min(most, max(1, CPU_ENTRIES // vocab))


def row_groups(rows: int, vocab: int) -> list[slice]:
    """So many rows in groups of `rows_at_once`."""
    count = rows_at_once(vocab)
    return [slice(start, min(start + count, rows)) for start in range(0, rows, count)]


def chunk_tokens(vocab: int, models: int = 1, chunk_bytes: int = CHUNK_BYTES) -> int:
    """n, the tokens whose float32 logits over `vocab` ids of `models` models fill a chunk."""
    return max(1, min(chunk_bytes, 4 * _most_entries.get()) // (4 * vocab * models))
