"""The search behind the trust region: one pass over the vocabulary per trial weight.

With r = log π_T − log π_S and A(β) = log Σ π_S e^{βr}, the constraint is
KL(β) = βA'(β) − A(β), and its derivative β·Var_{μ_β}[r]. docs/math.md derives what follows.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from trb_mlx.ops.numerics import in_blocks
from trb_mlx.ops.poisson_model import log_weight_ratio

# Student entries below this are outside its support: e^−345 cannot be told from 0.
SUPPORT_FLOOR = -345.0
# Teacher entries below this are holes: masks are often written as a large finite number.
TEACHER_FLOOR = -1e4
# log π_T − log π_S where the teacher has no mass: finite, so that 0·r is 0.
HOLE = -1e30
# Trials after the one at β = 1. Of 49,903 binding solves on a few atoms up to 80 nats apart, 118
# fell short of the budget by more than 1% with 10, 8 with 12, 2 with 13. Rows of language models
# need three.
TRIALS = 13
# Aim a little under the budget: float32 leaves up to 5e-4 of relative error in KL.
AIM = 0.9975
TINY = 1e-37


class Rows(NamedTuple):
    """Rows in blocks `[R, n, b]`, in the powers that one pass needs.

    The fourth root of π_S keeps π_S·e^x in float32's range where the two factors are not.
    """

    student_logprobs: mx.array
    ratio: mx.array  # r, HOLE outside either support
    root: mx.array  # π_S^(1/4)
    two_roots: mx.array  # 2·π_S^(1/4)
    two_halves: mx.array  # 2·π_S^(1/2)
    student: mx.array  # π_S
    mass: mx.array  # [R], Σ π_S as it adds up in float32


class Trial(NamedTuple):
    """What one pass tells at β, each `[R]`."""

    weight: mx.array  # β
    kl: mx.array  # KL(μ_β ‖ π_S)
    spread: mx.array  # β²·Var_{μ_β}[r], so that dKL/dβ = spread/β
    level: mx.array  # A(β)
    slope: mx.array  # A'(β)


def search_weight(
    student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array
) -> mx.array:
    """The largest feasible weight `[R]` of rows `[R, V]` under budgets `[R]` > 0.

    A bracket [low, high] with low feasible closes in by local models of KL(β) at both ends;
    the weight returned has been evaluated and found feasible.
    """
    rows = _prepare(student_logprobs, teacher_logprobs)
    aim = AIM * budget
    low = _at_zero(rows)
    high = _evaluate(rows, mx.ones_like(budget), low, low)
    feasible_teacher, infeasible = high.kl <= budget, low.kl > budget
    stalled = mx.zeros_like(budget)
    for trial_number in range(TRIALS):
        if trial_number == 0:
            guess = _hermite(low, high, aim)
        else:
            guess = _next_weight(low, high, aim, stalled >= 3.0)
        width = high.weight - low.weight
        guess = mx.clip(guess, low.weight + 1e-4 * width, high.weight - 1e-4 * width)
        trial = _evaluate(rows, guess, low, high)
        fits = trial.kl <= budget
        low, high = _select(fits, trial, low), _select(fits, high, trial)
        slow = high.weight - low.weight > 0.5 * width
        stalled = mx.where(stalled >= 3.0, 0.0, mx.where(slow, stalled + 1.0, 0.0))
    weight = mx.where(feasible_teacher, 1.0, low.weight)
    return mx.where(infeasible, 0.0, weight)


def _select(choose: mx.array, one: Trial, other: Trial) -> Trial:
    return Trial(*(mx.where(choose, a, b) for a, b in zip(one, other, strict=True)))


def _prepare(student_logprobs: mx.array, teacher_logprobs: mx.array) -> Rows:
    student = in_blocks(student_logprobs, -mx.inf)
    teacher = in_blocks(teacher_logprobs, -mx.inf)
    inside = student >= SUPPORT_FLOOR
    # Outside the student's support too, where 0 would let e^{-c} overflow beside no mass.
    ratio = mx.where(inside & (teacher > TEACHER_FLOOR), teacher - student, HOLE)
    root = mx.where(inside, mx.exp(0.25 * student), 0.0)
    half = root * root
    mass = half * half
    return Rows(student, ratio, root, 2.0 * root, 2.0 * half, mass, _total(mass))


def _total(values: mx.array) -> mx.array:
    return values.sum(-1).sum(-1)


def _at_zero(rows: Rows) -> Trial:
    """The limit β → 0+: the student restricted to the teacher's support."""
    shared = mx.where(rows.ratio > 0.5 * HOLE, rows.student, 0.0)
    holes = _total(rows.student - shared) / rows.mass
    first = shared * rows.ratio
    kept = mx.maximum(1.0 - holes, TINY)
    mean = _total(first) / (rows.mass * kept)
    second = _total(first * mx.where(shared > 0.0, rows.ratio, 0.0)) / (rows.mass * kept)
    level = mx.log1p(-mx.minimum(holes, 1.0))
    # At β = 0 the spread is kept as Var[r] itself.
    return Trial(mx.zeros_like(mean), -level, second - mean * mean, level, mean)


