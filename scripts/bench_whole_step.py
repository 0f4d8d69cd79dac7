"""A whole TRB warm-up step against a whole vanilla step, and the solver's share of a token."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import mlx.core as mx
from bench_models import endless
from bench_rollouts import alternate, make_jobs
from bench_trust_region import make_rows

from trb_mlx.config import Config
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.ops.trust_region import solve_blend_weight
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.draft_length import Adaptive, Fixed
from trb_mlx.rollout.sampler import sample_blended
from trb_mlx.training.objective import Objective
from trb_mlx.training.rollouts import RolloutSampler
from trb_mlx.training.step import Stepper
from trb_mlx.training.trainer import Trainer
from trb_mlx.types import Sampling

Row = dict[str, Any]


def make_trainer(pair: Pair, kind: str, budget: float, rows: int, draft_length: Any) -> Trainer:
    """The trainer of a run with `rows` rollouts a step, its adapters already in place."""
    config = Config.model_validate(
        {
            "teacher": {"model": "t"},
            "student": {"model": "s"},
            "rollout": {"max_tokens": 48, "rollouts_per_prompt": 1, "batch_size": rows},
            "behavior": {"kind": kind, "budget": budget},
            "train": {"prompts_per_step": rows, "micro_batch_size": rows},
        }
    )
    module = pair.student.model.module
    stepper = Stepper(module, Objective(config.loss, pair), config.train)
    prompts = [job.prompt for job in make_jobs(pair, 256, 0)]
    sampler = RolloutSampler(config, pair, prompts)
    sampler.draft_length = draft_length
    evaluator: Any = None
    return Trainer(config, sampler, stepper, evaluator, lambda rollout: [])


def compare_steps(pair: Pair, budget: float, rows: int, repeats: int, drafting: Any) -> Row:
    """Medians of both steps and their parts; `allowed` is what the bound would give for TRB's.

    The bound divides the rollout of a step that asks token by token.
    """
    add_lora(pair.student.model.module, Config.model_fields["lora"].default, seed=0)
    trainers = {
        "vanilla": make_trainer(pair, "vanilla", budget, rows, None),
        "single": make_trainer(pair, "fixed", budget, rows, Fixed(1)),
        "trb": make_trainer(pair, "fixed", budget, rows, Adaptive.restored(drafting)),
    }
    parts: dict[str, list[Row]] = {name: [] for name in trainers}
    for turn in range(repeats + 1):
        for name, trainer in trainers.items():
            metrics = trainer.train_step().metrics
            trainer.step += 1
            if turn:
                parts[name].append(metrics)
    return {
        f"{name}_{part}_s": statistics.median(m[f"time/{part}_s"] for m in found)
        for name, found in parts.items()
        for part in ("rollout", "update")
    }


def solver_share(pair: Pair, budget: float, batch: int, repeats: int, seed: int) -> Row:
    """Milliseconds of the solve beside a token-by-token step of the whole batch."""
    pair = dataclasses.replace(pair, student=endless(pair.student), teacher=endless(pair.teacher))
    behavior = make_behavior(Config.model_fields["behavior"].default)
    jobs, tokens = make_jobs(pair, batch, seed), 16
    student, teacher = make_rows(batch, pair.student.merge.size, seed)
    limit = mx.array(budget)
    seconds = alternate(
        repeats,
        solve=lambda: mx.eval(solve_blend_weight(student, teacher, limit)),
        tokens=lambda: sample_blended(
            pair, jobs, Sampling(tokens, batch), behavior, budget, Fixed(1)
        ),
    )
    step = seconds["tokens"] / tokens
    return {"solve_ms": 1e3 * seconds["solve"], "token_ms": 1e3 * step} | {
        "share": seconds["solve"] / step
    }
