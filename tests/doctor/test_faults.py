"""Every check passes here, and fails where what it checks is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from trb_mlx.doctor import (
    attention,
    losses,
    rollouts,
    solving,
    training,
    vocabulary,
)
from trb_mlx.doctor.check import FAIL, PASS, SKIPPED, Check, run_check
from trb_mlx.doctor.examination import CHECKS
from trb_mlx.models import precision
from trb_mlx.ops import divergence, trust_region
from trb_mlx.rollout import cache_trial, generator, row_cache, speculative
from trb_mlx.runs import checkpoint
from trb_mlx.training.step import Stepper

Patch = pytest.MonkeyPatch
NAMED = {check.name: check for check in CHECKS}


@pytest.fixture(autouse=True)
def _few_rollouts(monkeypatch: Patch) -> None:
    monkeypatch.setattr(rollouts, "COPIES", 1_000)


@pytest.fixture(autouse=True)
def _a_gpu_s_kernel(monkeypatch: Patch) -> None:
    """Plain operations in the place of the kernel, which is built on a GPU alone."""
    monkeypatch.setattr(solving, "on_gpu", lambda: True)
    monkeypatch.setattr(solving, "launch", trust_region.solve_blend)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_it_passes_here(check: Check) -> None:
    outcome = run_check(check)
    assert outcome.result == PASS, outcome.measured


def wrong_gradient(patch: Patch) -> None:
    """What mlx-lm's own KL does on Metal: no gradient."""
    patch.setitem(losses.WHOLE, "exact", lambda z, t: mx.stop_gradient(divergence.reverse_kl(z, t)))


def wrong_loss(patch: Patch) -> None:
    plain = divergence.reverse_kl_on_support
    patch.setattr(losses, "reverse_kl_on_support", lambda *args: 1.001 * plain(*args))


def lost_chunk(patch: Patch) -> None:
    """The gradient of the last token is that of no token."""
    plain = losses.fused_head_loss

    def cut(hidden: mx.array, *rest: Any) -> Any:
        kept = mx.arange(len(hidden))[:, None] < len(hidden) - 1
        return plain(mx.where(kept, hidden, mx.stop_gradient(hidden)), *rest)

    patch.setattr(losses, "fused_head_loss", cut)


def scaled_weight(factor: float, patch: Patch) -> None:
    plain = trust_region.solve_blend

    def scaled(*rows: Any) -> trust_region.Solution:
        solution = plain(*rows)
        return solution._replace(weight=factor * solution.weight)

    patch.setattr(trust_region, "solve_blend", scaled)


def scaled_kernel(factor: float, patch: Patch) -> None:
    def scaled(*rows: Any) -> trust_region.Solution:
        solution = trust_region.solve_blend(*rows)
        return solution._replace(probs=factor * solution.probs)

    patch.setattr(solving, "launch", scaled)


def biased_draw(factor: float, patch: Patch) -> None:
    for module, name in (
        (solving, "bare_draw"),
        (generator, "bare_draw"),
        (generator, "softmax_draw"),
    ):
        biased = partial(_with_larger_uniforms, getattr(module, name), factor)
        patch.setattr(module, name, biased)


def _with_larger_uniforms(plain: Any, factor: float, rows: mx.array, uniforms: mx.array) -> Any:
    return plain(rows, mx.minimum(uniforms * factor, 0.9999))


def shifted_offset(patch: Patch) -> None:
    plain = row_cache.Offsets.set

    def shifted(self: row_cache.Offsets, lengths: np.ndarray) -> None:
        plain(self, np.maximum(lengths - 1, 0))
        self.lengths = lengths

    patch.setattr(row_cache.Offsets, "set", shifted)


def every_draft_kept(patch: Patch) -> None:
    """The student's own law instead of the behavior's."""
    plain = speculative.accept_drafts

    def keep(tokens: mx.array, draft: Any, probs: mx.array, uniforms: mx.array) -> Any:
        return plain(tokens, draft, draft.probs, uniforms)

    patch.setattr(speculative, "accept_drafts", keep)


def blocks_differ(patch: Patch) -> None:
    """Blocks of four whose tests use other uniforms: a right law, but of other rollouts."""
    plain = speculative.SpeculativeGenerator.verify

    def moved(self: Any, last: mx.array, draft: Any, tests: mx.array) -> Any:
        return plain(self, last, draft, tests if tests.shape[1] == 1 else (tests + 0.5) % 1.0)

    patch.setattr(speculative.SpeculativeGenerator, "verify", moved)


