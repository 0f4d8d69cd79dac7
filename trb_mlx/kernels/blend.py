"""The trust region's blend by one kernel, a launch a batch of rows, where it has shown that it can.

The kernel is written for GPUs that its authors have not all seen. So once a process it is tried
against the plain operations on hard rows, and where it cannot be built or differs they go on alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import mlx.core as mx
import numpy as np

from trb_mlx.backend import on_gpu
from trb_mlx.kernels.source import CUDA, INPUTS, METAL, OUTPUTS, THREADS, body_of, header_of
from trb_mlx.ops import trust_region
from trb_mlx.ops.distribution import Distribution, softmax
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.ops.trust_region import Solution, blend_logprobs

Solver = Callable[[Distribution, mx.array, mx.array], Solution]
BUDGETS = (0.0, 1e-5, 0.001, 0.02, 0.3, 3.0)


def solve_blend(
    student: Distribution, teacher_logprobs: mx.array, budget: mx.array | float
) -> Solution:
    """`trust_region.solve_blend`, by the kernel on a GPU where `check_kernel` found nothing."""
    if on_gpu() and check_kernel() is None:
        return launch(student, teacher_logprobs, budget)
    return trust_region.solve_blend(student, teacher_logprobs, budget)


def kernel_note() -> str | None:
    """Why the kernel is not used on this machine's GPU; None where it is, and without a GPU."""
    return check_kernel() if on_gpu() else None


def launch(student: Distribution, teacher_logprobs: mx.array, budget: mx.array | float) -> Solution:
    """`trust_region.solve_blend` by the kernel, unseen by the host.

    Raises:
        RuntimeError: there is no GPU, or, once evaluated, the kernel cannot be built there.
    """
    shape = student.logprobs.shape
    student_logprobs, roots, teacher = (
        x.reshape(-1, shape[-1]) for x in (student.logprobs, student.roots, teacher_logprobs)
    )
    rows = len(roots)
    limits = mx.array(budget, dtype=mx.float32)
    if limits.size > 1:  # the kernel spreads one over the rows itself, without a launch
        limits = mx.broadcast_to(limits, shape[:-1])
    numbers, probs = _kernel()(
        inputs=[student_logprobs, roots, teacher, limits.reshape(-1), student.total.reshape(-1)],
        grid=(rows * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(rows, 3), (rows, shape[-1])],
        output_dtypes=[mx.float32, mx.float32],
    )
    weight, kl, distance = (numbers[:, i].reshape(shape[:-1]) for i in range(3))
    return Solution(weight, kl, distance, probs.reshape(shape))


@cache
def _kernel() -> Callable[..., list[mx.array]]:
    on_cuda = mx.cuda.is_available()
    make, dialect = (mx.fast.cuda_kernel, CUDA) if on_cuda else (mx.fast.metal_kernel, METAL)
    return make(  # type: ignore[return-value]
        name="trust_region",
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        header=header_of(dialect),
        source=body_of(dialect),
    )


@cache
def check_kernel() -> str | None:
    """What is wrong with the kernel on this machine's GPU, in a sentence; None where nothing is.

    Tried once a process, on hard rows and on rows of 151,936 ids.
    """
    try:
        wrong = next(differences(launch), None)
    except Exception as error:  # whatever a foreign compiler or driver raises
        reason = str(error).strip().partition("\n")[0]
        wrong = f"it cannot be built or run ({type(error).__name__}: {reason})"
    return wrong and f"The trust region is solved without its kernel, for {wrong}."


def differences(solve: Solver) -> Iterator[str]:
    """How a solver differs from plain operations on hard rows, in clauses; none where it does not.

    Its weights need not be theirs where the budget binds, but its KL has to be near the budget and
    everything it tells that of the blend of its weight.
    """
    for name, logits in _hard_rows():
        student, teacher = (softmax(mx.array(x)) for x in logits)
        for budget in BUDGETS:
            limit = mx.array(budget)
            plain = trust_region.solve_blend(student, teacher.logprobs, limit)
            found = solve(student, teacher.logprobs, limit)
            logprobs = blend_logprobs(student.logprobs, teacher.logprobs, found.weight)
            probs = mx.exp(logprobs)
            kl = kl_divergence(logprobs, student.logprobs)
            distance = total_variation(probs, student.probs)
            both = mx.stack([found.weight, plain.weight])
            ends = ((both == 0.0) | (both == 1.0)).max(axis=0)
            apart = {
                "weights": mx.where(ends, mx.abs(found.weight - plain.weight), 0.0),
                "shares of the budget": mx.abs(found.kl - plain.kl) / max(100.0 * budget, 1e-4),
                "divergences": mx.abs(found.kl - kl) / (200.0 * kl + 1e-3),
                "total variations": mx.abs(found.total_variation - distance),
                "probabilities": mx.abs(found.probs - probs),
            }
            for what, values in apart.items():
                worst = float(np.asarray(values).max())  # nan is seen by what follows
                if not worst <= 2e-5:
                    yield f"on {name} rows under a budget of {budget:g} its {what} are off"


def _hard_rows() -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Pairs of logits `[R, V]`, student and teacher, by what makes them hard."""
    rng = np.random.default_rng(0)
    for vocab, count in ((3, 64), (1000, 16), (4099, 8), (151_936, 3)):
        size = (count, vocab)
        ranks = rng.permuted(np.tile(np.arange(1, vocab + 1), (count, 1)), axis=1)
        student = -rng.uniform(1, 4, (count, 1)) * np.log(ranks) + rng.normal(size=size)
        moved = student + rng.normal(size=size) * rng.choice([0.1, 1, 3], (count, 1))
        yield "language-like", _float32(student, moved)
        sunk = student - 30.0 * (ranks < 4)
        yield "far apart", _float32(student, sunk + 25.0 * (rng.random(size) < 3 / vocab))
        masked = ranks > rng.integers(2, vocab + 1, (count, 1))
        ruled_out = (ranks % 7 == 5) | (rng.random(size) < 0.1) & (ranks > 2)
        yield (
            "masked",
            _float32(
                np.where(masked, -np.inf, student),
                np.where(masked & (ranks % 2 == 1), -np.inf, np.where(ruled_out, -1e9, moved)),
            ),
        )


def _float32(*logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    student, teacher = (x.astype(np.float32) for x in logits)
    return student, teacher
