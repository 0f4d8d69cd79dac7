"""What surrounds the models in a round, in log-softmaxes of the same rows.

CPU seconds, or where a GPU computes, seconds until it is done.

Rows are those of `bench_trust_region`. The whole round is `rollout.speculative`'s own, with models
that answer at once: drafts, the blend, tests, replacements and records of one token a row.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from bench_models import endless, random_scorer
from bench_rollouts import VANILLA_TOKENS
from bench_trust_region import make_rows

from trb_mlx.backend import on_gpu
from trb_mlx.bounds import row_groups
from trb_mlx.config import BehaviorConfig
from trb_mlx.kernels.blend import solve_blend
from trb_mlx.ops import trust_region
from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.distribution import Distribution, softmax
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.sampling import draw
from trb_mlx.ops.trust_region import solve_blend_weight
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.recording import student_records, teacher_records
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.speculative import SpeculativeGenerator
from trb_mlx.types import Job, Prompt, RolloutKey, Sampling

Row = dict[str, Any]
VOCABS, BUDGETS, SUPPORT = (49_152, 151_936), (0.001, 0.02, 0.3), 16


def seconds_of(repeats: int, sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each side, all taken in turn; a first turn warms up."""
    clock = time.perf_counter if on_gpu() else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            begun = clock()
            mx.eval(side())
            if turn:
                seconds[name].append(clock() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def whole_round(
    student: mx.array, teacher: mx.array, budget: float, noise: mx.array
) -> Callable[[], Any]:
    """A round of one token for each row of logits, all of it recorded."""
    rows, vocab = student.shape
    model = SimpleNamespace(
        logits=lambda tokens: student[:, None], hidden=lambda tokens: None, is_trimmable=True
    )
    generator = object.__new__(SpeculativeGenerator)
    generator.__dict__.update(
        readers=[False, True],
        decoders=[model, model],
        _teacher=SimpleNamespace(logits_of=lambda hidden: teacher[:, None]),
        _behavior=make_behavior(BehaviorConfig(kind="fixed", budget=budget)),
        _budget=mx.array(budget),
        _temperature=1.0,
        _support=min(SUPPORT, vocab),
        _keep_hidden=False,
    )

    def round_() -> Any:
        block = generator.generate(
            mx.zeros((2, rows), mx.int32), noise[0, :, None], noise[1, :, None]
        )
        return block.records.of_first(np.ones(rows, int))

    return round_


def compare_parts(vocab: int, budget: float, rows: int, repeats: int, seed: int) -> Row:
    """One line of the table: milliseconds of a log-softmax, and the parts in units of it.

    `plain_blend` is `blend` without the GPU's kernel.
    """
    student, teacher = make_rows(rows, vocab, seed)
    noise = mx.array(np.random.default_rng(seed).random((2, rows, 2), np.float32))
    groups = row_groups(rows, vocab)
    teachers = [softmax(teacher[group]) for group in groups]
    students = [softmax(student[group]) for group in groups]
    tokens = [draw(of.masses, noise[0, part]) for of, part in zip(students, groups, strict=True)]
    blends = [
        solve_blend(s, t.logprobs, budget).probs for s, t in zip(students, teachers, strict=True)
    ]
    supports = [
        student_records(of, z, SUPPORT, 1.0)["support"]
        for of, z in zip(students, tokens, strict=True)
    ]
    mx.eval(students, teachers, tokens, blends, supports)

    def each(work: Callable[..., Any], *lists: list[Any]) -> Callable[[], Any]:
        """The work of one chunk after another, as rounds do it."""

        def run() -> None:
            for chunk in zip(groups, *lists, strict=True):
                mx.eval(work(*chunk))

        return run

    def tested(part: slice, of: Distribution, blend: mx.array, drafts: mx.array) -> list[mx.array]:
        return [mx.array(x) for x in accept_drafts(drafts, of, blend, noise[1, part])]

    sides = {
        "log_softmax": lambda: log_softmax(student),
        "solve_weight": lambda: solve_blend_weight(student, teacher, budget),
        "student_softmax": each(lambda part: list(softmax(student[part]))),
        "draws": each(lambda part, of: draw(of.masses, noise[0, part]), students),
        "teacher_softmax": each(lambda part: list(softmax(teacher[part]))),
        "blend": each(
            lambda part, s, t: list(solve_blend(s, t.logprobs, budget)), students, teachers
        ),
        "plain_blend": each(
            lambda part, s, t: list(trust_region.solve_blend(s, t.logprobs, budget)),
            students,
            teachers,
        ),
        "tests": each(tested, students, blends, tokens),
        "student_records": each(
            lambda part, of, z: student_records(of, z, SUPPORT, 1.0), students, tokens
        ),
        "teacher_records": each(
            lambda part, of, z, ids: teacher_records(of, z, ids, 1.0), teachers, tokens, supports
        ),
        "round": whole_round(student, teacher, budget, noise),
    }
    seconds = seconds_of(repeats, sides)
    unit = seconds.pop("log_softmax")
    shares = {name: value / unit for name, value in seconds.items()}
    return {"vocab": vocab, "budget": budget, "log_softmax_ms": 1e3 * unit / rows} | shares


def compare_recording(vocab: int, batch: int, repeats: int, seed: int) -> Row:
    """Seconds of vanilla rollouts of a small model, without and with records."""
    scorer = endless(random_scorer(vocab, seed))
    prompts = [Prompt(i, "", tuple(range(i + 1, i + 33))) for i in range(batch)]
    jobs = [Job(prompt, RolloutKey(seed, 0, prompt.index, 0)) for prompt in prompts]
    sampling = Sampling(VANILLA_TOKENS, batch)
    recorded = dataclasses.replace(sampling, support=SUPPORT)

    def drawn(how: Sampling) -> Callable[[], Any]:
        return lambda: mx.array(sample(scorer, jobs, how).tokens)

    seconds = seconds_of(repeats, {"plain": drawn(sampling), "recorded": drawn(recorded)})
    added = seconds["recorded"] / seconds["plain"] - 1.0
    return {"vocab": vocab, "batch": batch, "added": added} | seconds