def a_teacher_with_adapters(patch: Patch) -> None:
    """The student's own tree, in which adapters that are not at rest show."""
    plain = training.add_lora

    def moved(module: nn.Module, *arguments: Any, **others: Any) -> None:
        plain(module, *arguments, **others)
        for inner in module.modules():
            if "lora_b" in inner:
                inner.lora_b = inner.lora_b + 0.1

    patch.setattr(training, "add_lora", moved)


def stale_compile(patch: Patch) -> None:
    """A compiled graph that keeps the weights it was traced with."""

    def make(self: Stepper, loss: Callable[..., Any]) -> Callable[..., Any]:
        grad = nn.value_and_grad(self.module, loss)
        return mx.compile(grad) if self.compiled else grad

    patch.setattr(Stepper, "_make_grad", make)


def no_blocks(patch: Patch) -> None:
    """Models whose caches are taken for ones that cannot be trimmed."""
    patch.setattr(cache_trial, "TRIMMABLE", ())


def forgotten_moments(patch: Patch) -> None:
    plain = checkpoint.tree_unflatten

    def without(items: list[tuple[str, mx.array]]) -> Any:
        return plain([(name, 0 * x if name[-2:] == ".m" else x) for name, x in items])

    patch.setattr(checkpoint, "tree_unflatten", without)


def narrow_softmax(patch: Patch) -> None:
    """Log-probs in the logits' own type."""
    patch.setattr(training, "log_softmax", lambda z: z - mx.logsumexp(z, axis=-1, keepdims=True))


def unmasked_rows(patch: Patch) -> None:
    """Every row sees as far as the longest does."""
    plain = row_cache.RowKVCache.make_mask

    def make_mask(self: row_cache.RowKVCache, count: int, *rest: Any, **more: Any) -> Any:
        longest = row_cache.Offsets([int(self.offsets.lengths.max())] * len(self.offsets.lengths))
        return plain(row_cache.RowKVCache(longest, self.window), count, *rest, **more)

    patch.setattr(row_cache.RowKVCache, "make_mask", make_mask)


def wider_window(patch: Patch) -> None:
    plain = row_cache.RowKVCache.make_mask

    def make_mask(self: row_cache.RowKVCache, count: int, *rest: Any, **more: Any) -> Any:
        wider = self.window and self.window + 1
        return plain(row_cache.RowKVCache(self.offsets, wider), count, *rest, **more)

    patch.setattr(row_cache.RowKVCache, "make_mask", make_mask)


def other_key_heads(patch: Patch) -> None:
    """Query heads in turns, where neighbours share a key head."""
    plain = mx.fast.scaled_dot_product_attention

    def turned(queries: mx.array, keys: mx.array, values: mx.array, **more: Any) -> mx.array:
        groups = queries.shape[1] // keys.shape[1]
        keys, values = (mx.concatenate([x] * groups, axis=1) for x in (keys, values))
        return plain(queries, keys, values, **more)

    patch.setattr(mx.fast, "scaled_dot_product_attention", turned)


def one_head_size(size: int, fault: Callable[[Patch], None], patch: Patch) -> None:
    """A kernel that is wrong for one head dimension alone."""
    plain = mx.fast.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as inner:
        fault(inner)
        wrong = mx.fast.scaled_dot_product_attention
    patch.setattr(
        mx.fast,
        "scaled_dot_product_attention",
        lambda queries, *rest, **more: (wrong if queries.shape[-1] == size else plain)(
            queries, *rest, **more
        ),
    )


def long_blocks(patch: Patch) -> None:
    """A kernel for more than eight tokens that forgets the mask."""
    plain = mx.fast.scaled_dot_product_attention

    def forgetful(queries: mx.array, *rest: Any, **more: Any) -> mx.array:
        return plain(queries, *rest, **(more | {"mask": None} if queries.shape[2] > 8 else more))

    patch.setattr(mx.fast, "scaled_dot_product_attention", forgetful)


def no_biases(patch: Patch) -> None:
    plain = mx.quantized_matmul

    def without(rows: mx.array, packed: mx.array, scales: mx.array, biases: mx.array, **more: Any):
        return plain(rows, packed, scales, 0 * biases, **more)

    patch.setattr(mx, "quantized_matmul", without)


