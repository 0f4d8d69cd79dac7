"""The batch: rows are never idle while a job waits, and each keeps to its own end."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trb_mlx.rollout.batch import RolloutBatch
from trb_mlx.types import Job, Prompt, RolloutKey

STOP = 9


def job(number: int) -> Job:
    return Job(Prompt(number, "", (number + 1, 5)), RolloutKey(0, 0, number, 0))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_every_job_gets_its_own_tokens(
    lengths: list[int], batch_size: int, block: int, seed: int
) -> None:
    """Jobs that stop after so many tokens, or at the limit of 6; rounds that emit 1 to T."""
    limit, rng = 6, np.random.default_rng(seed)
    batch = RolloutBatch([job(n) for n in range(len(lengths))], limit, STOP, 0)
    appended: list[list[int]] = [[] for _ in lengths]
    while True:
        batch.admit(batch_size)
        if not len(batch.jobs):
            break
        waiting = len(lengths) - len([tokens for tokens in appended if tokens]) > len(batch.jobs)
        assert len(batch.jobs) == batch_size or not waiting
        emitted = np.zeros((len(batch.jobs), block), np.int32)
        for row, number in enumerate(batch.jobs):
            for place in range(block):
                position = batch.lengths[row] + place
                emitted[row, place] = STOP if position + 1 == lengths[number] else position % 8
        before = batch.lengths.copy()
        rows = batch.jobs.copy()
        counts, unfinished = batch.append(emitted, rng.integers(1, block + 1, len(rows)))
        for row, number in enumerate(rows):
            assert counts[row] <= block
            assert batch.lengths[row] == before[row] + counts[row]
            appended[number] += emitted[row, : counts[row]].tolist()
        # Whatever leaves, each other row keeps its place, unless it moves up into a free one.
        assert all(row == place or place not in unfinished for place, row in enumerate(unfinished))
        assert all(row >= place for place, row in enumerate(unfinished))
        batch.filter(unfinished)
    rollout = batch.result(1.0)
    for number, length in enumerate(lengths):
        assert rollout.response(number) == appended[number]
        assert rollout.lengths[number] == min(length, limit)
        assert rollout.stopped[number] == (length <= limit)
        assert (STOP in rollout.response(number)) == rollout.stopped[number]


def test_uniforms_belong_to_the_position() -> None:
    """Whatever was read before, a position has its own draws; other jobs have others."""
    one, other = (RolloutBatch([job(3)], 8, STOP, 0) for _ in range(2))
    for batch in (one, other):
        batch.admit(1)
    whole = [np.asarray(part) for part in one.uniforms(6)]
    other.append(np.array([[1, 2, 3]], np.int32), np.array([2]))
    later = [np.asarray(part) for part in other.uniforms(4)]
    for all_, part in zip(whole, later, strict=True):
        np.testing.assert_array_equal(all_[:, 2:6], part)
    assert not (whole[0] == whole[1]).any()
    third = RolloutBatch([job(4)], 8, STOP, 0)
    third.admit(1)
    assert not (np.asarray(third.uniforms(6)[0]) == whole[0]).any()
