"""The coupling: the emitted law is the behavior policy's, whatever drafted."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.numerics import log_softmax, total_variation
from trb_mlx.ops.sampling import draw, row_uniforms

ROWS = 20_000


def policies(vocab: int, length: int, gap: float, seed: int) -> tuple[mx.array, mx.array]:
    """Log-probs `[T, V]` of a draft and of a behavior policy."""
    rng = np.random.default_rng(seed)
    draft = rng.normal(size=(length, vocab)) * 2
    behavior = draft + gap * rng.normal(size=draft.shape)
    return tuple(log_softmax(mx.array(x.astype(np.float32))) for x in (draft, behavior))  # type: ignore[return-value]


def emit(draft: mx.array, behavior: mx.array, seed: int) -> tuple[np.ndarray, ...]:
    """Many drafts from rows `[V]` of log-probs, and what the coupling makes of them."""
    noise = mx.array(np.stack([row_uniforms(seed, 0, row, 0, 3) for row in range(ROWS)]))
    drafts, law = (mx.broadcast_to(x, (ROWS, *x.shape)) for x in (draft, behavior))
    tokens = draw(softmax(drafts).masses, noise[:, 0])
    kept, emitted = accept_drafts(tokens, softmax(drafts), mx.exp(law), noise[:, 1:, 0])
    return np.asarray(tokens), kept, emitted


def assert_law(tokens: np.ndarray, logprobs: np.ndarray) -> None:
    """Chi-square of drawn ids against a row of log-probs."""
    expected = np.exp(logprobs.astype(np.float64)) * len(tokens)
    counts = np.bincount(tokens, minlength=len(expected))
    used = expected > 5
    chi = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert chi < used.sum() + 5 * np.sqrt(2 * used.sum()) + 5


@pytest.mark.parametrize(("vocab", "gap"), [(2, 1.0), (12, 0.3), (12, 3.0), (200, 1.0)])
def test_the_emitted_law_is_the_behaviors(vocab: int, gap: float) -> None:
    for place, (draft, behavior) in enumerate(
        zip(*policies(vocab, 3, gap, seed=vocab), strict=True)
    ):
        tokens, kept, emitted = emit(draft, behavior, seed=place)
        assert_law(emitted, np.asarray(behavior))
        np.testing.assert_array_equal(emitted[kept], tokens[kept])
        assert (emitted[~kept] != tokens[~kept]).all()  # a draft is refused where μ < d


def test_rejections_have_the_rate_of_the_total_variation() -> None:
    draft, behavior = (x[0] for x in policies(30, 1, 1.0, seed=5))
    _, kept, _ = emit(draft, behavior, seed=2)
    expected = total_variation(mx.exp(draft), mx.exp(behavior)).item()
    assert (~kept).mean() == pytest.approx(expected, abs=4 * np.sqrt(0.25 / ROWS))


def test_equal_policies_keep_everything() -> None:
    draft = policies(50, 1, 1.0, seed=6)[0][0]
    tokens, kept, emitted = emit(draft, draft, seed=3)
    assert kept.all()
    np.testing.assert_array_equal(emitted, tokens)


def test_disjoint_policies_replace_the_token() -> None:
    draft = softmax(mx.log(mx.array([[0.5, 0.5, 0.0]] * 2)))
    behavior = mx.array([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    kept, emitted = accept_drafts(mx.array([1, 0]), draft, behavior, mx.array([[0, 0.7]] * 2))
    assert (kept.tolist(), emitted.tolist()) == ([False, True], [2, 0])


def test_rounding_that_leaves_no_residual_draws_from_the_behavior() -> None:
    """μ is below d where it was drawn, and nowhere above it."""
    draft = softmax(mx.log(mx.array([[0.5, 0.5, 0.0]])))
    behavior = draft.probs - mx.array([1e-6, 0.0, 0.0])
    kept, emitted = accept_drafts(mx.array([0]), draft, behavior, mx.array([[1.0, 0.9]]))
    assert (kept.item(), emitted.item()) == (False, 1)


def test_what_is_emitted_does_not_depend_on_the_other_rows() -> None:
    """The replacement is drawn for rejected rows alone, whichever others there are."""
    logits, law = policies(20, 64, 1.0, seed=8)
    draft, behavior = softmax(logits), mx.exp(law)
    uniforms = mx.array(np.stack([row_uniforms(9, 0, row, 0, 2)[:, 0] for row in range(64)]))
    tokens = draw(draft.masses, mx.stack([uniforms[:, 1], uniforms[:, 0]], axis=-1))
    together = accept_drafts(tokens, draft, behavior, uniforms)
    assert 0 < together[0].sum() < 64
    for row in range(64):
        one = slice(row, row + 1)
        alone = accept_drafts(tokens[one], draft.take(one), behavior[one], uniforms[one])
        assert [x.item() for x in alone] == [x[row].item() for x in together]
