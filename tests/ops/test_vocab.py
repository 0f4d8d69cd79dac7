"""One vocabulary for two models."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from trb_mlx.ops.vocab import merge_stops, shared_logits


def softmax(values: mx.array) -> np.ndarray:
    return np.asarray(mx.softmax(values, axis=-1))


def test_stop_probability_is_the_sum_over_the_models_own_ids() -> None:
    logits = mx.random.normal((4, 12), key=mx.random.key(0))
    merge = merge_stops(size=10, stop_id=3, own=[7, 8], other=[3, 9])
    shared = softmax(shared_logits(logits, merge))
    plain = np.exp(np.asarray(logits, dtype=np.float64))
    kept = [i for i in range(10) if i not in (3, 7, 8, 9)]
    total = plain[:, kept].sum(-1) + plain[:, [7, 8]].sum(-1)
    np.testing.assert_allclose(shared[:, 3], plain[:, [7, 8]].sum(-1) / total, rtol=1e-5)
    np.testing.assert_allclose(shared[:, kept], plain[:, kept] / total[:, None], rtol=1e-5)
    assert (shared[:, [7, 8, 9]] == 0).all()


def test_both_models_agree_on_what_is_possible() -> None:
    student = merge_stops(10, 3, own=[3], other=[7, 8])
    teacher = merge_stops(10, 3, own=[7, 8], other=[3])
    logits = mx.random.normal((2, 14), key=mx.random.key(1))
    student_logits, teacher_logits = (shared_logits(logits, merge) for merge in (student, teacher))
    assert student_logits.shape == teacher_logits.shape == (2, 10)
    impossible = (np.isinf(np.asarray(values)) for values in (student_logits, teacher_logits))
    np.testing.assert_array_equal(*impossible)


def test_a_plain_model_only_loses_its_padding() -> None:
    merge = merge_stops(10, 3, own=[3], other=[3])
    logits = mx.random.normal((2, 14), key=mx.random.key(2))
    np.testing.assert_array_equal(shared_logits(logits, merge), logits[:, :10])


def test_eos_ids_beyond_the_vocabulary_are_padding() -> None:
    assert merge_stops(10, 3, own=[3, 12], other=[11]).is_plain


def test_gradients_reach_every_own_stop_id() -> None:
    merge = merge_stops(6, 0, own=[0, 4], other=[5])

    def stop_logprob(logits: mx.array) -> mx.array:
        shared = shared_logits(logits, merge)
        return shared[0] - mx.logsumexp(shared)

    grad = np.asarray(mx.grad(stop_logprob)(mx.array([0.5, 1.0, -1.0, 0.2, 0.3, 2.0])))
    assert np.isfinite(grad).all()
    assert grad[0] > 0
    assert grad[4] > 0
    assert grad[5] == 0
