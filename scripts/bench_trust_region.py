"""Cost of the blend-weight solver against the shortest bisection of the same accuracy.

Both sides alternate in one run; the table shows medians. Rows are like a language model's: a
Zipf-like student with noise, and a teacher that moves every log-prob. The bisection's length is
the smallest whose worst short-fall of KL below the budget, on these very rows, is within 1%
(it returns its feasible end, so it never exceeds the budget).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import mlx.core as mx
import numpy as np

from trb_mlx.ops.numerics import kl_divergence, log_softmax
from trb_mlx.ops.trust_region import blend_logprobs, solve_blend_weight

LONGEST = 30  # bisection steps tried


def make_rows(batch: int, vocab: int, seed: int) -> tuple[mx.array, mx.array]:
    """Student and teacher log-probs `[B, V]`."""
    rng = np.random.default_rng(seed)
    zipf = -1.1 * np.log(np.arange(1, vocab + 1))
    logits = np.stack([rng.permutation(zipf) for _ in range(batch)])
    logits = logits * rng.choice([1.0, 2.0, 4.0], size=(batch, 1))
    logits = logits + rng.normal(size=logits.shape)
    moved = logits + rng.normal(size=logits.shape) * rng.choice([0.5, 1.0, 2.0], size=(batch, 1))
    student, teacher = (log_softmax(mx.array(x.astype(np.float32))) for x in (logits, moved))
    mx.eval(student, teacher)
    return student, teacher


def bisect_weight(student: mx.array, teacher: mx.array, budget: mx.array, steps: int) -> mx.array:
    """The plain search: halve [0, 1], keep the feasible end."""
    low, high = mx.zeros(student.shape[:-1]), mx.ones(student.shape[:-1])
    feasible = _kl(student, teacher, high) <= budget
    for _ in range(steps):
        middle = 0.5 * (low + high)
        fits = _kl(student, teacher, middle) <= budget
        low, high = mx.where(fits, middle, low), mx.where(fits, high, middle)
    return mx.where(feasible, 1.0, low)


def _kl(student: mx.array, teacher: mx.array, weight: mx.array) -> mx.array:
    return kl_divergence(blend_logprobs(student, teacher, weight), student)


def worst_ratio(student: mx.array, teacher: mx.array, weight: mx.array, budget: float) -> float:
    """The smallest KL(μ ‖ π_S)/ε over rows where the budget binds, in float64."""
    ratios = [1.0]
    arrays = (np.asarray(x, np.float64) for x in (student, teacher, weight))
    for s, t, w in zip(*arrays, strict=True):
        if w < 1.0:
            s, t = (x - np.log(np.exp(x).sum()) for x in (s, t))  # float32 rows sum to 1 ± 1e-5
            mixed = s + w * (t - s)
            log_mu = mixed - np.log(np.exp(mixed - mixed.max()).sum()) - mixed.max()
            ratios.append(float((np.exp(log_mu) * (log_mu - s)).sum()) / budget)
    return min(ratios)


def shortest_bisection(student: mx.array, teacher: mx.array, budget: float) -> int:
    """The fewest steps whose short-fall is within 1%."""
    for steps in range(1, LONGEST):
        weight = bisect_weight(student, teacher, mx.array(budget), steps)
        if worst_ratio(student, teacher, weight, budget) >= 0.99:
            return steps
    return LONGEST


def median_ms(runs: list[float]) -> float:
    """Median in milliseconds."""
    return statistics.median(runs) * 1e3


def timed(work: Callable[[], mx.array]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    mx.eval(work())
    return time.perf_counter() - begun


def compare(batch: int, vocab: int, budget: float, repeats: int, seed: int) -> dict[str, float]:
    """One line of the table."""
    student, teacher = make_rows(batch, vocab, seed)
    limit = mx.array(budget)
    steps = shortest_bisection(student, teacher, budget)
    ours = solve_blend_weight(student, teacher, limit)
    ratio = worst_ratio(student, teacher, ours, budget)
    times: dict[str, list[float]] = {"solver": [], "bisection": []}
    for _ in range(repeats):
        times["solver"].append(timed(lambda: solve_blend_weight(student, teacher, limit)))
        times["bisection"].append(timed(lambda: bisect_weight(student, teacher, limit, steps)))
    solver, bisection = (median_ms(times[name]) for name in ("solver", "bisection"))
    return {
        "vocab": vocab,
        "budget": budget,
        "solver_ms": solver,
        "solver_worst_ratio": ratio,
        "bisection_steps": steps,
        "bisection_ms": bisection,
        "speedup": bisection / solver,
    }


@click.command()
@click.option("--batch", default=8, show_default=True)
@click.option("--vocab", default=[49_152, 151_936], multiple=True, show_default=True)
@click.option("--budget", default=[0.001, 0.02, 0.1], multiple=True, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_path", type=Path, help="Write the table as JSON too.")
def main(
    batch: int,
    vocab: tuple[int, ...],
    budget: tuple[float, ...],
    repeats: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Print the table."""
    found = []
    print(f"batch {batch}, medians of {repeats}, device {mx.default_device()}")
    print(f"{'V':>8} {'ε':>7} {'solver':>10} {'KL/ε ≥':>8} {'bisection':>18} {'ratio':>6}")
    for size in vocab:
        for limit in budget:
            line = compare(batch, size, limit, repeats, seed)
            found.append(line)
            print(
                f"{size:>8} {limit:>7g} {line['solver_ms']:>7.0f} ms "
                f"{line['solver_worst_ratio']:>8.4f} {line['bisection_ms']:>7.0f} ms, "
                f"{line['bisection_steps']:>2} steps {line['speedup']:>5.1f}×"
            )
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
