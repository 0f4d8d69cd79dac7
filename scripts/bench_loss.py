"""Time and memory of the loss and its gradient by the hidden states, for each way to compute it.

Both heads are random, and so are the hidden states; the student's support is recorded beforehand,
as a rollout records it. The sides:

  fused exact       whole vocabulary, chunk by chunk, each with its gradient at once
  fused tail        the top-k loss, in the same way
  plain exact       logits [T, V] of both models
  plain tail        logits [T, V] of the student
  recomputed exact  whole vocabulary by chunks whose forward runs again in the backward pass

All sides alternate in one run; times are medians, and each side's peak is counted from a cleared
cache. `peak` counts all of MLX's memory, both heads included; `above` what is there at that point
beyond the inputs. On a busy machine the CPU's own seconds say more than the clock's. Gradients are
compared too: a side that differs is no saving.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import mlx.core as mx

from trb_mlx.bounds import CHUNK_BYTES, chunk_tokens
from trb_mlx.ops.distribution import log_rest, softmax, top_k
from trb_mlx.ops.divergence import reverse_kl, reverse_kl_on_support
from trb_mlx.ops.fused_head import Arrays, fused_head_loss
from trb_mlx.ops.numerics import log_softmax

SIDES = ("fused exact", "fused tail", "plain exact", "plain tail", "recomputed exact")
TOP_K = 16
# Standard deviation of the logits: rows about as sharp as a language model's.
SHARPNESS = 3.0

Side = Callable[[mx.array], mx.array]  # hidden states [T, D] → the mean loss


@dataclass(frozen=True)
class Sizes:
    """Response tokens, vocabulary, and the widths of student and teacher."""

    tokens: int
    vocab: int
    student_width: int
    teacher_width: int


@dataclass(frozen=True)
class Problem:
    """Heads `[V, D]`, hidden states `[T, D]`, and what a rollout recorded of the teacher."""

    sizes: Sizes
    student_head: mx.array
    teacher_head: mx.array
    hidden: mx.array
    teacher_hidden: mx.array
    recorded: Arrays

    def student_logits(self, hidden: mx.array) -> mx.array:
        """Float32 logits `[n, V]` of the student."""
        return (hidden @ self.student_head.T).astype(mx.float32)

    def teacher_logits(self, hidden: mx.array) -> mx.array:
        """Float32 logits `[n, V]` of the teacher."""
        return (hidden @ self.teacher_head.T).astype(mx.float32)

    def exact(self, logits: mx.array, arrays: Arrays) -> tuple[mx.array, Arrays]:
        """Reverse KL over the whole vocabulary."""
        return reverse_kl(logits, log_softmax(self.teacher_logits(arrays["teacher"]))), {}

    def tail(self, logits: mx.array, arrays: Arrays) -> tuple[mx.array, Arrays]:
        """Reverse KL on the recorded support and the rest."""
        teacher = arrays["inside"], arrays["rest"]
        return reverse_kl_on_support(logits, arrays["support"], *teacher), {}


def make_problem(sizes: Sizes, dtype: mx.Dtype, seed: int) -> Problem:
    """A random problem; the recorded support is the student's true top-k."""
    keys = mx.random.split(mx.random.key(seed), 4)

    def head(width: int, key: mx.array) -> mx.array:
        weights = mx.random.normal((sizes.vocab, width), key=key)
        return (weights * (SHARPNESS / width**0.5)).astype(dtype)

    heads = head(sizes.student_width, keys[0]), head(sizes.teacher_width, keys[1])
    widths = (sizes.student_width, sizes.teacher_width)
    hidden = [
        mx.random.normal((sizes.tokens, width), key=key).astype(dtype)
        for width, key in zip(widths, keys[2:], strict=True)
    ]
    mx.eval(heads, hidden)
    problem = Problem(sizes, heads[0], heads[1], hidden[0], hidden[1], {})
    return replace(problem, recorded=record(problem))


def record(problem: Problem) -> Arrays:
    """The student's support and the teacher on it, a few tokens at a time."""
    parts = []
    chunk = chunk_tokens(problem.sizes.vocab, models=2)
    for start in range(0, problem.sizes.tokens, chunk):
        rows = slice(start, start + chunk)
        support = top_k(problem.student_logits(problem.hidden[rows]), TOP_K)
        teacher = softmax(problem.teacher_logits(problem.teacher_hidden[rows]))
        inside = mx.take_along_axis(teacher.logprobs, support, axis=-1)
        parts.append({"support": support, "inside": inside, "rest": log_rest(teacher, support)})
        mx.eval(parts[-1])
    recorded = {name: mx.concatenate([part[name] for part in parts]) for name in parts[0]}
    mx.eval(recorded)
    return recorded


