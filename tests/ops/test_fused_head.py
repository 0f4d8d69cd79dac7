"""The loss by chunks of tokens: the plain loss and gradient, in a fraction of the memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.reference import support_logprobs
from test_divergence import log_softmax64

from trb_mlx.ops.divergence import (
    SUPPORT_MODES,
    reverse_kl,
    reverse_kl_on_support,
)
from trb_mlx.ops.fused_head import Arrays, fused_head_loss
from trb_mlx.ops.numerics import log_softmax

Loss = Callable[[mx.array], tuple[mx.array, Arrays]]


class Example:
    """Heads `[V, D]`, hidden states `[N, D]`, and the weights of the tokens `[N]`."""

    def __init__(self, tokens: int, vocab: int, seed: int, width: int = 12) -> None:
        rng = np.random.default_rng(seed)
        make = [rng.normal(size=shape) for shape in ((tokens, width), (vocab, width))]
        self.hidden, self.head = (x.astype(np.float32) for x in make)
        self.teacher_hidden = rng.normal(size=(tokens, 8)).astype(np.float32)
        self.teacher_head = rng.normal(size=(vocab, 8)).astype(np.float32)
        self.weights = rng.uniform(0.1, 2.0, tokens).astype(np.float32)
        support = np.argsort(-self.hidden @ self.head.T, axis=-1)[:, : min(4, vocab)]
        self.support = support.astype(np.int32)
        self.on_device = mx.array(self.head.T), mx.array(self.teacher_head.T)

    def arrays(self, mode: str) -> Arrays:
        if mode == "exact":
            return {"teacher": mx.array(self.teacher_hidden)}
        support = mx.array(self.support)
        teacher = np.asarray(self.teacher_logits(self.teacher_hidden))
        inside, rest = support_logprobs(teacher, self.support)
        arrays = {"support": support, "inside": inside, "rest": rest}
        mx.eval(arrays)
        return arrays

    def teacher_logits(self, hidden: mx.array) -> mx.array:
        return mx.array(hidden) @ self.on_device[1]

    def student_logits(self, hidden: mx.array) -> mx.array:
        return hidden @ self.on_device[0]

    def token_loss(self, mode: str, logits: mx.array, arrays: Arrays) -> tuple[mx.array, Arrays]:
        measures = {"largest": logits.max(-1)}
        if mode == "exact":
            teacher = log_softmax(self.teacher_logits(arrays["teacher"]))
            return reverse_kl(logits, teacher), measures
        teacher = arrays["inside"], arrays["rest"]
        return reverse_kl_on_support(logits, arrays["support"], *teacher, mode), measures

    def plain(self, mode: str) -> Loss:
        arrays = self.arrays(mode)
        return lambda x: self.token_loss(mode, self.student_logits(x), arrays)

    def fused(self, mode: str, chunk: int) -> Loss:
        arrays, token_loss = self.arrays(mode), partial(self.token_loss, mode)
        return lambda x: fused_head_loss(x, arrays, self.student_logits, token_loss, chunk)

    def total(self, loss: Loss) -> Callable[[mx.array], tuple[mx.array, Arrays]]:
        def weighted(hidden: mx.array) -> tuple[mx.array, Arrays]:
            values, measures = loss(hidden)
            return (values * mx.array(self.weights)).sum(), measures

        return weighted


def close(actual: mx.array, expected: mx.array | np.ndarray, tolerance: float = 2e-5) -> None:
    scale = max(1.0, float(np.abs(np.asarray(expected)).max()))
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=tolerance * scale)


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from([*SUPPORT_MODES, "exact"]),
    tokens=st.integers(1, 13),
    vocab=st.integers(2, 700),
    chunk=st.integers(1, 15),
    seed=st.integers(0, 2**32 - 1),
)
def test_chunks_change_nothing(mode: str, tokens: int, vocab: int, chunk: int, seed: int) -> None:
    example = Example(tokens, vocab, seed)
    hidden = mx.array(example.hidden)
    (loss, measures), grad = mx.value_and_grad(example.total(example.fused(mode, chunk)))(hidden)
    (expected, plain), plain_grad = mx.value_and_grad(example.total(example.plain(mode)))(hidden)
    close(loss, expected)
    close(grad, plain_grad)
    close(measures["largest"], plain["largest"])


def test_the_exact_gradient_against_float64() -> None:
    example = Example(7, 3000, seed=3)
    grad = mx.grad(lambda x: example.total(example.fused("exact", 2))(x)[0])(
        mx.array(example.hidden)
    )
    head = example.head.astype(np.float64)
    student = log_softmax64(example.hidden.astype(np.float64) @ head.T)
    teacher = log_softmax64(
        example.teacher_hidden.astype(np.float64) @ example.teacher_head.T.astype(np.float64)
    )
    mass, ratio = np.exp(student), student - teacher
    value = (mass * ratio).sum(-1, keepdims=True)
    close(grad, example.weights[:, None] * ((mass * (ratio - value)) @ head))


def test_compiled_checkpointed_and_in_half_precision() -> None:
    example = Example(11, 300, seed=4)
    hidden = mx.array(example.hidden)
    mix = mx.array(np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32) / 4)
    fused = example.total(example.fused("exact", 4))
    expected = mx.grad(lambda a: example.total(example.plain("exact"))(mx.tanh(hidden @ a))[0])(mix)

    def of_body(a: mx.array, body: Callable[[mx.array], mx.array]) -> mx.array:
        return fused(body(a))[0]

    def body(a: mx.array) -> mx.array:
        return mx.tanh(hidden @ a)

    close(mx.grad(partial(of_body, body=body))(mix), expected)
    close(mx.compile(mx.grad(partial(of_body, body=body)))(mix), expected)
    close(mx.grad(partial(of_body, body=mx.checkpoint(body)))(mix), expected)
    narrow = mx.grad(lambda x: fused(x)[0])(hidden.astype(mx.bfloat16))
    assert narrow.dtype == mx.bfloat16
    close(narrow.astype(mx.float32), mx.grad(lambda x: fused(x)[0])(hidden), tolerance=0.02)


def test_nothing_flows_into_measures_or_constants() -> None:
    example = Example(5, 40, seed=5)

    def of_measure(hidden: mx.array) -> mx.array:
        return example.fused("exact", 2)(hidden)[1]["largest"].sum()

    assert not np.asarray(mx.grad(of_measure)(mx.array(example.hidden))).any()


def test_a_broken_token_stays_alone() -> None:
    """A value that is not finite reaches its own token's gradient and no other."""
    example = Example(6, 50, seed=6)
    example.teacher_hidden[2] = np.nan
    (loss, _), grad = mx.value_and_grad(lambda x: (example.fused("exact", 2)(x)[0].sum(), 0))(
        mx.array(example.hidden)
    )
    assert np.isnan(loss.item())
    broken = np.isnan(np.asarray(grad)).any(-1)
    assert broken.tolist() == [False, False, True, False, False, False]


