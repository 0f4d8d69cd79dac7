"""Chunks compute what the recurrence does, token by token, and so do their gradients."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.gated_delta import gated_delta_ops
from recurrence_reference import Arrays, recurrence

from trb_mlx.models.gated_delta import decayed_attention, gated_delta_rule

NAMES = ("q", "k", "v", "log_decay", "beta", "state")
RULES = {True: gated_delta_rule, False: decayed_attention}


def make_inputs(
    length: int,
    key_heads: int = 1,
    groups: int = 2,
    widths: tuple[int, int] = (6, 5),
    rows: int = 1,
    channels: bool = False,
    keys: str = "random",
    gates: str = "mixed",
    beta: float | None = None,
    seed: int = 0,
) -> Arrays:
    """Random inputs in float32; `keys` and `gates` choose the hard cases."""
    rng = np.random.default_rng(seed)
    key_width, width = widths
    heads = key_heads * groups
    k = rng.normal(size=(rows, length, key_heads, key_width))
    if keys != "random":
        near = {"equal": 0.0, "nearly": 1e-3}[keys]
        k = k[:, :1] + near * k
    gate_shape = (rows, length, heads, *([key_width] if channels else []))
    uniform = rng.uniform(size=gate_shape)
    logs = {
        "mixed": -3 * uniform**4,
        "kept": -1e-5 * uniform,
        "forgotten": np.where(uniform < 0.1, -100.0, -20 * uniform),
        "reset": np.where(uniform < 0.1, -np.inf, -0.01 * uniform),
    }[gates]
    q = rng.normal(size=k.shape)
    strengths = rng.uniform(size=(rows, length, heads)) if beta is None else beta
    arrays = {
        "q": q / np.linalg.norm(q, axis=-1, keepdims=True),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.normal(size=(rows, length, heads, width)),
        "log_decay": logs,
        "beta": np.broadcast_to(strengths, (rows, length, heads)),
        "state": rng.normal(size=(rows, heads, width, key_width)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def normwise(actual: mx.array, expected: np.ndarray) -> float:
    gap = np.linalg.norm((np.asarray(actual) - expected).ravel())
    return float(gap / max(np.linalg.norm(expected.ravel()), 1e-30))


def assert_agrees(
    inputs: Arrays, corrects: bool = True, values: float = 5e-6, grads: float = 2e-5
) -> None:
    """Values and gradients by every input of float64's, normwise."""
    rng = np.random.default_rng(7)
    by_output = rng.normal(size=inputs["v"].shape).astype(np.float32)
    by_state = rng.normal(size=inputs["state"].shape).astype(np.float32)
    output, state, expected = recurrence(corrects, inputs, by_output, by_state)
    primals = [mx.array(inputs[name]) for name in NAMES]
    (actual, last), by_inputs = mx.vjp(
        lambda *arrays: RULES[corrects](*arrays), primals, [mx.array(by_output), mx.array(by_state)]
    )
    assert normwise(actual, output) < values
    assert normwise(last, state) < values
    for name, grad in zip(NAMES, by_inputs, strict=True):
        assert normwise(grad, expected[name]) < grads, name


def test_the_reference_is_mlx_lms_recurrence_and_its_gradient_a_difference() -> None:
    inputs = make_inputs(5)
    by_output, by_state = np.ones_like(inputs["v"]), np.ones_like(inputs["state"])
    output, state, grads = recurrence(True, inputs, by_output, by_state)
    arrays = {name: mx.array(array) for name, array in inputs.items()}
    arrays["log_decay"] = mx.exp(arrays["log_decay"])
    theirs = gated_delta_ops(*arrays.values())
    assert max(normwise(theirs[0], output), normwise(theirs[1], state)) < 1e-6
    rng = np.random.default_rng(1)
    for name, array in inputs.items():
        direction, step = rng.normal(size=array.shape), 1e-6
        ends = [
            inputs | {name: array.astype(np.float64) + sign * step * direction} for sign in (1, -1)
        ]
        sums = [
            sum(x.sum() for x in recurrence(True, end, by_output, by_state)[:2]) for end in ends
        ]
        slope = (sums[0] - sums[1]) / (2 * step)
        assert slope == pytest.approx((grads[name] * direction).sum(), rel=1e-6), name


@given(
    st.integers(1, 2048),
    st.integers(1, 2),
    st.integers(1, 3),
    st.tuples(st.integers(4, 12), st.integers(1, 9)),  # keys of one number cancel to nothing
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["random", "nearly", "equal"]),
    st.sampled_from(["mixed", "kept", "forgotten", "reset"]),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_chunks_agree_with_the_recurrence(
    length: int,
    key_heads: int,
    groups: int,
    widths: tuple[int, int],
    rows: int,
    channels: bool,
    corrects: bool,
    keys: str,
    gates: str,
    seed: int,
) -> None:
    inputs = make_inputs(length, key_heads, groups, widths, rows, channels, keys, gates, seed=seed)
    assert_agrees(inputs, corrects)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1024, 2048])
