"""The behavior policies: who draws the tokens. One frozen record each, one registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from trb_mlx.config import BehaviorConfig
from trb_mlx.ops.replacement import keep_or_replace
from trb_mlx.ops.schedules import linear_decay, rising_temperature
from trb_mlx.ops.trust_region import blend_logprobs, solve_blend_weight


class Blend(NamedTuple):
    """A behavior distribution `[..., V]` (log-probs) and the teacher's weight in it `[...]`.

    The weight is 0 where μ is the student; otherwise β of a geometric blend, or the mass that
    the teacher draws in SKD.
    """

    logprobs: mx.array
    weight: mx.array


def _as_it_is(step: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Behavior:
    """A behavior policy μ.

    Attributes:
        kind: its name in the registry.
        budget: step → ε in nats.
        needs_teacher: step → whether the teacher is asked token by token.
        draft: the student's log-probs `[..., V]` → the distribution that drafts a token.
        blend: (student_logprobs, teacher_logprobs `[..., V]`, budget array) → μ.
        temperature: step → factor on the rollout temperature; log-probs come tempered.
    """

    kind: str
    budget: Callable[[int], float]
    needs_teacher: Callable[[int], bool]
    draft: Callable[[mx.array], mx.array]
    blend: Callable[[mx.array, mx.array, mx.array], Blend]
    temperature: Callable[[int], float] = _as_it_is


def trust_region_blend(
    student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array
) -> Blend:
    """argmin KL(μ‖π_T) subject to KL(μ‖π_S) ≤ budget, with its weight."""
    weight = solve_blend_weight(student_logprobs, teacher_logprobs, budget)
    return Blend(blend_logprobs(student_logprobs, teacher_logprobs, weight), weight)


def pure_student(student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array) -> Blend:
    """μ = π_S, weight 0."""
    return Blend(student_logprobs, mx.zeros(student_logprobs.shape[:-1]))


def _drafted_by_student(student_logprobs: mx.array) -> mx.array:
    return student_logprobs


def vanilla(config: BehaviorConfig) -> Behavior:
    """Vanilla OPD: the student draws, the teacher scores afterwards."""
    return Behavior(
        "vanilla", lambda step: 0.0, lambda step: False, _drafted_by_student, pure_student
    )


def trb(config: BehaviorConfig) -> Behavior:
    """TRB: the blend under a budget annealed to zero over `warmup_steps` (arXiv 2605.31159)."""

    def budget(step: int) -> float:
        return linear_decay(step, config.budget, config.warmup_steps)

    return Behavior(
        "trb", budget, lambda step: budget(step) > 0, _drafted_by_student, trust_region_blend
    )


def fixed(config: BehaviorConfig) -> Behavior:
    """Fixed-ε blending: the same solver under a constant budget for the whole run."""
    return Behavior(
        "fixed",
        lambda step: config.budget,
        lambda step: config.budget > 0,
        _drafted_by_student,
        trust_region_blend,
    )


def skd(config: BehaviorConfig) -> Behavior:
    """SKD: a student token outside the teacher's top-K is drawn afresh by the teacher.

    The coupling of `trb_mlx.ops.coupling` emits this law too: it keeps every draft in the
    top-K, and of the others as many as fresh draws would give anyway.
    """

    def blend(student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array) -> Blend:
        return Blend(
            *keep_or_replace(
                student_logprobs, teacher_logprobs, config.top_k, config.teacher_temperature
            )
        )

    return Behavior("skd", lambda step: 0.0, lambda step: True, _drafted_by_student, blend)


def temperature(config: BehaviorConfig) -> Behavior:
    """Temperature warm-up: the student alone, its temperature rising to 1 over `warmup_steps`."""
    return Behavior(
        "temperature",
        lambda step: 0.0,
        lambda step: False,
        _drafted_by_student,
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
