"""The trust-region behavior policy: the closest policy to the teacher near the student.

    μ* = argmin_μ KL(μ ‖ π_T)  subject to  KL(μ ‖ π_S) ≤ ε          (arXiv 2605.31159)

Its solution is the geometric blend μ_β ∝ π_S^(1−β)·π_T^β with the largest feasible β in [0, 1].
With r = log π_T − log π_S and A(β) = log Σ π_S e^{βr}, KL(β) = βA'(β) − A(β) rises with β.
docs/math.md derives the one-pass trial.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from trb_mlx.bounds import rows_at_once
from trb_mlx.ops.bracketing import Bracket, Points, first_weight
from trb_mlx.ops.distribution import Distribution, whole_blocks
from trb_mlx.ops.numerics import in_blocks, log_softmax, sum_last, total_variation

# Student entries below this are outside its support: the root of e^−174 is float32's smallest
# normal number, and a GPU flushes what is smaller to 0.
SUPPORT_FLOOR = -174.0
# Teacher entries at or below this are holes: masks are often written as a large finite number.
TEACHER_FLOOR = -1e4
HOLE = 1e30
# A feasible trial of this share of the budget is taken; the search aims between it and 1.
ENOUGH, AIM = 0.992, 0.996
# Trials after the one at β = 1. Rows of language models need two, hard rows up to thirteen.
TRIALS = 60
TINY = 1e-37


class Solution(NamedTuple):
    """The largest feasible blend of each row.

    Attributes:
        weight: β, float32 `[...]`.
        kl: KL(μ_β ‖ π_S) in nats, float32 `[...]`.
        total_variation: TV(μ_β, π_S), float32 `[...]`.
        probs: μ_β, float32 `[..., V]`; where β = 0 the student's own.
    """

    weight: mx.array
    kl: mx.array
    total_variation: mx.array
    probs: mx.array


def solve_blend_weight(
    student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array | float
) -> mx.array:
    """The largest β in [0, 1] with KL(μ_β ‖ π_S) ≤ budget, for every row.

    The host looks at every trial, so this cannot be part of a compiled function. KL(μ_β ‖ π_S) in
    float64 stays below 1.001·budget and, where the budget binds, above 0.99·budget
    (scripts/solver_guarantee.py; docs/math.md has the table).

    >>> student, teacher = mx.log(mx.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> weight = solve_blend_weight(student, teacher, 0.05)
    >>> print(f"{weight.item():.2f}")
    0.29

    Args:
        student_logprobs: `[..., V]`, normalised; −inf where the student has no mass.
        teacher_logprobs: `[..., V]`, normalised; −inf where the teacher has none.
        budget: ε in nats, a scalar or `[...]`, one a row.

    Returns:
        float32 `[...]`: exactly 0 where ε ≤ 0, or where the teacher's holes make every positive
        weight infeasible; exactly 1 where the teacher, restricted to the student's support
        and renormalised, is feasible.
    """
    shape, vocab = student_logprobs.shape[:-1], student_logprobs.shape[-1]
    limit = mx.broadcast_to(mx.array(budget, dtype=mx.float32), shape).reshape(-1)
    student, teacher = (x.reshape(-1, vocab) for x in (student_logprobs, teacher_logprobs))
    weights, count = [mx.zeros(0)], rows_at_once(vocab)
    for start in range(0, len(limit), count):
        part = slice(start, start + count)
        logprobs, other = (whole_blocks(x[part].astype(mx.float32)) for x in (student, teacher))
        rows = Distribution(logprobs, mx.exp(0.5 * logprobs), mx.ones((len(logprobs), 1)))
        weights.append(solve_blend(rows, other, limit[part]).weight)
    return mx.concatenate(weights).reshape(shape)


def solve_blend(
    student: Distribution, teacher_logprobs: mx.array, budget: mx.array | float
) -> Solution:
    """As `solve_blend_weight`, with what each row's last trial tells of its blend.

    A row leaves the search with the first trial that is feasible and close enough to the budget.

    Args:
        student: `[..., V]` (`distribution.softmax`).
        teacher_logprobs: `[..., V]`, as wide.
        budget: ε in nats, a scalar or `[...]`.
    """
    shape = student.logprobs.shape
    limits = mx.broadcast_to(mx.array(budget, dtype=mx.float32), shape[:-1])
    rows = _prepare(student, teacher_logprobs)
    low, low_spread = _at_zero(rows)
    limit = np.asarray(limits.reshape(-1)).astype(np.float64)
    weights, kls = np.zeros((2, len(limit)), np.float32)
    # Without a budget, and where the holes alone are too far, the student draws.
    zero = (limit <= 0.0) | (-low.level > limit)
    solved, probs = [np.flatnonzero(zero)], [(rows.masses / rows.total[:, None])[_ids(zero)]]
    searched, limit = np.flatnonzero(~zero), limit[~zero]
    rows, low, low_spread = _take(rows, ~zero), low.take(~zero), low_spread[~zero]
    aim, weight = np.sqrt(AIM * limit), np.ones(len(searched))
    low = low._replace(excess=np.sqrt(-low.level) - aim)
    bracket = Bracket(low, low, low)
    for number in range(TRIALS if len(searched) else 0):
        trial = _evaluate(rows, weight, bracket.bound(weight))
        kl, level = _to_host(trial.kl, trial.level)
        enough = (kl >= ENOUGH * limit) | (weight == 1.0)
        done = ((kl <= limit) & enough) | (number + 1 == TRIALS)
        if done.any():
            weights[searched[done]], kls[searched[done]] = weight[done], kl[done]
            solved.append(searched[done])
            probs.append((trial.law / trial.total[:, None])[_ids(done)])
        if done.all():
            break
        point = Points(weight, np.sqrt(kl) - aim, level, (kl + level) / weight)
        if number == 0:
            bracket = Bracket(point, low, low)
            (spread,) = _to_host(trial.spread)
            weight = first_weight(np.sqrt(-low.level), np.sqrt(kl), aim, low_spread, spread)
        else:
            bracket = bracket.closer(point)
            weight = bracket.guess() if number + 2 < TRIALS else bracket.lower()
        weight = weight.astype(np.float32).astype(np.float64)
        if done.any():
            rows, bracket = _take(rows, ~done), bracket.take(~done)
            searched, limit, aim, weight = (x[~done] for x in (searched, limit, aim, weight))
    order = mx.array(np.argsort(np.concatenate(solved)).astype(np.int32))
    weight_of, kl_of = (mx.array(values).reshape(shape[:-1]) for values in (weights, kls))
    law = mx.concatenate(probs)[order].reshape(shape)
    return Solution(weight_of, kl_of, total_variation(law, student.probs), law)


def _ids(chosen: np.ndarray) -> mx.array:
    return mx.array(np.flatnonzero(chosen).astype(np.int32))


class _Rows(NamedTuple):
    """What every trial needs of rows `[R, V]`."""

    student_logprobs: mx.array
    roots: mx.array  # they keep π_S·e^x in float32's range where π_S is not
    masses: mx.array
    ratio: mx.array  # r, hugely negative outside either support
    total: mx.array  # [R], the sum of the masses, in which they are π_S


class _Trial(NamedTuple):
    """What one pass tells at β: KL, A, Var_{μ_β}[βr] `[R]`, and μ_β = law/total `[R, V]`, `[R]`."""

    kl: mx.array
    level: mx.array
    spread: mx.array
    law: mx.array
    total: mx.array


def _take(rows: _Rows, chosen: np.ndarray) -> _Rows:
    return rows if chosen.all() else _Rows(*(x[_ids(chosen)] for x in rows))


def _prepare(student: Distribution, teacher_logprobs: mx.array) -> _Rows:
    vocab = teacher_logprobs.shape[-1]
    arrays = (student.logprobs, student.roots, teacher_logprobs)
    student_logprobs, roots, teacher_logprobs = (x.reshape(-1, vocab) for x in arrays)
    # A choice between arrays costs a CPU half an exponential, the smaller of two next to nothing:
    # what is below a floor is below it by so much that HOLE times that is the smaller.
    student_kept = mx.maximum(student_logprobs, 2 * SUPPORT_FLOOR)
    teacher_kept = mx.maximum(teacher_logprobs, 2 * TEACHER_FLOOR)
    inside = mx.minimum(student_kept - SUPPORT_FLOOR, teacher_kept - TEACHER_FLOOR)
    ratio = mx.minimum(teacher_kept - student_kept, HOLE * inside)
    masses = roots * roots
    return _Rows(student_logprobs, roots, masses, ratio, sum_last(masses))


def _at_zero(rows: _Rows) -> tuple[Points, np.ndarray]:
    """The limit β → 0+, the student restricted to the teacher's support, and Var[r] there."""
    hole = mx.clip(rows.ratio * (1.0 / HOLE), -1.0, 0.0)  # −1 in holes, else next to 0
    shared = rows.masses * (1.0 + hole)
    ratio = mx.maximum(rows.ratio, 2 * TEACHER_FLOOR)  # finite where squared
    first = shared * ratio
    holes = mx.clip(-sum_last(rows.masses * hole) / rows.total, 0.0, 1.0)
    kept = rows.total * mx.maximum(1.0 - holes, TINY)
    mean, second = sum_last(first) / kept, sum_last(first * ratio) / kept
    level, slope, spread = _to_host(mx.log1p(-holes), mean, second - mean * mean)
    return Points(np.zeros_like(level), -level, level, slope), spread


def _evaluate(rows: _Rows, weight: np.ndarray, bound: np.ndarray) -> _Trial:
    """KL and A at β in one pass with one transcendental, expm1.

    x = βr − c with a lower bound c of A(β): tangents of the convex A and the largest exponent are
    such bounds, so that e^{A−c} is neither tiny nor beyond V, and e^{x/2} is in float32's range.
    With G = Σπ_S(e^x − 1) and S = Σπ_S(x·e^x − (e^x − 1)):
    A = c + log(1 + G) and KL = S/(1 + G) + G/(1 + G) − log(1 + G).
    """
    beta, tangent = (mx.array(x.astype(np.float32))[:, None] for x in (weight, bound))
    tilt = rows.ratio * beta
    largest = in_blocks(rows.student_logprobs + tilt, -mx.inf).max(-1).max(-1)[:, None]
    guess = mx.maximum(largest, tangent)
    exponent = mx.maximum(tilt - guess, -200.0)  # e^−200 is 0; 0·HOLE need not be
    # π_S·(e^x − 1) by (1 + h)² − 1 = h·(h + 2), each factor with its share of π_S.
    first = rows.roots * mx.expm1(0.5 * exponent)
    change = first * (first + 2.0 * rows.roots)
    law = change + rows.masses
    pull = law * exponent
    gain = sum_last(change) / rows.total
    norm = 1.0 + gain
    stable = sum_last(pull - change) / rows.total
    kl = mx.maximum(stable / norm + (gain / norm - mx.log1p(gain)), 0.0)
    mean = (stable + gain) / norm
    spread = sum_last(pull * exponent) / (rows.total * norm) - mean * mean
    level = guess.squeeze(-1) + mx.log1p(gain)
    return _Trial(kl, level, spread, law, rows.total * norm)


def _to_host(*values: mx.array) -> list[np.ndarray]:
    mx.eval(*values)
    return [np.asarray(value).astype(np.float64) for value in values]


def blend_logprobs(
    student_logprobs: mx.array, teacher_logprobs: mx.array, weight: mx.array | float
) -> mx.array:
    """log μ_β, μ_β ∝ π_S^(1−β)·π_T^β.

    >>> student, teacher = mx.log(mx.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> mx.exp(blend_logprobs(student, teacher, 0.5))
    array([0.75, 0.25], dtype=float32)

    Args:
        student_logprobs: `[..., V]`, normalised.
        teacher_logprobs: `[..., V]`, normalised.
        weight: β, a scalar or `[...]`.

    Returns:
        float32 `[..., V]`, normalised. At β = 0 the student's own array, bit for bit; at β = 1
        the teacher restricted to the student's support (entries the student gives less than
        e^−174 count as outside, and teacher log-probs below −10^4 as none).
    """
    student = student_logprobs.astype(mx.float32)
    beta = mx.broadcast_to(mx.array(weight, dtype=mx.float32), student.shape[:-1])[..., None]
    outside = (student < SUPPORT_FLOOR) | (teacher_logprobs < TEACHER_FLOOR)
    own = mx.where(outside, 0.0, student)
    other = mx.where(outside, 0.0, teacher_logprobs.astype(mx.float32))
    mixed = mx.where(outside, -mx.inf, own + beta * (other - own))
    return mx.where(beta == 0.0, student, log_softmax(mixed))
