"""The blend: feasible, as far as the budget allows, exact at both ends."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.reference import blend, hard_rows, kl, kl_at, language_model_row, normalize

from trb_mlx.ops.trust_region import blend_logprobs, solve_blend_weight

BUDGETS = [2e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 10.0]
INF = float("inf")


def float32(logits: np.ndarray) -> np.ndarray:
    return normalize(logits).astype(np.float32)


def solve(student: np.ndarray, teacher: np.ndarray, budgets: list[float]) -> np.ndarray:
    """Weights of one row under many budgets."""
    rows = [mx.array(np.tile(row, (len(budgets), 1))) for row in (student, teacher)]
    return np.asarray(solve_blend_weight(*rows, mx.array(budgets)))


def assert_tight(student: np.ndarray, teacher: np.ndarray, budgets: list[float], what: str) -> None:
    """Never more than 0.1% over, and within 1% wherever the budget binds."""
    for weight, budget in zip(solve(student, teacher, budgets), budgets, strict=True):
        ratio = kl_at(student, teacher, float(weight)) / budget
        assert ratio <= 1.001, f"{what}: ε {budget} exceeded, β {weight}, KL/ε {ratio}"
        if weight < 1.0:
            assert ratio >= 0.99, f"{what}: ε {budget} not used, β {weight}, KL/ε {ratio}"


@pytest.mark.parametrize("seed", range(12))
def test_feasible_and_tight_on_hard_rows(seed: int) -> None:
    for what, student, teacher in hard_rows(np.random.default_rng(seed), 2000):
        assert_tight(float32(student), float32(teacher), BUDGETS, what)


@pytest.mark.parametrize("vocab", [2, 3, 511, 1024, 1025, 49_152, 151_669, 151_936])
def test_feasible_and_tight_at_any_vocabulary(vocab: int) -> None:
    student, teacher = language_model_row(np.random.default_rng(vocab), vocab)
    assert_tight(float32(student), float32(teacher), [2e-6, 1e-4, 0.02, 1.0], f"V {vocab}")


def test_tight_where_atoms_lie_far_apart() -> None:
    """Found by hypothesis: ten trials stopped at 0.70·ε."""
    student, teacher = np.array([0.0, 77.0, 76.5]), np.array([75.5, -27.5, 1.125])
    assert_tight(float32(student), float32(teacher), [3.625], "three atoms")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-80, 80, width=32), st.floats(-80, 80, width=32)),
        min_size=2,
        max_size=12,
    ),
    st.floats(2e-6, 10),
)
def test_feasible_and_tight_on_any_row(pairs: list[tuple[float, float]], budget: float) -> None:
    student, teacher = (float32(np.array(column)) for column in zip(*pairs, strict=True))
    assert_tight(student, teacher, [budget], "drawn by hypothesis")


def test_blending_moves_towards_the_teacher_as_the_budget_grows() -> None:
    rng = np.random.default_rng(0)
    for what, student, teacher in hard_rows(rng, 300):
        student, teacher = normalize(student), normalize(teacher)
        weights = solve(student.astype(np.float32), teacher.astype(np.float32), BUDGETS)
        assert (np.diff(weights) >= 0).all(), what
        distances = [kl(blend(student, teacher, float(w)), teacher) for w in [0.0, *weights]]
        assert (np.diff(distances) <= 1e-6 * (1 + distances[0])).all(), what


def test_zero_budget_is_the_student_bit_for_bit() -> None:
    student, teacher = language_model_row(np.random.default_rng(1), 5000)
    rows = mx.array(float32(student)[None]), mx.array(float32(teacher)[None])
    weight = solve_blend_weight(*rows, 0.0)
    assert weight.item() == 0.0
    np.testing.assert_array_equal(np.asarray(blend_logprobs(*rows, weight)), np.asarray(rows[0]))


@pytest.mark.parametrize("budget", [2e-6, 0.1, 10.0])
def test_identical_rows_and_feasible_teachers_give_one(budget: float) -> None:
    student = float32(language_model_row(np.random.default_rng(2), 3000)[0])
    assert solve(student, student, [budget]).item() == 1.0
    nearby = float32(student + 1e-4 * np.random.default_rng(3).normal(size=3000))
    assert kl_at(student, nearby, 1.0) < 2e-6
    assert solve(student, nearby, [budget]).item() == 1.0


def test_weight_one_is_the_teacher_on_the_students_support() -> None:
    student = np.array([0.5, 0.5, 0.0, 0.0])
    teacher = np.array([0.2, 0.3, 0.4, 0.1])
    with np.errstate(divide="ignore"):
        rows = [mx.array(np.log(row).astype(np.float32)[None]) for row in (student, teacher)]
    weight = solve_blend_weight(*rows, 5.0)
    assert weight.item() == 1.0
    mixed = np.exp(np.asarray(blend_logprobs(*rows, weight)))[0]
    np.testing.assert_allclose(mixed, [0.4, 0.6, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "budget", "expected"),
    [
        ([0.5, 0.5, 0.0], [0.0, 0.0, 1.0], 10.0, 0.0),  # nothing shared
        ([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], 0.69, 0.0),  # log 2 > ε: the hole itself is too far
        ([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], 0.70, 1.0),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], 0.01, 1.0),  # one-hot and equal
        ([1.0, 0.0, 0.0], [0.1, 0.9, 0.0], 0.01, 1.0),  # one-hot: only itself is in the support
        ([0.9, 0.1, 0.0], [0.0, 1.0, 0.0], 0.1, 0.0),
    ],
)
def test_holes(student: list, teacher: list, budget: float, expected: float) -> None:
    with np.errstate(divide="ignore"):
        rows = [mx.array(np.log(np.array([row])).astype(np.float32)) for row in (student, teacher)]
    weight = solve_blend_weight(*rows, budget)
    assert weight.item() == expected
    mixed = np.asarray(blend_logprobs(*rows, weight))
    assert not np.isnan(mixed).any()
    assert np.exp(mixed).sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([0.0, -573.0], [-519.0, 0.0]),  # the teacher's only likely token is beyond the support
        ([0.0, -30.0, -600.0], [-400.0, -1e9, 0.0]),  # and a mask written as a number
    ],
)
def test_beyond_the_support_counts_as_outside(student: list, teacher: list) -> None:
    rows = mx.array([student]), mx.array([teacher])
    weight = solve_blend_weight(*rows, 0.01)
    assert weight.item() == 1.0  # what is left of the teacher there is the student's own token
    mixed = np.exp(np.asarray(blend_logprobs(*rows, weight)))[0]
    np.testing.assert_allclose(mixed, np.eye(len(student))[0], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_holes_and_masks_in_long_rows_stay_tight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = language_model_row(rng, 4000)
    student[rng.random(4000) < 0.3] = -INF
    masked = rng.random(4000) < 0.1
    student[masked] = teacher[masked] = -INF
    teacher[(rng.random(4000) < 0.5) & (student < np.sort(student)[-50])] = -INF
    student, teacher = float32(student), float32(teacher)
    floor = kl_at(student, teacher, 1e-12)  # the limit β → 0+
    budgets = [budget for budget in BUDGETS if budget > floor * 1.01]
    assert budgets
    assert_tight(student, teacher, budgets, "holes")
    assert (solve(student, teacher, [b for b in BUDGETS if b < floor * 0.99] or [0.0]) == 0).all()


def test_one_budget_a_row_and_any_leading_shape() -> None:
    rng = np.random.default_rng(5)
    pairs = [language_model_row(rng, 700) for _ in range(6)]
    student, teacher = (np.stack([float32(pair[i]) for pair in pairs]) for i in (0, 1))
    budgets = np.array([0.0, 0.01, 0.02, 0.1, 0.5, 50.0], np.float32)
    together = solve_blend_weight(
        mx.array(student.reshape(2, 3, -1)),
        mx.array(teacher.reshape(2, 3, -1)),
        mx.array(budgets.reshape(2, 3)),
    )
    assert together.shape == (2, 3)
    assert together.dtype == mx.float32
    alone = [solve(student[i], teacher[i], [float(budgets[i])]).item() for i in range(6)]
    np.testing.assert_allclose(np.asarray(together).reshape(-1), alone, rtol=1e-5)
    assert (alone[0], alone[-1]) == (0.0, 1.0)


def test_the_blend_against_float64() -> None:
    student, teacher = (float32(x) for x in language_model_row(np.random.default_rng(7), 151_936))
    for weight in (1e-3, 0.4, 1.0):
        actual = np.asarray(blend_logprobs(mx.array(student), mx.array(teacher), weight))
        expected = blend(normalize(student), normalize(teacher), weight)
        np.testing.assert_allclose(actual, expected, atol=5e-5)
        assert np.exp(actual.astype(np.float64)).sum() == pytest.approx(1.0, abs=2e-5)
