"""Draws, tests, records and losses against float64, as a CPU computes and as Metal would."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import solver_guarantee
from metal_emulation import like_metal
from ops.reference import normalize

from trb_mlx.ops import divergence, jensen_shannon
from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.sampling import draw, row_uniforms
from trb_mlx.rollout.recording import student_records, teacher_records

ROWS, VOCAB, SUPPORT = 48, 3000, 16


@pytest.fixture(params=["cpu", "metal"], autouse=True)
def arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    with like_metal() if request.param == "metal" else nullcontext():
        yield


def rows(seed: int) -> tuple[mx.array, mx.array, np.ndarray, np.ndarray]:
    """Both models' logits `[R, V]`, and their log-probs in float64."""
    kinds = (solver_guarantee.language, solver_guarantee.raised)
    rng = np.random.default_rng(seed)
    pairs = [kind(rng, ROWS // 2, VOCAB) for kind in kinds]
    logits = [np.concatenate(parts).astype(np.float32) for parts in zip(*pairs, strict=True)]
    exact = (normalize(x.astype(np.float64)) for x in logits)
    return *map(mx.array, logits), *exact  # type: ignore[return-value]


def uniforms(count: int) -> np.ndarray:
    return np.stack([row_uniforms(3, 0, row, 0, count) for row in range(ROWS)])


def test_a_draw_lies_where_its_uniform_is() -> None:
    student, _, exact, _ = rows(0)
    noise = uniforms(1)[:, 0]
    tokens = np.asarray(draw(softmax(student).masses, mx.array(noise)))
    ends = np.exp(exact).cumsum(-1)
    place = noise.astype(np.float64) @ np.array([1.0, 2.0**-24])
    drawn = np.arange(ROWS), tokens
    assert (place < ends[drawn] + 1e-5).all()
    assert (place > ends[drawn] - np.exp(exact[drawn]) - 1e-5).all()


def test_a_draft_stands_where_its_share_is_above_the_uniform() -> None:
    student, teacher, exact, other = rows(1)
    noise = uniforms(2)
    draft, law = softmax(student), softmax(teacher).probs
    tokens = draw(draft.masses, mx.array(noise[:, 0]))
    tests = noise[:, 1]
    kept, emitted = accept_drafts(tokens, draft, law, mx.array(tests))
    at = np.arange(ROWS), np.asarray(tokens)
    shares = np.exp(other[at] - exact[at])
    apart = np.abs(shares - tests[:, 0]) > 1e-5 * shares
    assert apart.sum() > ROWS - 3
    np.testing.assert_array_equal(kept[apart], (tests[:, 0] < shares)[apart])
    assert 0 < kept.sum() < ROWS
    residual = np.maximum(np.exp(other) - np.exp(exact), 0.0)
    assert (residual[np.flatnonzero(~kept), emitted[~kept]] > 0).all()


def test_records_are_those_of_float64() -> None:
    student, teacher, exact, other = rows(2)
    tokens = mx.argmax(student, axis=-1)
    found = student_records(softmax(student), tokens, SUPPORT, 1.0)
    found |= teacher_records(softmax(teacher), tokens, found["support"], 1.0)
    support, drawn = np.asarray(found["support"]), np.asarray(tokens)[:, None]
    np.testing.assert_array_equal(np.sort(support), np.sort(np.argsort(-exact)[:, :SUPPORT]))
    outside = np.exp(other)
    np.put_along_axis(outside, support, 0.0, axis=-1)
    expected = {
        "student_mass": np.exp(np.take_along_axis(exact, support, -1)).sum(-1),
        "student_entropy": -(np.exp(exact) * exact).sum(-1),
        "student_logprob": np.take_along_axis(exact, drawn, -1)[:, 0],
        "teacher_support": np.take_along_axis(other, support, -1),
        "teacher_rest": np.log(outside.sum(-1)),
        "teacher_entropy": -(np.exp(other) * other).sum(-1),
        "teacher_logprob": np.take_along_axis(other, drawn, -1)[:, 0],
    }
    for name, values in expected.items():
        actual = np.asarray(found[name])
        np.testing.assert_allclose(actual, values, rtol=3e-6, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("near", [False, True])
def test_losses_and_gradients_are_those_of_float64(near: bool) -> None:
    """Also where the student is the teacher but for 1e-3 nats, where terms nearly cancel."""
    student, _, exact, other = rows(3)
    logprobs = mx.array(other.astype(np.float32))
    other = np.asarray(logprobs).astype(np.float64)
    if near:
        moved = other + 1e-3 * np.random.default_rng(4).normal(size=other.shape)
        student = mx.array(moved.astype(np.float32))
        exact = normalize(np.asarray(student).astype(np.float64))
    gap, p, q = exact - other, np.exp(exact), np.exp(other)
    reverse = (p * gap).sum(-1, keepdims=True)
    mixture = 0.5 * (p + q)
    own = (p * (exact - np.log(mixture))).sum(-1, keepdims=True)
    theirs = (q * (other - np.log(mixture))).sum(-1, keepdims=True)
    expected = {
        "reverse": (divergence._exact_loss, (), reverse, p * (gap - reverse)),
        "forward": (jensen_shannon._forward_loss, (), -(q * gap).sum(-1, keepdims=True), p - q),
        "mixture": (
            jensen_shannon._mixture_loss,
            (mx.array(0.5),),
            0.5 * (own + theirs),
            0.5 * p * (exact - np.log(mixture) - own),
        ),
    }
    for name, (loss, more, value, grad) in expected.items():
        found, slope = (np.asarray(x) for x in loss(student, logprobs, *more))
        np.testing.assert_allclose(found, value[:, 0], rtol=1e-5, atol=1e-5, err_msg=name)
        # Of what a gradient is a difference, and an exponential has its exponent's rounding.
        scale = (p + q) * (1.0 + np.abs(gap) + np.abs(value) + np.abs(exact))
        assert (np.abs(slope - grad) <= 2e-6 * scale).all(), name
