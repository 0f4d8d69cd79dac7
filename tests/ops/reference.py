"""The trust region in float64, and rows that are hard on a solver."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

SUPPORT_FLOOR = -174.0


def normalize(logits: np.ndarray) -> np.ndarray:
    """Log-softmax in float64."""
    logits = logits.astype(np.float64)
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def blend(student: np.ndarray, teacher: np.ndarray, weight: float) -> np.ndarray:
    """log μ_β of one row, in float64."""
    if weight == 0.0:
        return student
    outside = (student < SUPPORT_FLOOR) | (teacher == -np.inf)
    with np.errstate(invalid="ignore"):
        return normalize(np.where(outside, -np.inf, (1 - weight) * student + weight * teacher))


def kl(own: np.ndarray, reference: np.ndarray) -> float:
    """KL of two rows of log-probs, in float64 and without cancellation."""
    base, mass = np.exp(reference), np.exp(own)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(mass > 0, own - reference, 0.0)
        near = base * (gap * np.exp(gap) - np.expm1(gap))
        far = np.where(mass > 0, mass * gap, 0.0) - mass + base
    return float(np.where(mass == 0, base, np.where(np.abs(gap) < 1, near, far)).sum())


def kl_at(student: np.ndarray, teacher: np.ndarray, weight: float) -> float:
    """KL(μ_β ‖ π_S) of float32 rows, renormalised in float64."""
    student, teacher = normalize(student), normalize(teacher)
    return kl(blend(student, teacher, weight), student)


def language_model_row(rng: np.random.Generator, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Zipf-like student logits, and a teacher that moves all of them."""
    logits = -rng.uniform(0.8, 1.5) * np.log(np.arange(1, vocab + 1)) * rng.choice([1, 2, 4])
    logits = rng.permutation(logits) + rng.normal(size=vocab) * rng.choice([0.5, 1, 2])
    return logits, logits + rng.normal(size=vocab) * rng.choice([0.1, 0.5, 1, 3])


def hard_rows(rng: np.random.Generator, vocab: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """One row each of what makes KL(β) quadratic, exponential, saturating or all in turn."""
    normal = rng.normal(size=vocab)
    killed, raised, mixed = normal.copy(), normal.copy(), 2 * normal
    killed[np.argsort(-normal)[: rng.integers(1, 20)]] -= rng.choice([3, 10, 30, 100])
    sharp = normal + 12.0 * (np.arange(vocab) == 0)
    raised = sharp + rng.choice([5, 10, 20, 40]) * (np.arange(vocab) == rng.integers(1, vocab))
    mixed[np.argsort(-normal)[: rng.integers(1, 5)]] -= rng.choice([5, 20])
    mixed[rng.integers(0, vocab, 3)] += rng.choice([5, 15, 30])
    gaps = rng.uniform(-40, 40, 2), rng.uniform(-300, 300, 2)
    few = [rng.normal(size=8) * rng.choice([1, 5, 20, 80]) for _ in range(2)]
    return [
        ("language model", *language_model_row(rng, vocab)),
        ("independent", normal * rng.choice([1, 3, 10]), rng.normal(size=vocab) * 10),
        ("ruled out", normal, killed),
        ("raised", sharp, raised),
        ("both", 2 * normal, mixed),
        ("heavy tails", 2 * normal, 2 * normal + rng.standard_t(2, size=vocab)),
        ("two atoms", np.array([0, gaps[0][0]]), np.array([0, gaps[0][1]])),
        ("far apart", np.array([0, gaps[1][0]]), np.array([0, gaps[1][1]])),
        ("eight atoms", few[0], few[1]),
    ]


def support_logprobs(logits: np.ndarray, support: np.ndarray) -> tuple[mx.array, mx.array]:
    """Log-probs on a support `[..., K]` and the log of the mass outside it `[...]`, float32.

    −inf where the support is everything.
    """
    logprobs = normalize(logits)
    inside = np.take_along_axis(logprobs, support, axis=-1)
    outside = np.array(logprobs)
    np.put_along_axis(outside, support, -np.inf, axis=-1)
    rest = np.logaddexp.reduce(outside, axis=-1)
    return mx.array(inside.astype(np.float32)), mx.array(rest.astype(np.float32))
