"""Intervals and AUROC, against brute force and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.evaluation.intervals import Interval
from trb_mlx.report.measures import auroc, mean_interval, paired_gain, wilson


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_ordered_pairs(rollouts: list[tuple[int, bool]]) -> None:
    right = [score for score, good in rollouts if good]
    wrong = [score for score, good in rollouts if not good]
    found = auroc([float(score) for score, _ in rollouts], [float(good) for _, good in rollouts])
    if not right or not wrong:
        assert found is None
        return
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in right for b in wrong]
    assert found is not None
    assert found.value == pytest.approx(sum(wins) / len(wins))
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_a_perfect_score_of_few_rollouts_leaves_doubt() -> None:
    few, many = (auroc([0.0] * n + [1.0] * n, [0.0] * n + [1.0] * n) for n in (2, 100))
    assert few is not None
    assert many is not None
    assert few.value == many.value == few.high == 1.0
    assert few.low < 0.6 < 0.95 < many.low


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_the_interval_of_auroc_covers_the_truth(shift: float) -> None:
    """P(N(shift, 1) > N(0, 1)) = Φ(shift/√2); 400 draws of 25 right and 25 wrong rollouts."""
    from math import erf

    truth = 0.5 * (1 + erf(shift / 2))
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        scores = np.concatenate([rng.normal(shift, 1, 25), rng.normal(0, 1, 25)])
        found = auroc(scores.tolist(), [1.0] * 25 + [0.0] * 25)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert covered / 400 >= 0.92


def test_wilson_contains_the_share_and_narrows() -> None:
    share = np.array([0.0, 0.086, 0.5, 1.0])
    low, high = wilson(share, 128)
    assert ((low <= share + 1e-9) & (share <= high + 1e-9)).all()
    assert (low >= -1e-9).all()
    assert (high <= 1 + 1e-9).all()
    assert ((high - low) < np.subtract(*wilson(share, 16)[::-1])).all()
    # Newcombe (1998): 15 of 148 gives 0.0624 to 0.1605.
    assert [float(end) for end in wilson(np.array(15 / 148), 148)] == pytest.approx(
        [0.0624, 0.1605], abs=1e-4
    )


def test_a_paired_gain_uses_the_pairs() -> None:
    before, after = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    gain = paired_gain(after, before)
    spread = 1.959964 * np.std([1, 0, 1, 0], ddof=1) / 2
    assert gain == Interval(0.5, pytest.approx(0.5 - spread), pytest.approx(0.5 + spread))
    assert mean_interval([2.0]) == Interval(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="shorter"):
        paired_gain([1.0], before)
