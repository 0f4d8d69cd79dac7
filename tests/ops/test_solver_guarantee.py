"""The solver's guarantee on rows of every hard kind, as a CPU computes and as Metal would."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import metal_emulation
import solver_guarantee
from ops.reference import kl_at, normalize

from trb_mlx.ops import trust_region
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.numerics import kl_divergence, total_variation


@pytest.mark.parametrize(("metal", "binding"), [(False, 6_000), (True, 2_000)])
def test_the_budget_is_kept_and_used(metal: bool, binding: int) -> None:
    """`scripts/solver_guarantee.py` does the same on 200,000 rows."""
    shares_of = solver_guarantee.examine(binding, 50, None, seed=7, metal=metal)
    assert set(shares_of) == {kind.__name__ for kind in solver_guarantee.KINDS}
    for kind, shares in shares_of.items():
        assert len(shares.binding) > binding / 100, kind
        assert shares.every.max() <= solver_guarantee.MOST, kind
        assert shares.binding.min() >= solver_guarantee.LEAST, kind


def test_the_check_sees_a_weight_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trust_region.solve_blend_weight
    logits = solver_guarantee.language(np.random.default_rng(0), 20, 500)
    for factor, limit in ((1.01, solver_guarantee.MOST), (0.99, solver_guarantee.LEAST)):
        monkeypatch.setattr(
            solver_guarantee, "solve_blend_weight", lambda *rows, f=factor: f * plain(*rows)
        )
        shares = solver_guarantee.shares_of(logits, np.full(20, 0.01)).binding
        assert len(shares)
        assert ((shares > limit) if factor > 1 else (shares < limit)).any()


def test_metals_expm1_is_off_as_its_range_reduction_is() -> None:
    """Relative errors: rounding below 0.34, then growing with the multiple of log 2."""
    for low, high, least, most in (
        (1e-4, 0.34, 0, 2e-7),
        (0.4, 1.0, 1e-6, 5e-6),
        (5, 20, 1e-5, 5e-5),
    ):
        values = np.linspace(low, high, 4001).astype(np.float32)
        exact = np.expm1(values.astype(np.float64))
        error = np.abs(np.asarray(metal_emulation.expm1(mx.array(values))) / exact - 1).max()
        assert least <= error <= most, (low, high, error)
    assert metal_emulation.expm1(mx.array([-100.0, 0.0])).tolist() == [-1.0, 0.0]


def test_rows_of_language_models_need_few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows leave as they converge: passes are counted in rows."""
    passes, plain = [], trust_region._evaluate
    monkeypatch.setattr(
        trust_region, "_evaluate", lambda rows, *at: passes.append(len(at[0])) or plain(rows, *at)
    )
    logits = solver_guarantee.language(np.random.default_rng(1), 200, 2000)
    for budget in (0.001, 0.02, 0.3):
        passes.clear()
        solver_guarantee.shares_of(logits, np.full(200, budget))
        assert passes[0] == 200  # β = 1
        assert sum(passes) < 200 * 3
        assert passes == sorted(passes, reverse=True)


def test_the_last_trial_is_the_blend() -> None:
    """Its probabilities, KL and total variation are those of the blend of that weight."""
    rng = np.random.default_rng(2)
    for kind in (solver_guarantee.language, solver_guarantee.raised, solver_guarantee.holes):
        rows = [normalize(x).astype(np.float32) for x in kind(rng, 12, 700)]
        budget = np.tile([0.0, 1e-4, 0.02, 50.0], 3).astype(np.float32)
        student, teacher = softmax(mx.array(rows[0])), softmax(mx.array(rows[1]))
        solution = trust_region.solve_blend(student, teacher.logprobs, mx.array(budget))
        logprobs = trust_region.blend_logprobs(*map(mx.array, rows), solution.weight)
        law = np.asarray(solution.probs)[:, :700]
        np.testing.assert_allclose(law, np.exp(np.asarray(logprobs)), atol=2e-6)
        np.testing.assert_allclose(law.sum(-1), 1.0, atol=1e-5)
        exact = [kl_at(s, t, w) for s, t, w in zip(*rows, solution.weight.tolist(), strict=True)]
        np.testing.assert_allclose(np.asarray(solution.kl), exact, rtol=1e-3, atol=1e-7)
        assert (np.asarray(solution.weight)[::4] == 0).all()
        np.testing.assert_array_equal(law[::4], np.asarray(student.probs)[::4, :700])
        distance = 0.5 * np.abs(law - np.asarray(student.probs)[:, :700]).sum(-1)
        expected = total_variation(mx.exp(logprobs), mx.exp(mx.array(rows[0])))
        np.testing.assert_allclose(distance, np.asarray(expected), atol=1e-5)
        assert (np.asarray(kl_divergence(logprobs, mx.array(rows[0]))) <= budget * 1.001).all()
