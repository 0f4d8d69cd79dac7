"""The block length: the best under the costs of the rounds drawn, from what was accepted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from trb_mlx.rollout.draft_length import (
    LENGTHS,
    Adaptive,
    DraftLength,
    Fixed,
    assumed_costs,
    ends,
    expected,
    interpolated,
)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.9, 1.0])
def test_expected_tokens_are_the_mean_of_the_geometric_law(acceptance: float) -> None:
    for length in (1, 2, 7):
        ends = [acceptance**k * (1 - acceptance) * (k + 1) for k in range(length)]
        assert expected(acceptance, length) == pytest.approx(
            sum(ends) + acceptance**length * length
        )


def throughout(adaptive: Adaptive, rows: int) -> int:
    """The choice for a batch that stays full."""
    return adaptive.choose([10_000] * rows, refilled=True)


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
        length = throughout(adaptive, rows)
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
    assert throughout(adaptive, 16) >= 8
    follow(adaptive, lambda n: 3 * n, 0.9, 1000)
    gain, lengths = follow(adaptive, lambda n: 3 * n, 0.9, 1000)
    assert gain > 0.96
    assert lengths.most_common(1)[0][0] == 1


def test_without_a_clock_the_choice_follows_acceptance_and_assumed_costs() -> None:
    dear_teacher = Adaptive(assumed_costs(1, 10), timed=False)
    dear_teacher.observe(8, 4, 100_000, 99_000, 1.0)
    assert throughout(dear_teacher, 8) == 1
    dear_teacher.observe(8, 1, 1_000_000, 1_000, 1.0)
    assert throughout(dear_teacher, 8) == max(LENGTHS)
    assert dear_teacher.acceptance == pytest.approx(0.997, abs=0.001)
    cheap_teacher = Adaptive({1: 1.0, 2: 2.5, 4: 6.0}, timed=False)
    for seconds in (9.0, 0.1, 5.0):
        cheap_teacher.observe(8, 1, 100_000, 0, seconds)
        assert throughout(cheap_teacher, 8) == 1
    assert cheap_teacher.costs(8) == cheap_teacher.assumed


def test_costs_are_of_as_many_rows() -> None:
    adaptive = Adaptive(assumed_costs(1, 10))
    follow(adaptive, lambda n: n + 10, 0.9, 300, rows=2)
    follow(adaptive, lambda n: 4 * n, 0.9, 300, rows=64)
    many, few = (Counter(throughout(adaptive, rows) for _ in range(9)) for rows in (60, 2))
    assert many.most_common(1)[0][0] == 1
    assert few.most_common(1)[0][0] >= 8


def test_a_warming_round_is_not_counted_nor_one_that_was_cut_short() -> None:
    adaptive = Adaptive(assumed_costs(1, 10))
    adaptive.observe(8, 1, 8, 0, 100.0)
    assert throughout(adaptive, 8) == 1
    adaptive.observe(8, 1, 8, 0, 1.1)
    adaptive.observe(8, 3, 8, 0, 100.0)
    assert adaptive.costs(8) == pytest.approx({n: (n + 10) / 10 for n in LENGTHS})


def test_a_restored_choice_goes_on_the_same() -> None:
    one = Adaptive(assumed_costs(1, 10))
    follow(one, lambda n: n + 3, 0.7, 321)
    other = Adaptive.restored(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    both = [follow(chooser, lambda n: n + 3, 0.7, 300) for chooser in (one, other)]
    assert both[0] == both[1]


def test_what_version_0_2_0_kept_is_gone_on_with() -> None:
    tables = {"4": {"1": 1.0, "2": 1.3, "8": 2.9}, "16": {"1": 1.0, "2": 1.9, "8": 9.0}}
    restored = Adaptive.restored({"costs": tables, "tokens": 1000.0, "rejected": 100.0})
    assert restored.acceptance == 0.9
    assert throughout(restored, 16) == 1  # which is timed first
    gain, _ = follow(restored, lambda n: n + 10, 0.9, 1000)
    assert gain > 2


def emit(generator: np.random.Generator, acceptance: float, length: int, rows: int) -> np.ndarray:
    """What a block of γ emits in each row, int `[B]`."""
    return np.minimum(generator.geometric(1 - acceptance, rows), length)


def simulated_ends(acceptance: float, length: int, left: list[int]) -> np.ndarray:
    """After how many blocks the rows end, sorted, on average over a thousand batches."""
    generator, batches = np.random.default_rng(0), 1000
    todo, rounds = np.tile(left, (batches, 1)), np.zeros((batches, len(left)))
    while (todo > 0).any():
        rounds += todo > 0
        todo = todo - emit(generator, acceptance, length, todo.size).reshape(todo.shape)
    return np.sort(rounds).mean(axis=0)


@pytest.mark.parametrize("length", [1, 2, 4, 12])
@pytest.mark.parametrize("acceptance", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("left", [[48] * 16, [300] * 3, [7] * 4, [48]])
def test_rows_end_when_they_are_expected_to(
    acceptance: float, length: int, left: list[int]
) -> None:
    """Within 6% for the last one, or a third of a block where only one or two are left."""
    seen, found = simulated_ends(acceptance, length, left), ends(acceptance, length, left)
    assert found[-1] == pytest.approx(seen[-1], abs=0.3, rel=0.06)
    assert found.mean() == pytest.approx(seen.mean(), abs=0.1, rel=0.03)
    if length == 1:
        assert found.tolist() == sorted(left)


@pytest.mark.parametrize("acceptance", [0.5, 0.95])
def test_the_last_of_rows_with_unlike_limits_end_when_they_are_expected_to(
    acceptance: float,
) -> None:
    """Those before end no later than that: what they spare matters less."""
    left = [48, 10, 48, 20]
    seen, found = simulated_ends(acceptance, 12, left), ends(acceptance, 12, left)
    assert found[2:] == pytest.approx(seen[2:], rel=0.03)
    assert (found[:2] < seen[:2]).all()
    assert (np.diff(found) >= 0).all()


Cost = Callable[[int, int], float]  # rows and block length → seconds


def finish(
    chooser: DraftLength, cost: Cost, acceptance: float, rows: int, seed: int = 0, runs: int = 100
) -> float:
    """Seconds until all of `rows` rows have 48 tokens, on average, while no prompt waits."""
    generator, seconds = np.random.default_rng(seed), 0.0
    for _ in range(runs):
        left = np.full(rows, 48)
        while len(left):
            length = min(chooser.choose(left.tolist(), refilled=False), int(left.max()))
            took = cost(len(left), length)
            emitted = emit(generator, acceptance, length, len(left))
            rejected = generator.binomial(int(emitted.sum()), 1 - acceptance)
            chooser.observe(len(left), length, int(emitted.sum()), rejected, took)
            left, seconds = (left - emitted)[left > emitted], seconds + took
    return seconds / runs


COSTS: dict[str, Cost] = {
    "work": lambda rows, length: rows * length,
    "weights": lambda rows, length: 40 + length + 0.1 * rows * length,
    "both": lambda rows, length: (8 + rows) * (length + 1),
    "steps": lambda rows, length: 10 + rows * length,
}


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("name", COSTS)
def test_rows_that_nobody_replaces_are_done_about_as_soon_as_by_the_best_length(
    name: str, rows: int
) -> None:
    cost = COSTS[name]
    fixed = {length: finish(Fixed(length), cost, 0.95, rows) for length in LENGTHS}
    adaptive = Adaptive(assumed_costs(1, 5))
    finish(adaptive, cost, 0.95, rows, seed=1)  # a few hundred rounds to learn from
    took = finish(adaptive, cost, 0.95, rows)
    # Trials of five lengths may cost 5 times TRIAL_SHARE, and both sides are of 100 batches.
    assert took < 1.05 * min(fixed.values())
    assert took < 1.03 * fixed[1]


def test_the_slowest_row_is_waited_for_only_where_no_prompt_waits() -> None:
    """Long blocks give most tokens a second and yet are done later, by the slowest of 16 rows."""
    adaptive = Adaptive({1: 1.0, 12: 0.95 * expected(0.95, 12)}, timed=False)
    adaptive.observe(16, 12, 10_000_000, 500_000, 1.0)
    assert adaptive.choose([48] * 16, refilled=True) == 12
    assert adaptive.choose([48] * 16, refilled=False) == 1
    assert adaptive.choose([48], refilled=False) == 12


def test_a_block_is_no_longer_than_what_is_left() -> None:
    adaptive = Adaptive(assumed_costs(1, 1000), timed=False)
    assert adaptive.choose([3, 1], refilled=False) == 3
    assert adaptive.choose([1], refilled=True) == 1


def test_a_cost_between_two_is_on_their_line() -> None:
    assert interpolated({1: 2.0, 4: 8.0}, 3) == 6.0
    assert interpolated({1: 2.0, 4: 8.0}, 4) == 8.0
