"""The block length: the best under the costs of the rounds drawn, from what was accepted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from trb_mlx.rollout.draft_length import LENGTHS, Adaptive, assumed_costs, expected


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.9, 1.0])
def test_expected_tokens_are_the_mean_of_the_geometric_law(acceptance: float) -> None:
    for length in (1, 2, 7):
        ends = [acceptance**k * (1 - acceptance) * (k + 1) for k in range(length)]
        assert expected(acceptance, length) == pytest.approx(
            sum(ends) + acceptance**length * length
        )


def follow(
    adaptive: Adaptive,
    cost: Callable[[int], float],
    acceptance: float,
    rounds: int,
    rows: int = 16,
) -> tuple[float, Counter[int]]:
    """Tokens a second and row under a simulated clock, over token by token's; and the lengths.

    A round's seconds are within a tenth, a length's first takes half as much again.
    """
    generator = np.random.default_rng(0)
    lengths: Counter[int] = Counter()
    tokens = seconds = 0.0
    for _ in range(rounds):
        length = adaptive.choose(rows)
        took = cost(length) * float(generator.uniform(0.9, 1.1)) * (1.0 if lengths[length] else 1.5)
        kept = np.minimum(generator.geometric(1 - acceptance, rows) - 1, length)
        emitted = np.minimum(kept + 1, length)
        adaptive.observe(rows, length, int(emitted.sum()), int((emitted - kept).sum()), took)
        lengths[length] += 1
        tokens, seconds = tokens + float(emitted.mean()), seconds + took
    return tokens / seconds * cost(1), lengths


@pytest.mark.parametrize(
    "cost", [lambda n: n, lambda n: n + 1, lambda n: n + 10], ids=["work", "both", "weights"]
)
@pytest.mark.parametrize("acceptance", [0.02, 0.5, 0.8, 0.97])
def test_the_best_length_is_learned_from_the_rounds(
    cost: Callable[[int], float], acceptance: float
) -> None:
    gains = {n: expected(acceptance, n) / cost(n) * cost(1) for n in LENGTHS}
    best = max(gains.values())
    adaptive = Adaptive(assumed_costs(1, 10))
    gain, lengths = follow(adaptive, cost, acceptance, 3000)
    assert gain > 0.96 * best
    (favourite, _), *_ = lengths.most_common()
    assert gains[favourite] > 0.96 * best
    assert adaptive.acceptance == pytest.approx(acceptance, abs=0.1)


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.95])
def test_where_blocks_do_not_pay_little_is_lost_to_token_by_token(acceptance: float) -> None:
    for assumed in (assumed_costs(1, 1), assumed_costs(1, 100)):
        gain, lengths = follow(Adaptive(assumed), lambda n: 1.2 * n, acceptance, 4000)
        assert gain > 0.97
        assert all(lengths[n] for n in LENGTHS)  # each was tried


def test_costs_that_change_are_followed() -> None:
    adaptive = Adaptive(assumed_costs(1, 10))
    follow(adaptive, lambda n: n + 10, 0.9, 500)
    assert adaptive.choose(16) >= 8
    follow(adaptive, lambda n: 3 * n, 0.9, 1000)
    gain, lengths = follow(adaptive, lambda n: 3 * n, 0.9, 1000)
    assert gain > 0.96
    assert lengths.most_common(1)[0][0] == 1


def test_without_a_clock_the_choice_follows_acceptance_and_assumed_costs() -> None:
    dear_teacher = Adaptive(assumed_costs(1, 10), timed=False)
    dear_teacher.observe(8, 4, 100_000, 99_000, 1.0)
    assert dear_teacher.choose(8) == 1
    dear_teacher.observe(8, 1, 1_000_000, 1_000, 1.0)
    assert dear_teacher.choose(8) == max(LENGTHS)
    assert dear_teacher.acceptance == pytest.approx(0.997, abs=0.001)
    cheap_teacher = Adaptive({1: 1.0, 2: 2.5, 4: 6.0}, timed=False)
    for seconds in (9.0, 0.1, 5.0):
        cheap_teacher.observe(8, 1, 100_000, 0, seconds)
        assert cheap_teacher.choose(8) == 1
    assert cheap_teacher.costs(8) == cheap_teacher.assumed


def test_costs_are_of_as_many_rows() -> None:
    adaptive = Adaptive(assumed_costs(1, 10))
    follow(adaptive, lambda n: n + 10, 0.9, 300, rows=2)
    follow(adaptive, lambda n: 4 * n, 0.9, 300, rows=64)
    many, few = (Counter(adaptive.choose(rows) for _ in range(9)) for rows in (60, 2))
    assert many.most_common(1)[0][0] == 1
    assert few.most_common(1)[0][0] >= 8


def test_a_warming_round_is_not_counted_nor_one_that_was_cut_short() -> None:
    adaptive = Adaptive(assumed_costs(1, 10))
    adaptive.observe(8, 1, 8, 0, 100.0)
    assert adaptive.choose(8) == 1
    adaptive.observe(8, 1, 8, 0, 1.1)
    adaptive.observe(8, 3, 8, 0, 100.0)
    assert adaptive.costs(8) == pytest.approx({n: (n + 10) / 10 for n in LENGTHS})


def test_a_restored_choice_goes_on_the_same() -> None:
    one = Adaptive(assumed_costs(1, 10))
    follow(one, lambda n: n + 3, 0.7, 321)
    other = Adaptive.restored(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    ends = [follow(chooser, lambda n: n + 3, 0.7, 300) for chooser in (one, other)]
    assert ends[0] == ends[1]


def test_what_version_0_2_0_kept_is_gone_on_with() -> None:
    tables = {"4": {"1": 1.0, "2": 1.3, "8": 2.9}, "16": {"1": 1.0, "2": 1.9, "8": 9.0}}
    restored = Adaptive.restored({"costs": tables, "tokens": 1000.0, "rejected": 100.0})
    assert restored.acceptance == 0.9
    assert restored.choose(16) == 1  # which is timed first
    gain, _ = follow(restored, lambda n: n + 10, 0.9, 1000)
    assert gain > 2
