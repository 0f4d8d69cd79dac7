"""The trust region and single draws on the device, against float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.backend import on_gpu
from trb_mlx.doctor import reference
from trb_mlx.doctor.check import Finding, Skip
from trb_mlx.kernels.blend import differences, launch
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.sampling import row_uniforms
from trb_mlx.ops.trust_region import solve_blend_weight
from trb_mlx.rollout.generator import bare_draw

# Qwen's embedding rows: the widest vocabulary in common use.
WIDE = 151_936
BUDGETS = (0.02, 0.3)


def trust_region(vocab: int, rows: int) -> Sequence[Finding]:
    """KL(μ ‖ π_S)/ε over random rows in float32: never above the budget, and near it."""
    shares = np.concatenate(list(_budget_shares(vocab, rows)))
    return (
        Finding("largest KL(μ‖π_S)/ε", float(shares.max()), 1.001),
        Finding("smallest", float(shares.min()), 0.99, at_least=True),
    )


def _budget_shares(vocab: int, rows: int) -> Iterator[np.ndarray]:
    """KL(μ ‖ π_S)/ε of rows whose teacher is beyond the budget, in float64."""
    rng = np.random.default_rng(vocab)
    for budget in BUDGETS:
        logits = language_rows(rng, rows, vocab)
        raised = logits + rng.normal(size=logits.shape).astype(np.float32) * 2.0
        student_logprobs, teacher_logprobs = (log_softmax(mx.array(x)) for x in (logits, raised))
        solved = solve_blend_weight(student_logprobs, teacher_logprobs, budget)
        weight = np.asarray(solved).astype(np.float64)
        student, teacher = reference.normalize(logits), reference.normalize(raised)
        assert (reference.kl(teacher, student) > budget).all()
        blended = reference.blend(student, teacher, weight)
        yield reference.kl(blended, student) / budget


def kernel() -> Sequence[Finding]:
    """The GPU's kernel for the same on hard rows, up to the first on which it differs."""
    if not on_gpu():
        raise Skip("no GPU is the default device, and plain operations solve it")
    wrong = next(differences(launch), "")
    what = "kinds of rows on which it differs from plain operations"
    return (Finding(f"{what} ({wrong})" if wrong else what, float(bool(wrong)), 0.0),)


def language_rows(rng: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    """Logits that fall with the rank by a power law, as a language model's do."""
    powers = rng.uniform(0.8, 2.0, size=(rows, 1))
    logits = -powers * np.log(np.arange(1, vocab + 1)) + rng.normal(size=(rows, vocab))
    return rng.permuted(logits, axis=1).astype(np.float32)


def known_draws() -> Sequence[Finding]:
    """Tokens drawn from known probabilities, one of them 0."""
    probabilities = np.array([0.4, 0.0, 0.3, 0.2, 0.07, 0.029, 0.001])
    uniforms = row_uniforms(7, 0, 0, 0, 30_000)
    with np.errstate(divide="ignore"):
        row = np.log(probabilities).astype(np.float32)
    rows = mx.broadcast_to(mx.array(row), (len(uniforms), len(row)))
    tokens = np.asarray(bare_draw(rows, mx.array(uniforms)))
    counts = np.bincount(tokens, minlength=len(row))
    return (
        Finding(
            "p of 30,000 draws",
            reference.chi_square_p(counts, probabilities),
            reference.LEVEL,
            at_least=True,
        ),
        Finding("draws of probability 0", float(counts[1]), 0.0),
    )


def wide_draws(rows: int = 48) -> Sequence[Finding]:
    """How far a uniform lies from its token's part of [0, 1), over the widest vocabulary."""
    logprobs = reference.normalize(language_rows(np.random.default_rng(1), 1, WIDE)[0])
    uniforms = row_uniforms(8, 0, 0, 0, rows)
    wide = mx.broadcast_to(mx.array(logprobs.astype(np.float32)), (rows, WIDE))
    tokens = np.asarray(bare_draw(wide, mx.array(uniforms)))
    ends = np.cumsum(np.exp(logprobs))
    begins = ends - np.exp(logprobs)
    drawn = uniforms.astype(np.float64) @ np.array([1.0, 2.0**-24])
    outside = np.maximum(begins[tokens] - drawn, drawn - ends[tokens])
    return (Finding("a uniform outside its token's part", float(max(0.0, outside.max())), 1e-5),)
