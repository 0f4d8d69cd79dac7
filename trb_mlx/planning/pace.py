"""How long a step takes, from how fast a machine reads memory and multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from trb_mlx.backend import on_gpu
from trb_mlx.config import Config
from trb_mlx.planning.shapes import ModelShape
from trb_mlx.rollout.draft_length import LENGTHS

ACCEPTANCE = 0.85  # of drafts, assumed: 0.8 to 0.95 in docs/log.md
VOCABULARY_PASSES = 8  # what surrounds two models, in log-softmaxes of a row (docs/log.md)


@dataclass(frozen=True)
class Pace:
    """A machine's speed: bytes a second that are read, and float operations a second."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step's parts, and tokens a second of its rollouts."""

    rollout_s: float
    update_s: float
    tokens_per_second: float


def measure_pace() -> Pace:
    """This machine's, within about a second: a copy of 256 MiB, a product of square matrices."""
    large = mx.zeros((2**26,), mx.float32)
    size, dtype = (4096, mx.float16) if on_gpu() else (1024, mx.float32)
    square = mx.ones((size, size), dtype)
    mx.eval(large, square)
    copying = _fastest(lambda: mx.eval(large + 1.0))
    multiplying = _fastest(lambda: mx.eval(square @ square))
    return Pace(2 * large.nbytes / copying, 2 * size**3 / multiplying)


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def step_time(config: Config, student: ModelShape, teacher: ModelShape, pace: Pace) -> StepTime:
    """A step with every answer at its limit: rollouts bound by memory, the update by products."""
    rollouts = config.train.prompts_per_step * config.rollout.rollouts_per_prompt
    rows = min(rollouts, config.rollout.batch_size)
    answer, prompt = config.rollout.max_tokens, config.data.max_prompt_tokens
    places = prompt + answer // 2
    blended = config.behavior.kind not in ("vanilla", "temperature")

    def reading(shape: ModelShape, tokens: int) -> float:
        caches = rows * (places * shape.place + shape.fixed)
        bound_by_memory = (shape.weights + caches) / pace.bandwidth
        return max(bound_by_memory, rows * tokens * products(shape) / pace.flops)

    vocabulary = 4.0 * rows * student.vocab * 2 / pace.bandwidth
    a_token = reading(student, 1) + 3 * vocabulary
    if blended:
        rounds = {
            length: (
                length * reading(student, 1)
                + reading(teacher, length)
                + length * VOCABULARY_PASSES * vocabulary
            )
            / ((1 - ACCEPTANCE**length) / (1 - ACCEPTANCE))
            for length in LENGTHS
        }
        a_token = min(rounds.values())
    prefill = rollouts * prompt * products(student) / pace.flops
    if blended:
        prefill += rollouts * prompt * products(teacher) / pace.flops
    rollout = -(-rollouts // rows) * answer * a_token + prefill
    tokens = rollouts * (prompt + answer)
    update = tokens * 2.5 * products(student) / pace.flops  # forward, and back to inputs
    if not blended or (config.loss.mode == "exact" and config.loss.keep_hidden == "off"):
        update += tokens * products(teacher) / pace.flops
    return StepTime(rollout, update, rollouts * answer / rollout)


def products(shape: ModelShape) -> float:
    """Float operations of a token's pass: two a weight of all projections, and of the head."""
    inner = sum(wide * out for block in shape.blocks for _, wide, out in block.linears)
    return 2.0 * (inner + shape.vocab * shape.width)