def wrong_token(patch: Patch) -> None:
    """A kernel for one row alone that is wrong in one output of a thousand."""
    plain = mx.quantized_matmul

    def off(rows: mx.array, *rest: Any, **more: Any) -> mx.array:
        product = plain(rows, *rest, **more)
        return product + 3.0 * (mx.arange(product.shape[-1]) == 7) * (len(rows) == 1)

    patch.setattr(mx, "quantized_matmul", off)


def rounded_rows(patch: Patch) -> None:
    """TF32 where the device says that it has none."""
    patch.setattr(precision, "row_gap", lambda dtype: 1e-4)


def lost_block(patch: Patch) -> None:
    """The last ids of the vocabulary are never among the likeliest."""
    plain = vocabulary.top_k
    patch.setattr(
        vocabulary, "top_k", lambda rows, count: plain(rows[:, : len(rows[0]) // 2], count)
    )


def repeated_id(patch: Patch) -> None:
    plain = vocabulary.top_k
    patch.setattr(
        vocabulary,
        "top_k",
        lambda rows, count: mx.minimum(plain(rows, count), 10**9)[:, [0] * count],
    )


def narrow_nucleus(patch: Patch) -> None:
    plain = vocabulary.nucleus
    patch.setattr(vocabulary, "nucleus", lambda rows, top_p: plain(rows, 0.995 * top_p))


FAULTS: list[tuple[str, Callable[[Patch], None]]] = [
    ("loss gradients", wrong_gradient),
    ("loss gradients", wrong_loss),
    ("fused head", lost_chunk),
    ("trust region", partial(scaled_weight, 1.01)),
    ("trust region", partial(scaled_weight, 0.99)),
    ("trust region, 151,936 ids", partial(scaled_weight, 1.01)),
    ("trust region's kernel", partial(scaled_kernel, 1.001)),
    ("draws", partial(biased_draw, 1.03)),
    ("draws, 151,936 ids", partial(biased_draw, 1.001)),
    ("choices, 151,936 ids", lost_block),
    ("choices, 151,936 ids", repeated_id),
    ("choices, 151,936 ids", narrow_nucleus),
    ("products' rows", rounded_rows),
    ("4-bit layers", no_biases),
    ("4-bit layers", wrong_token),
    *(
        (f"attention, heads of {size}", fault)
        for size in attention.HEAD_SIZES
        for fault in (unmasked_rows, wider_window, partial(one_head_size, size, other_key_heads))
    ),
    ("attention, heads of 128", long_blocks),
    ("attention, heads of 64", shifted_offset),
    ("batched decoding", shifted_offset),
    ("law of rollouts", partial(biased_draw, 1.15)),
    ("law of rollouts", every_draft_kept),
    ("law of rollouts", blocks_differ),
    ("law of rollouts", no_blocks),
    ("compiled step", stale_compile),
    ("checkpoint", forgotten_moments),
    ("its own teacher", a_teacher_with_adapters),
    ("bfloat16", narrow_softmax),
    ("float16", narrow_softmax),
]


def name_of(value: Any) -> str:
    return str(getattr(getattr(value, "func", value), "__name__", value))


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=name_of)
def test_it_sees_a_fault(name: str, fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    fault(monkeypatch)
    outcome = run_check(NAMED[name])
    assert outcome.result == FAIL
    assert outcome.findings, outcome.reason  # seen by a figure, not by an exception


def test_every_check_has_a_fault() -> None:
    assert {name for name, _ in FAULTS} == set(NAMED)


def test_without_a_compiler_the_compiled_step_is_skipped(monkeypatch: Patch) -> None:
    monkeypatch.setattr(training, "can_compile", lambda: False)
    outcome = run_check(NAMED["compiled step"])
    assert outcome.result == SKIPPED
    assert "g++" in outcome.measured


def test_without_a_gpu_its_kernel_is_skipped(monkeypatch: Patch) -> None:
    monkeypatch.setattr(solving, "on_gpu", lambda: False)
    assert run_check(NAMED["trust region's kernel"]).result == SKIPPED


def test_bounds_follow_the_products_of_the_device(monkeypatch: Patch) -> None:
    assert 0 < precision.product_rounding() < precision.EXACT_PRODUCTS
    assert precision.bound(1.0, 2.0) == 1.0
    monkeypatch.setattr(precision, "product_rounding", lambda: 1e-4)
    assert precision.bound(1.0, 2.0) == 2.0
