"""Labels: labelled rows have cross-entropy and its gradient, all others are left as they are."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from trb_mlx.ops.divergence import reverse_kl
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.routing import NO_LABEL, toward_labels

VOCAB = 700


def test_only_labelled_rows_change_and_their_gradient_is_that_of_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, teacher = (
        mx.array(rng.normal(size=(5, VOCAB)).astype(np.float32) * 2) for _ in range(2)
    )
    teacher = log_softmax(teacher)
    labels = np.array([NO_LABEL, 3, NO_LABEL, VOCAB - 1, 0])
    weights = mx.array([1.0, 2.0, 3.0, 4.0, 5.0])

    def routed(z: mx.array) -> mx.array:
        return toward_labels(reverse_kl(z, teacher), z, mx.array(labels))

    actual, plain = np.array(routed(logits)), np.array(reverse_kl(logits, teacher))
    grad = np.asarray(mx.grad(lambda z: (weights * routed(z)).sum())(logits))
    expected = np.array(mx.grad(lambda z: (weights * reverse_kl(z, teacher)).sum())(logits))
    student = np.asarray(log_softmax(logits)).astype(np.float64)
    for row in np.flatnonzero(labels != NO_LABEL):
        plain[row] = -student[row, labels[row]]
        expected[row] = np.exp(student[row]) * weights[row].item()
        expected[row, labels[row]] -= weights[row].item()
    np.testing.assert_allclose(actual, plain, atol=1e-5)
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    free = labels == NO_LABEL
    np.testing.assert_array_equal(actual[free], plain[free])
    np.testing.assert_array_equal(grad[free], expected[free])
