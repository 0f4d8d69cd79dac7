"""pass@k from c right answers among n, without bias."""

from __future__ import annotations

import numpy as np


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> np.ndarray:
    """The chance that at least one of k answers drawn from the n is right, problem by problem.

    1 − C(n − c, k)/C(n, k), an unbiased estimate of 1 − (1 − p)^k (Chen et al. 2021,
    arXiv 2107.03374); at k = 1 it is c/n. No binomial is formed: the ratio is the product of
    (1 − k/i) over i = n − c + 1 … n, whose factor at i = k is 0 where n − c < k.

    Args:
        correct: int `[P]`, c of each problem.
        samples: n, the same for all problems.
        k: 1 ≤ k ≤ n.

    Returns:
        float64 `[P]` in [0, 1].

    Raises:
        ValueError: k or some c is out of range.
    """
    correct = np.asarray(correct)
    if not 1 <= k <= samples or correct.min(initial=0) < 0 or correct.max(initial=0) > samples:
        raise ValueError(f"expected 1 <= k <= n and 0 <= c <= n, found k = {k}, n = {samples}.")
    factors = np.maximum(1.0 - k / np.arange(samples, 0, -1), 0.0)
    by_count = 1.0 - np.concatenate([[1.0], np.cumprod(factors)])
    if k == 1:
        by_count = np.arange(samples + 1) / samples  # exactly, without the product's rounding
    return by_count[correct]
