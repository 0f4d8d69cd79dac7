"""The block length: the best under a model of costs, from what was accepted."""

from __future__ import annotations

import json

import pytest

from trb_mlx.config import BehaviorConfig
from trb_mlx.models.pair import Pair
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.draft_length import (
    LENGTHS,
    Adaptive,
    assumed_costs,
    expected,
    measured_costs,
)
from trb_mlx.rollout.speculative import SpeculativeGenerator
from trb_mlx.types import Sampling


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.9, 1.0])
def test_expected_tokens_are_the_mean_of_the_geometric_law(acceptance: float) -> None:
    for length in (1, 2, 7):
        ends = [acceptance**k * (1 - acceptance) * (k + 1) for k in range(length)]
        assert expected(acceptance, length) == pytest.approx(
            sum(ends) + acceptance**length * length
        )


def test_the_choice_follows_acceptance_and_costs() -> None:
    dear_teacher = Adaptive(assumed_costs(1, 10))
    dear_teacher.observe(100_000, 99_000)
    assert dear_teacher.choose(8) == 1
    dear_teacher.observe(1_000_000, 1_000)
    assert dear_teacher.choose(8) == max(LENGTHS)
    assert dear_teacher.acceptance == pytest.approx(0.997, abs=0.001)
    cheap_teacher = Adaptive({8: {1: 1.0, 2: 2.5, 4: 6.0}})
    cheap_teacher.observe(100_000, 0)
    assert cheap_teacher.choose(8) == 1


def test_the_choice_depends_on_the_rows() -> None:
    adaptive = Adaptive({1: {1: 1.0, 8: 1.1}, 64: {1: 1.0, 8: 20.0}})
    assert adaptive.choose(2) == 8
    assert adaptive.choose(60) == 1


def test_a_restored_choice_goes_on_the_same() -> None:
    one = Adaptive({4: {1: 1.0, 2: 1.3, 8: 2.9}, 16: {1: 1.0, 2: 1.9}})
    one.observe(321, 45)
    other = Adaptive.restored(json.loads(json.dumps(one.state())))
    for chooser in (one, other):
        chooser.observe(77, 30)
    assert other.acceptance == one.acceptance
    assert [other.choose(rows) for rows in (1, 9, 99)] == [one.choose(r) for r in (1, 9, 99)]


def test_rounds_are_timed_at_every_length(pair: Pair) -> None:
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=0.1))
    costs = measured_costs(lambda: SpeculativeGenerator(pair, behavior, 0.1, Sampling(8)), 8)
    assert list(costs) == [2, 8]
    for table in costs.values():
        assert tuple(table) == LENGTHS
        assert all(seconds > 0 for seconds in table.values())
