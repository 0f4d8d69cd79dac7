"""SKD's closed form: it sums to one and is the law of keeping or replacing, token by token."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.distribution import Distribution, softmax
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.replacement import keep_or_replace
from trb_mlx.ops.sampling import draw, row_uniforms


def policies(vocab: int, seed: int, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs `[rows, V]` of a student and a teacher, float32."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, rows, vocab)).astype(np.float32) * 2
    student, teacher = (np.array(log_softmax(mx.array(x))) for x in logits)
    return student, teacher


def rows_of(*logprobs: np.ndarray) -> list[Distribution]:
    return [softmax(mx.array(x)) for x in logprobs]


def enumerated(student: np.ndarray, teacher: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Every pair of a drafted and a fresh token, with its probability, in float64."""
    student, teacher = (np.exp(x.astype(np.float64)) for x in (student, teacher))
    student, fresh = student / student.sum(), teacher ** (1 / temperature)
    fresh /= fresh.sum()
    best = set(np.argsort(-teacher)[:k].tolist())
    law = np.zeros_like(student)
    for drafted, chance in enumerate(student):
        if drafted in best:
            law[drafted] += chance
            continue
        for drawn, likelihood in enumerate(fresh):
            law[drawn] += chance * likelihood
    return law


@pytest.mark.parametrize("temperature", [0.2, 0.6, 1.0])
@pytest.mark.parametrize(("vocab", "k"), [(12, 1), (12, 5), (40, 25)])
def test_the_closed_form_is_the_law_of_the_process(vocab: int, k: int, temperature: float) -> None:
    student, teacher = policies(vocab, seed=vocab + k, rows=3)
    probs, replaced = keep_or_replace(*rows_of(student, teacher), k, temperature)
    actual = np.asarray(probs).astype(np.float64)
    np.testing.assert_allclose(actual.sum(-1), 1.0, atol=2e-6)
    for row in range(3):
        expected = enumerated(student[row], teacher[row], k, temperature)
        np.testing.assert_allclose(actual[row], expected, atol=1e-6, rtol=1e-4)
        inside = np.argsort(-teacher[row])[:k]
        rest = 1 - np.exp(student[row][inside].astype(np.float64)).sum()
        assert replaced[row].item() == pytest.approx(rest, abs=1e-6)


def test_a_top_k_of_everything_is_the_student_bit_for_bit() -> None:
    student, teacher = policies(30, seed=1)
    for k in (30, 99):
        rows = rows_of(student, teacher)
        probs, replaced = keep_or_replace(*rows, k, 0.6)
        np.testing.assert_array_equal(np.asarray(probs), np.asarray(rows[0].probs))
        assert replaced.item() == 0.0


def test_what_the_teacher_rules_out_is_never_kept() -> None:
    student, _ = policies(6, seed=2)
    teacher = mx.log(mx.array([[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]))
    probs, _ = keep_or_replace(*rows_of(student, np.asarray(teacher)), 4, 1.0)
    assert (np.asarray(probs)[0, 2:] == 0.0).all()


def test_the_coupling_keeps_every_draft_in_the_top_k_and_emits_the_law() -> None:
    """Drafts in the top-K stand whatever the uniform; the tokens emitted have the law."""
    vocab, k, rows = 15, 4, 20_000
    student, teacher = policies(vocab, seed=3)
    behavior, _ = keep_or_replace(*rows_of(student, teacher), k, 0.6)
    noise = np.stack([row_uniforms(0, 0, row, 0, 3) for row in range(rows)])
    drafts = softmax(mx.broadcast_to(mx.array(student, dtype=mx.float32), (rows, vocab)))
    tokens = draw(drafts.masses, mx.array(noise[:, 0]))
    law = mx.broadcast_to(behavior, (rows, vocab))
    kept, emitted = accept_drafts(tokens, drafts, law, mx.array(noise[:, 1:, 0]))
    drafted = np.asarray(tokens)
    inside = np.isin(drafted, np.argsort(-teacher[0])[:k])
    assert (kept[inside] == 1).all()
    assert 0 < kept[~inside].mean() < 0.5  # a refused token that the fresh draw gives again
    expected = enumerated(student[0], teacher[0], k, 0.6) * rows
    counts = np.bincount(emitted, minlength=vocab)
    used = expected > 5
    chi = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert chi < used.sum() + 5 * np.sqrt(2 * used.sum()) + 5
