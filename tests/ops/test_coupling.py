"""The coupling: the emitted law is the behavior policy's, whatever drafted."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.numerics import log_softmax, total_variation
from trb_mlx.ops.sampling import inverse_cdf, row_uniforms

ROWS = 20_000


def policies(vocab: int, length: int, gap: float, seed: int) -> tuple[mx.array, mx.array]:
    """Log-probs `[T, V]` of a draft and of a behavior policy."""
    rng = np.random.default_rng(seed)
    draft = rng.normal(size=(length, vocab)) * 2
    behavior = draft + gap * rng.normal(size=draft.shape)
    return tuple(log_softmax(mx.array(x.astype(np.float32))) for x in (draft, behavior))  # type: ignore[return-value]


def emit(draft: mx.array, behavior: mx.array, seed: int) -> tuple[np.ndarray, ...]:
    """Many rows of drafts, and what the coupling makes of them."""
    length = draft.shape[0]
    noise = np.stack([row_uniforms(seed, 0, row, 0, 2 * length + 1) for row in range(ROWS)])
    wide = [mx.broadcast_to(x[None], (ROWS, *x.shape)) for x in (draft, behavior)]
    tokens = inverse_cdf(wide[0], mx.array(noise[:, :length]))
    kept, replacement = accept_drafts(tokens, *wide, mx.array(noise[:, length:, 0]))
    return np.asarray(tokens), np.asarray(kept), np.asarray(replacement)


def assert_law(found: np.ndarray, logprobs: np.ndarray) -> None:
    """Chi-square of drawn ids against a row of log-probs."""
    expected = np.exp(logprobs.astype(np.float64)) * len(found)
    counts = np.bincount(found, minlength=len(expected))
    used = expected > 5
    chi = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert chi < used.sum() + 5 * np.sqrt(2 * used.sum()) + 5


@pytest.mark.parametrize(("vocab", "gap"), [(2, 1.0), (12, 0.3), (12, 3.0), (200, 1.0)])
def test_the_emitted_law_is_the_behaviors_at_every_position(vocab: int, gap: float) -> None:
    draft, behavior = policies(vocab, 3, gap, seed=vocab)
    tokens, kept, replacement = emit(draft, behavior, seed=1)
    for position in range(3):
        # Rows that reached this position emit the draft there or its replacement.
        reached = kept >= position
        emitted = np.where(kept > position, tokens[:, position], replacement)[reached]
        assert_law(emitted, np.asarray(behavior)[position])
    assert ((replacement == -1) == (kept == 3)).all()


def test_rejections_have_the_rate_of_the_total_variation() -> None:
    draft, behavior = policies(30, 1, 1.0, seed=5)
    _, kept, _ = emit(draft, behavior, seed=2)
    expected = total_variation(draft, behavior).item()
    assert (kept == 0).mean() == pytest.approx(expected, abs=4 * np.sqrt(0.25 / ROWS))


def test_equal_policies_keep_everything() -> None:
    draft, _ = policies(50, 4, 1.0, seed=6)
    _, kept, replacement = emit(draft, draft, seed=3)
    assert (kept == 4).all()
    assert (replacement == -1).all()


def test_disjoint_policies_replace_the_first_token() -> None:
    draft = mx.log(mx.array([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]]))
    behavior = mx.log(mx.array([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]))
    kept, replacement = accept_drafts(mx.array([[1, 0]]), draft, behavior, mx.array([[0, 0, 0.7]]))
    assert (kept.item(), replacement.item()) == (0, 2)


def test_rounding_that_leaves_no_residual_draws_from_the_behavior() -> None:
    """μ is below d where it was drawn, and nowhere above it."""
    draft = mx.log(mx.array([[[0.5, 0.5, 0.0]]]))
    behavior = draft - mx.array([1e-6, 0.0, 0.0])
    kept, replacement = accept_drafts(mx.array([[0]]), draft, behavior, mx.array([[1.0, 0.9]]))
    assert (kept.item(), replacement.item()) == (0, 1)


def test_a_longer_block_does_not_change_what_a_shorter_one_decides() -> None:
    draft, behavior = (mx.stack([x] * 64) for x in policies(20, 6, 1.0, seed=8))
    uniforms = mx.array(np.stack([row_uniforms(9, 0, row, 0, 13)[:, 0] for row in range(64)]))
    tokens = inverse_cdf(draft, mx.stack([uniforms[:, 7:], uniforms[:, 7:]], axis=-1))
    whole, _ = accept_drafts(tokens, draft, behavior, uniforms[:, :7])
    short, _ = accept_drafts(tokens[:, :3], draft[:, :3], behavior[:, :3], uniforms[:, :4])
    np.testing.assert_array_equal(np.asarray(short), np.minimum(np.asarray(whole), 3))