def test_every_length(length: int, channels: bool) -> None:
    assert_agrees(make_inputs(length, groups=1, channels=channels))


@pytest.mark.parametrize("gates", ["kept", "mixed"])
@pytest.mark.parametrize("keys", ["random", "nearly", "equal"])
@pytest.mark.parametrize("beta", [1.0, 0.9999, 1.99])
def test_repeated_text_loses_nothing(beta: float, keys: str, gates: str) -> None:
    """Equal keys written at full strength: a sum of powers of A would be off by 1e6 and more.

    At β near 2 the inverse is 64 times the size of A, and each equal product k·k is rounded alike.
    """
    inputs = make_inputs(300, keys=keys, gates=gates, beta=beta, widths=(32, 16))
    hard = 10 if beta > 1 and keys != "random" else 1
    assert_agrees(inputs, values=hard * 5e-6, grads=hard * 2e-5)


@pytest.mark.parametrize("channels", [False, True])
def test_masked_tokens_leave_the_state_alone(channels: bool) -> None:
    """Rows of several lengths, padded on either side, end as they do alone."""
    inputs = make_inputs(90, rows=3, channels=channels)
    valid = [slice(0, 90), slice(0, 41), slice(30, 90)]
    mask = np.zeros((3, 90), bool)
    for row, part in enumerate(valid):
        mask[row, part] = True
    arrays = {name: mx.array(array) for name, array in inputs.items()}
    output, state = gated_delta_rule(**arrays, mask=mx.array(mask))
    for row, part in enumerate(valid):
        alone = {
            name: array[row : row + 1] if name == "state" else array[row : row + 1, part]
            for name, array in inputs.items()
        }
        zeros = [np.zeros_like(alone[name]) for name in ("v", "state")]
        expected, last, _ = recurrence(True, alone, *zeros)
        assert normwise(output[row : row + 1, part], expected) < 5e-6
        assert normwise(state[row : row + 1], last) < 5e-6


def test_masked_tokens_have_no_gradient() -> None:
    arrays = {name: mx.array(array) for name, array in make_inputs(70).items()}
    mask = mx.arange(70)[None] < 30

    def loss(values: dict[str, mx.array]) -> mx.array:
        output, state = gated_delta_rule(**values, mask=mask)
        return mx.where(mask[..., None, None], output, 0).sum() + state.sum()

    for name, grad in mx.grad(loss)(arrays).items():
        if name != "state":
            assert (grad[:, 30:] == 0).all(), name
            assert mx.abs(grad[:, :30]).max() > 0, name


@pytest.mark.parametrize("corrects", [True, False])
def test_without_a_state_it_starts_from_nothing(corrects: bool) -> None:
    inputs = {name: mx.array(array) for name, array in make_inputs(20).items()}
    state = inputs.pop("state")
    for actual, expected in zip(
        RULES[corrects](**inputs), RULES[corrects](**inputs, state=state * 0), strict=True
    ):
        assert mx.array_equal(actual, expected)


def test_padding_a_long_batch_changes_no_bit() -> None:
    inputs = {name: mx.array(array) for name, array in make_inputs(400).items()}
    whole, _ = gated_delta_rule(**inputs)
    for length in (65, 270, 399):
        part = {n: a if n == "state" else a[:, :length] for n, a in inputs.items()}
        assert mx.array_equal(gated_delta_rule(**part)[0], whole[:, :length])


def test_half_precision_keeps_its_type_and_sums_in_float32() -> None:
    inputs = make_inputs(130)
    halves = {
        name: mx.array(array).astype(mx.bfloat16 if name in "qkv" else mx.float32)
        for name, array in inputs.items()
    }
    output, state = gated_delta_rule(**halves)
    assert (output.dtype, state.dtype) == (mx.bfloat16, mx.float32)
    rounded = {name: np.asarray(array.astype(mx.float32)) for name, array in halves.items()}
    zeros = [np.zeros_like(rounded[name]) for name in ("v", "state")]
    expected, last, _ = recurrence(True, rounded, *zeros)
    assert normwise(output.astype(mx.float32), expected) < 4e-3
    assert normwise(state, last) < 5e-6


def peak(length: int) -> int:
    """Bytes beyond the inputs that values and gradients of `length` tokens take."""
    inputs = make_inputs(length, widths=(32, 32))
    arrays = [mx.array(inputs[name]) for name in NAMES]
    mx.eval(arrays)
    grad = mx.grad(lambda *a: gated_delta_rule(*a)[0].sum(), argnums=list(range(6)))
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(grad(*arrays))
    return mx.get_peak_memory() - before


def test_memory_grows_with_the_inputs_alone() -> None:
    """Four times the tokens: less than twice the memory, since a span's is most of it."""
    assert peak(2048) < 2 * peak(512)
