"""Rollouts: vanilla, blended token by token, and blended by blocks, against the analytic bound.

Let S be the cost of drafting a token, T of verifying one, T_γ of verifying a block of γ, and a the
share of drafts that is kept. Token by token costs S + T; a block costs γ·S + T_γ and emits
E = (1 − a^γ)/(1 − a) tokens. The bound on the gain is (S + T)·E/(γ·S + T_γ) at the best γ.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
from bench_models import endless, parameters

from trb_mlx.config import BehaviorConfig
from trb_mlx.data.arithmetic import problems
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.draft_length import LENGTHS, Adaptive, Fixed, assumed_costs, expected
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.speculative import SpeculativeGenerator
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

Row = dict[str, Any]
BLENDED_TOKENS, VANILLA_TOKENS = 48, 128


def make_jobs(pair: Pair, count: int, seed: int) -> list[Job]:
    """One rollout of each of `count` arithmetic problems."""
    encode = pair.student.model.tokenizer.encode
    texts = [f"{problem.question}\n" for problem in problems("train", count, seed)]
    prompts = [Prompt(i, text, tuple(encode(text))) for i, text in enumerate(texts)]
    return [Job(prompt, RolloutKey(seed, 0, prompt.index, 0)) for prompt in prompts]


def alternate(repeats: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each side, all taken in turn; a first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def stage_costs(
    pair: Pair, budget: float, batch: int, repeats: int
) -> tuple[float, dict[int, float]]:
    """S, and T_γ for every block length γ, in seconds: medians, all lengths taken in turn."""
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=budget))
    generator = SpeculativeGenerator(pair, behavior, budget, Sampling(64))
    for decoder in generator.decoders:
        decoder.prefill([job.prompt.tokens for job in make_jobs(pair, batch, 1)])
    noise = np.random.default_rng(0).random((2, batch, max(LENGTHS), 2), np.float32)
    draft_s: list[float] = []
    verify: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for turn in range(repeats + 1):
        for length in LENGTHS:
            uniforms = mx.array(noise[:, :, :length])
            begun = time.perf_counter()
            draft = generator.draft(mx.ones((batch,), mx.int32), uniforms[0])
            mx.eval(draft.tokens)
            drafted = time.perf_counter()
            block = generator.verify(mx.ones((batch,), mx.int32), draft, uniforms[1])
            mx.eval(block.tokens)
            if turn:
                draft_s.append((drafted - begun) / length)
                verify[length].append(time.perf_counter() - drafted)
            for decoder in generator.decoders:
                decoder.trim(np.full(batch, length))
    return statistics.median(draft_s), {k: statistics.median(v) for k, v in verify.items()}


def bound(draft: float, verify: dict[int, float], acceptance: float) -> tuple[float, int]:
    """The best gain that the costs allow, and its block length."""
    gains = {
        length: (draft + verify[1]) * expected(acceptance, length) / (length * draft + cost)
        for length, cost in verify.items()
    }
    best = max(gains, key=lambda length: gains[length])
    return gains[best], best


def compare_rollouts(pair: Pair, budget: float, batch: int, repeats: int, seed: int) -> Row:
    """One line of the table: rollouts of fixed length, the batch full throughout."""
    pair = dataclasses.replace(pair, student=endless(pair.student), teacher=endless(pair.teacher))
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=budget))
    jobs, sampling = make_jobs(pair, batch, seed), Sampling(BLENDED_TOKENS, batch)
    models = pair.student.model, pair.teacher.model
    auto = Adaptive(assumed_costs(*(model.nbytes() for model in models)))
    found: dict[str, Rollout] = {}

    def blended(name: str, draft_length: Any) -> Callable[[], None]:
        def side() -> None:
            found[name] = sample_blended(pair, jobs, sampling, behavior, budget, draft_length)

        return side

    seconds = alternate(
        repeats,
        vanilla=lambda: sample(pair.student, jobs, sampling),
        single=blended("single", Fixed(1)),
        blocks=blended("blocks", auto),
    )
    draft, verify = stage_costs(pair, budget, batch, repeats)
    recorded = dataclasses.replace(sampling, support=16)
    records = sample_blended(pair, jobs, recorded, behavior, budget, auto).records
    assert records is not None
    acceptance = 1.0 - float(records.corrected.mean())
    limit, best = bound(draft, verify, acceptance)
    gain = seconds["single"] / seconds["blocks"]
    return {
        "student_parameters": parameters(pair.student),
        "teacher_parameters": parameters(pair.teacher),
        "batch": batch,
        "vanilla_s": seconds["vanilla"],
        "single_s": seconds["single"],
        "blocks_s": seconds["blocks"],
        "acceptance": acceptance,
        "drafted": found["blocks"].drafted / found["blocks"].rounds,
        "emitted": float(found["blocks"].lengths.sum()) / found["blocks"].rounds,
        "draft_ms": 1e3 * draft,
        "verify_ms": {length: 1e3 * cost for length, cost in verify.items()},
        "gain": gain,
        "bound": limit,
        "best_length": best,
        "reached": gain / limit,
        "drafting": auto.state(),
    }


class _Endless:
    """What mlx_lm.batch_generate asks of a tokenizer, without a token that stops."""

    eos_token_ids: tuple[int, ...] = ()

    @staticmethod
    def decode(tokens: list[int]) -> str:
        return ""


def compare_vanilla(scorer: Scorer, pair: Pair, batch: int, repeats: int, seed: int) -> Row:
    """Our bare decoding, with and without recording, against mlx_lm.batch_generate."""
    scorer = endless(scorer)
    jobs, sampling = make_jobs(pair, batch, seed), Sampling(VANILLA_TOKENS, batch)
    prompts = [list(job.prompt.tokens) for job in jobs]
    sampler = mlx_lm.sample_utils.make_sampler(temp=1.0)
    seconds = alternate(
        repeats,
        ours=lambda: sample(scorer, jobs, sampling),
        recorded=lambda: sample(scorer, jobs, dataclasses.replace(sampling, support=16)),
        theirs=lambda: mlx_lm.batch_generate(
            scorer.model.module,
            _Endless(),
            prompts,
            max_tokens=sampling.max_tokens,
            sampler=sampler,
            completion_batch_size=batch,
            prefill_batch_size=batch,
        ),
    )
    return {
        "parameters": parameters(scorer),
        "vocab": scorer.merge.size,
        "batch": batch,
        **{f"{name}_s": value for name, value in seconds.items()},
        "ratio": seconds["theirs"] / seconds["ours"],
    }
