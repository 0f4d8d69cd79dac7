"""Schedules: exact ends, monotone between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.ops.schedules import (
    growing_horizon,
    learning_rate,
    linear_decay,
    rising_temperature,
)


@given(st.floats(1e-6, 10), st.integers(1, 500))
def test_the_budget_falls_linearly_to_exactly_zero(budget: float, horizon: int) -> None:
    values = [linear_decay(step, budget, horizon) for step in range(horizon + 2)]
    assert values[0] == budget
    assert values[horizon] == values[horizon + 1] == 0.0
    assert all(value > 0 for value in values[:horizon])
    for k, value in enumerate(values[:horizon]):
        assert value == pytest.approx(budget * (1 - k / horizon))


def test_no_warm_up_means_no_budget() -> None:
    assert linear_decay(0, 0.1, 0) == 0.0


@given(st.floats(0.01, 3), st.integers(1, 500))
def test_the_temperature_moves_linearly_to_exactly_one(start: float, horizon: int) -> None:
    values = [rising_temperature(step, start, horizon) for step in range(horizon + 2)]
    assert values[0] == start
    assert values[horizon] == values[horizon + 1] == 1.0
    for k, value in enumerate(values[:horizon]):
        assert value == pytest.approx(start + (1 - start) * k / horizon)
    assert rising_temperature(0, start, 0) == 1.0


@given(st.integers(0, 100))
def test_the_learning_rate_rises_to_its_peak_and_stays(warmup: int) -> None:
    values = [learning_rate(step, 2e-4, warmup) for step in range(warmup + 3)]
    assert all(0 < value <= 2e-4 for value in values)
    assert values == sorted(values)
    assert values[max(warmup - 1, 0) :] == [2e-4] * (warmup + 3 - max(warmup - 1, 0))


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 60))
def test_a_horizon_grows_from_its_start_to_the_limit(start: int, limit: int, steps: int) -> None:
    lengths = [growing_horizon(step, start, limit, steps) for step in range(steps + 3)]
    assert lengths == sorted(lengths)
    assert lengths[0] == min(start, limit)
    assert lengths[steps:] == [limit] * 3