def peak(loss: Loss, example: Example) -> int:
    """Bytes that value and gradient take above what is there before."""
    hidden = mx.array(example.hidden)
    grad = mx.value_and_grad(example.total(loss))
    mx.eval(hidden, *example.on_device)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(grad(hidden))
    return mx.get_peak_memory() - before


def test_a_compiled_loss_holds_one_chunk_too() -> None:
    peaks = []
    for tokens in (256, 1024):
        example = Example(tokens, 4000, seed=7)
        hidden = mx.array(example.hidden)
        grad = mx.compile(mx.value_and_grad(example.total(example.fused("exact", 32))))
        mx.eval(grad(hidden))
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(grad(hidden))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize(("mode", "share"), [("exact", 0.2), ("tail", 0.35)])
def test_memory_is_that_of_a_chunk(mode: str, share: float) -> None:
    """1,024 tokens of 4,000 ids: one array of all logits takes 16 MB."""
    example = Example(1024, 4000, seed=7)
    whole = peak(example.plain(mode), example)
    assert whole > 2 * 1024 * 4000 * 4
    assert peak(example.fused(mode, 32), example) < share * whole
    # Without the order between chunks they stand side by side, and nothing is saved.
    more = Example(2048, 4000, seed=7)
    assert peak(more.fused(mode, 32), more) < 1.5 * peak(example.fused(mode, 32), example)
