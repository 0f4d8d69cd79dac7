"""The behavior policies: who draws the tokens. One frozen record each, one registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from trb_mlx.config import BehaviorConfig
from trb_mlx.ops.distribution import Distribution
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.ops.replacement import keep_or_replace
from trb_mlx.ops.schedules import linear_decay, rising_temperature
from trb_mlx.ops.trust_region import solve_blend


class Blend(NamedTuple):
    """A behavior distribution μ, the teacher's weight in it, and how far it is from the student.

    The weight is 0 where μ is the student; otherwise β of a geometric blend, or the mass that
    the teacher draws in SKD.
    """

    probs: mx.array  # [..., V]
    weight: mx.array  # [...]
    kl: mx.array  # [...], KL(μ‖π_S)
    total_variation: mx.array  # [...], TV(μ, π_S)


def _as_it_is(step: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Behavior:
    """A behavior policy μ.

    Attributes:
        kind: its name in the registry.
        budget: step → ε in nats.
        needs_teacher: step → whether the teacher is asked token by token.
        blend: (student, teacher `[..., V]`, budget array) → μ; the student drafts.
        temperature: step → factor on the rollout temperature; both models come tempered.
    """

    kind: str
    budget: Callable[[int], float]
    needs_teacher: Callable[[int], bool]
    blend: Callable[[Distribution, Distribution, mx.array], Blend]
    temperature: Callable[[int], float] = _as_it_is


def trust_region_blend(student: Distribution, teacher: Distribution, budget: mx.array) -> Blend:
    """argmin KL(μ‖π_T) subject to KL(μ‖π_S) ≤ budget, with its weight."""
    weight, kl, probs = solve_blend(student, teacher.logprobs, budget)
    return Blend(probs, weight, kl, total_variation(probs, student.probs))


def pure_student(student: Distribution, teacher: Distribution, budget: mx.array) -> Blend:
    """μ = π_S, weight 0."""
    none = mx.zeros(student.logprobs.shape[:-1])
    return Blend(student.probs, none, none, none)


def vanilla(config: BehaviorConfig) -> Behavior:
    """Vanilla OPD: the student draws, the teacher scores afterwards."""
    return Behavior("vanilla", lambda step: 0.0, lambda step: False, pure_student)


def trb(config: BehaviorConfig) -> Behavior:
    """TRB: the blend under a budget annealed to zero over `warmup_steps` (arXiv 2605.31159)."""

    def budget(step: int) -> float:
        return linear_decay(step, config.budget, config.warmup_steps)

    return Behavior("trb", budget, lambda step: budget(step) > 0, trust_region_blend)


def fixed(config: BehaviorConfig) -> Behavior:
    """Fixed-ε blending: the same solver under a constant budget for the whole run."""
    return Behavior(
        "fixed",
        lambda step: config.budget,
        lambda step: config.budget > 0,
        trust_region_blend,
    )


def skd(config: BehaviorConfig) -> Behavior:
    """SKD: a student token outside the teacher's top-K is drawn afresh by the teacher.

    The coupling of `trb_mlx.ops.coupling` emits this law too: it keeps every draft in the
    top-K, and of the others as many as fresh draws would give anyway.
    """

    def blend(student: Distribution, teacher: Distribution, budget: mx.array) -> Blend:
        probs, replaced = keep_or_replace(
            student, teacher, config.top_k, config.teacher_temperature
        )
        kl = kl_divergence(mx.log(probs), student.logprobs)
        return Blend(probs, replaced, kl, total_variation(probs, student.probs))

    return Behavior("skd", lambda step: 0.0, lambda step: True, blend)


def temperature(config: BehaviorConfig) -> Behavior:
    """Temperature warm-up: the student alone, its temperature rising to 1 over `warmup_steps`."""
    return Behavior(
        "temperature",
        lambda step: 0.0,
        lambda step: False,
        pure_student,
        lambda step: rising_temperature(step, config.start_temperature, config.warmup_steps),
    )


BEHAVIORS: dict[str, Callable[[BehaviorConfig], Behavior]] = {
    "vanilla": vanilla,
    "trb": trb,
    "fixed": fixed,
    "skd": skd,
    "temperature": temperature,
}


def make_behavior(config: BehaviorConfig) -> Behavior:
    """The policy that a config names."""
    return BEHAVIORS[config.kind](config)