def make_side(problem: Problem, name: str, chunk_bytes: int = CHUNK_BYTES) -> Side:
    """The mean loss in one of the ways of `SIDES`."""
    way, mode = name.split()
    whole = mode == "exact"
    arrays = {"teacher": problem.teacher_hidden} if whole else problem.recorded
    token_loss = problem.exact if whole else problem.tail
    chunk = chunk_tokens(problem.sizes.vocab, 2 if whole else 1, chunk_bytes)

    def fused(hidden: mx.array) -> mx.array:
        return fused_head_loss(hidden, arrays, problem.student_logits, token_loss, chunk)[0].mean()

    def plain(hidden: mx.array) -> mx.array:
        return token_loss(problem.student_logits(hidden), arrays)[0].mean()

    def recomputed(hidden: mx.array) -> mx.array:
        return recomputed_loss(problem, hidden, chunk).mean()

    return {"fused": fused, "plain": plain, "recomputed": recomputed}[way]


def recomputed_loss(problem: Problem, hidden: mx.array, chunk: int) -> mx.array:
    """The exact loss `[T]` by chunks that keep nothing: the backward pass runs both heads again."""

    def of_chunk(rows: mx.array, teacher: mx.array) -> mx.array:
        return problem.exact(problem.student_logits(rows), {"teacher": teacher})[0]

    losses: list[mx.array] = []
    for start in range(0, hidden.shape[0], chunk):
        inputs = [x[start : start + chunk] for x in (hidden, problem.teacher_hidden)]
        if losses:
            inputs = list(mx.depends(inputs, losses[-1:]))
        losses.append(mx.checkpoint(of_chunk)(*inputs))
    return mx.concatenate(losses)


@dataclass
class Measured:
    """One call: seconds by the clock and of the CPU, peak bytes, and what came out."""

    seconds: float
    cpu_seconds: float
    peak: int
    above: int
    loss: float
    gradient: mx.array


def measure(problem: Problem, side: Side) -> Measured:
    """One loss with its gradient, from a cleared cache."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    begun = time.perf_counter(), time.process_time()
    loss, gradient = mx.value_and_grad(side)(problem.hidden)
    mx.eval(loss, gradient)
    seconds, busy = time.perf_counter() - begun[0], time.process_time() - begun[1]
    peak = mx.get_peak_memory()
    return Measured(seconds, busy, peak, peak - before, float(loss), gradient)


def compare(
    problem: Problem, sides: Sequence[str], repeats: int, chunk_bytes: int = CHUNK_BYTES
) -> list[dict[str, float | str]]:
    """One line a side; `gradient_gap` is relative to the first side of the same loss."""
    ways = {name: make_side(problem, name, chunk_bytes) for name in sides}
    runs: dict[str, list[Measured]] = {name: [] for name in sides}
    gaps: dict[str, float] = {}
    for _ in range(repeats):
        first: dict[str, mx.array] = {}
        for name, side in ways.items():
            found = measure(problem, side)
            reference = first.setdefault(name.split()[1], found.gradient)
            gap = mx.abs(found.gradient - reference).max() / mx.abs(reference).max()
            gaps[name] = float(gap)
            found.gradient = mx.array(0)
            runs[name].append(found)
    return [
        {
            "side": name,
            "seconds": statistics.median(run.seconds for run in found),
            "cpu_seconds": statistics.median(run.cpu_seconds for run in found),
            "peak_mib": max(run.peak for run in found) / 2**20,
            "above_mib": max(run.above for run in found) / 2**20,
            "loss": found[0].loss,
            "gradient_gap": gaps[name],
        }
        for name, found in runs.items()
    ]


@click.command()
@click.option("--tokens", default=2048, show_default=True)
@click.option("--vocab", default=[151_936], multiple=True, show_default=True)
@click.option("--student-width", default=1024, show_default=True)
@click.option("--teacher-width", default=2048, show_default=True)
@click.option("--side", "sides", type=click.Choice(SIDES), multiple=True, help="Default: all.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--chunk-mib", default=CHUNK_BYTES // 2**20, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_path", type=Path, help="Write the table as JSON too.")
def main(
    tokens: int,
    vocab: tuple[int, ...],
    student_width: int,
    teacher_width: int,
    sides: tuple[str, ...],
    dtype: str,
    chunk_mib: int,
    repeats: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Print the table."""
    found = []
    print(f"T {tokens}, {dtype}, medians of {repeats}, device {mx.default_device()}")
    print(f"{'V':>8} {'side':<17} {'time':>9} {'CPU':>9} {'peak':>11} {'above':>11} {'gap':>8}")
    for size in vocab:
        sizes = Sizes(tokens, size, student_width, teacher_width)
        problem = make_problem(sizes, getattr(mx, dtype), seed)
        for line in compare(problem, sides or SIDES, repeats, chunk_mib * 2**20):
            found.append({"vocab": size, "tokens": tokens} | line)
            print(
                f"{size:>8} {line['side']:<17} {line['seconds']:>7.2f} s "
                f"{line['cpu_seconds']:>7.2f} s "
                f"{line['peak_mib']:>7.0f} MiB {line['above_mib']:>7.0f} MiB "
                f"{line['gradient_gap']:>8.1e}"
            )
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