def _evaluate(rows: Rows, weight: mx.array, low: Trial, high: Trial) -> Trial:
    """KL, spread and A at β in one pass with one transcendental, expm1.

    x = βr − c with a lower bound c of A(β): A is convex, so its tangents at both ends and the
    largest exponent are such bounds, and e^{A−c} is neither tiny nor beyond V.
    With G = Σπ_S(e^x − 1) and S = Σπ_S(x·e^x − (e^x − 1)):
    A = c + log(1 + G) and KL = S/(1 + G) + G/(1 + G) − log(1 + G).
    """
    tilt = rows.ratio * weight[:, None, None]
    peak = (rows.student_logprobs + tilt).max(axis=(-1, -2))
    tangents = [end.level + end.slope * (weight - end.weight) for end in (low, high)]
    guess = mx.maximum(peak, mx.maximum(*tangents))
    exponent = tilt - guess[:, None, None]
    quarter = mx.expm1(0.25 * exponent)
    # π_S·(e^x − 1) by (1+h)^4 − 1 = h·(h+2)·((1+h)²+1), each factor with its share of π_S.
    first = rows.root * quarter
    second = first * (first + rows.two_roots)
    change = second * (second + rows.two_halves)
    pull = (change + rows.student) * exponent
    gain = _total(change) / rows.mass
    stable = _total(pull - change) / rows.mass
    square = _total(pull * exponent) / rows.mass
    norm = 1.0 + gain
    kl = mx.maximum(stable / norm + (gain / norm - mx.log1p(gain)), TINY)
    mean = (stable + gain) / norm
    spread = mx.maximum(square / norm - mean * mean, TINY)
    level = guess + mx.log1p(gain)
    kl = mx.where(kl < mx.inf, kl, 1e30)  # also where no mass is shared and all is nan
    return Trial(weight, kl, spread, level, (kl + level) / weight)


def _hermite(low: Trial, high: Trial, aim: mx.array) -> mx.array:
    """β at √aim by a monotone cubic through both ends in √KL, which is near-linear in β."""
    start, end, target = mx.sqrt(low.kl), mx.sqrt(high.kl), mx.sqrt(aim)
    height = mx.maximum(end - start, TINY)
    chord = 1.0 / height
    slope_low = mx.minimum(mx.rsqrt(mx.maximum(0.5 * low.spread, TINY)), 3.0 * chord)
    slope_high = mx.minimum(2.0 * end / high.spread, 3.0 * chord)
    t = mx.clip((target - start) / height, 0.0, 1.0)
    back = 1.0 - t
    rise = slope_low * t * back * back - slope_high * t * t * back
    return t * t * (3.0 - 2.0 * t) + height * rise


def _next_weight(low: Trial, high: Trial, aim: mx.array, bisect: mx.array) -> mx.array:
    """The nearer end's local model, else the other's, else the middle of the bracket."""
    ends = [mx.stack(list(pair)) for pair in zip(low[:3], high[:3], strict=True)]
    guesses = ends[0] * mx.exp(log_weight_ratio(ends[1], ends[2], aim))
    usable = (guesses > low.weight) & (guesses < high.weight) & (ends[0] > 0.0)
    # At β = 0 there is no local model, only the quadratic with Var[r].
    quadratic = mx.sqrt(2.0 * aim / mx.maximum(low.spread, TINY))
    at_zero = low.weight == 0.0
    guess_low = mx.where(at_zero, quadratic, guesses[0])
    usable_low = mx.where(at_zero, (quadratic < high.weight), usable[0])
    nearer_high = at_zero | (high.kl * low.kl < aim * aim)
    middle = 0.5 * (low.weight + high.weight)
    other = mx.where(usable_low, guess_low, mx.where(usable[1], guesses[1], middle))
    guess = mx.where(nearer_high & usable[1], guesses[1], other)
    # A bracket over many magnitudes is halved in the logarithm.
    geometric = mx.sqrt(mx.maximum(low.weight, 1e-4 * high.weight) * high.weight)
    halved = mx.where(low.weight > 0.1 * high.weight, middle, geometric)
    return mx.where(bisect, halved, guess)
