"""pass@k: equal to counting all k-subsets, unbiased, and stable where binomials overflow."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from trb_mlx.evaluation.passk import pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_it_is_the_share_of_subsets_with_a_right_answer(samples: int) -> None:
    for k in range(1, samples + 1):
        for correct in range(samples + 1):
            right = [index < correct for index in range(samples)]
            subsets = [any(chosen) for chosen in combinations(right, k)]
            found = pass_at_k(np.array([correct]), samples, k)[0]
            assert found == pytest.approx(np.mean(subsets), abs=1e-12)


def test_it_is_stable_at_the_papers_sizes() -> None:
    samples, counts = 512, np.arange(513)
    for k in (1, 2, 32, 256, 511, 512):
        exact = [1 - comb(samples - c, k) / comb(samples, k) for c in range(samples + 1)]
        found = pass_at_k(counts, samples, k)
        np.testing.assert_allclose(found, exact, atol=1e-12)
        assert (np.diff(found) >= 0).all()
        assert found[0] == 0.0
        assert found[-1] == 1.0


def test_it_is_unbiased() -> None:
    samples, rate = 6, 0.3
    counts = np.arange(samples + 1)
    weights = [comb(samples, c) * rate**c * (1 - rate) ** (samples - c) for c in counts]
    for k in range(1, samples + 1):
        expected = 1 - (1 - rate) ** k
        assert pass_at_k(counts, samples, k) @ weights == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("counts", "samples", "k"), [([0], 4, 5), ([0], 4, 0), ([5], 4, 1)])
def test_counts_out_of_range_are_refused(counts: list[int], samples: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k <= n"):
        pass_at_k(np.array(counts), samples, k)
