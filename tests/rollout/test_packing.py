"""Groups of rows: every token once, within the limits, and in few shapes when asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trb_mlx.rollout.packing import LENGTH_STEP, pack_rollout, size_class
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey

Sizes = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 150)), min_size=1, max_size=30)


def rollout_of(sizes: list[tuple[int, int]]) -> Rollout:
    """Rows of (prompt, response) lengths whose token ids all differ."""
    jobs, width, next_id = [], max(length for _, length in sizes), 1
    tokens = np.zeros((len(sizes), width), np.int32)
    for row, (prompt, length) in enumerate(sizes):
        ids = tuple(range(next_id, next_id + prompt))
        jobs.append(Job(Prompt(row, "", ids), RolloutKey(0, 0, row, 0)))
        next_id += prompt
        tokens[row, :length] = np.arange(next_id, next_id + length)
        next_id += length
    lengths = np.array([length for _, length in sizes], np.int32)
    return Rollout(jobs, tokens, lengths, np.ones(len(sizes), bool))


@settings(max_examples=40, deadline=None)
@given(Sizes, st.integers(1, 9), st.none() | st.integers(1, 900), st.booleans())
def test_every_response_token_once_beside_the_position_that_predicts_it(
    sizes: list[tuple[int, int]], rows: int, tokens: int | None, buckets: bool
) -> None:
    rollout = rollout_of(sizes)
    seen: list[int] = []
    longest: list[int] = []
    for packed in pack_rollout(rollout, rows, tokens, buckets):
        height, length = packed.ids.shape
        assert height <= rows
        assert tokens is None or height * length <= tokens or height == 1
        targets = np.asarray(packed.flat(rollout.tokens))
        before = np.asarray(packed.pick(packed.ids[..., None])).squeeze(-1)
        assert (before[: packed.count] + 1 == targets[: packed.count]).all()  # ids count upwards
        assert not targets[packed.count :].any()
        seen += targets[: packed.count].tolist()
        longest.append(length)
    assert sorted(seen) == sorted(rollout.tokens[rollout.mask].tolist())
    assert longest == sorted(longest, reverse=True)  # what needs most memory comes first


def test_a_row_longer_than_the_limit_goes_alone() -> None:
    rollout = rollout_of([(5, 100), (5, 20), (5, 20), (5, 20)])
    shapes = [packed.ids.shape for packed in pack_rollout(rollout, 8, 50)]
    assert shapes == [(1, 104), (2, 24), (1, 24)]


def test_few_shapes_whatever_the_lengths() -> None:
    """A run of 60 steps of 32 rollouts up to 1,100 positions compiles few programs."""
    rng = np.random.default_rng(0)
    shapes, padded, real = set(), 0, 0
    for _ in range(60):
        sizes = list(zip(rng.integers(10, 100, 32), rng.integers(1, 1000, 32), strict=True))
        rollout = rollout_of([(int(a), int(b)) for a, b in sizes])
        for packed in pack_rollout(rollout, 8, 4096, buckets=True):
            shapes.add((packed.ids.shape, packed.positions.size))
            padded += packed.positions.size
            real += packed.count
    classes = {size_class(length, LENGTH_STEP) for length in range(1, 1100)}
    assert len({shape for shape, _ in shapes}) <= len(classes) == 17
    assert len(shapes) <= 8 * len(classes)
    assert padded < 1.2 * real


@pytest.mark.parametrize("step", [1, 32, 256])
def test_size_classes_grow_geometrically(step: int) -> None:
    classes = [size_class(value, step) for value in range(1, 5000)]
    assert classes == sorted(classes)
    for value, actual in enumerate(classes, start=1):
        assert actual >= value
        assert actual % step == 0
        assert actual - value < max(step, 0.25 * value + 1)
    assert len(set(classes)) <= 4 * 13


@pytest.mark.parametrize(
    ("step", "over", "most"),
    [(32, 32, 31 / 64), (32, 64, 31 / 96), (32, 96, 31 / 128), (32, 128, 0.2), (256, 1024, 0.2)],
)
def test_padding_is_a_fifth_at_most_but_for_short_rows(step: int, over: int, most: float) -> None:
    shares = [1 - size / size_class(size, step) for size in range(over + 1, 20_000)]
    assert max(shares) <= most
    assert max(shares) > 0.95 * most
