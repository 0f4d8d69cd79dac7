"""The behavior policies: who draws the tokens. One frozen record each, one registry."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import mlx.core as mx

from trb_mlx.config import BEHAVIOR_GROUP, BehaviorConfig
from trb_mlx.errors import UserError, reading
from trb_mlx.kernels.blend import solve_blend
from trb_mlx.ops.distribution import Distribution
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.ops.replacement import keep_or_replace
from trb_mlx.ops.schedules import linear_decay, rising_temperature


class Blend(NamedTuple):
    """A behavior distribution μ, the teacher's weight in it, and how far it is from the student.

    The weight is 0 where μ is the student; otherwise β of a geometric blend, or the mass that
    the teacher draws in SKD.
    """

    probs: mx.array  # [..., V]
    weight: mx.array  # [...]
    kl: mx.array  # [...], KL(μ‖π_S)
    total_variation: mx.array  # [...], TV(μ, π_S)


def make_blend(student: Distribution, logprobs: mx.array, weight: mx.array | float) -> Blend:
    """A behavior distribution with its distances to the student, which a policy's `blend` gives.

    >>> from trb_mlx.ops.distribution import softmax
    >>> student = softmax(mx.zeros(2))
    >>> blend = make_blend(student, mx.log(mx.array([0.75, 0.25])), weight=0.5)
    >>> blend.total_variation
    array(0.25, dtype=float32)

    Args:
        student: `[..., V]`.
        logprobs: log μ `[..., V]`, normalised; −inf where μ has no mass.
        weight: the teacher's weight in it, a scalar or `[...]`.
    """
    probs = mx.exp(logprobs)
    return Blend(
        probs,
        mx.broadcast_to(mx.array(weight, dtype=mx.float32), logprobs.shape[:-1]),
        kl_divergence(logprobs, student.logprobs),
        total_variation(probs, student.probs),
    )


def pure_student(student: Distribution, teacher: Distribution, budget: mx.array) -> Blend:
    """μ = π_S, weight 0."""
    none = mx.zeros(student.logprobs.shape[:-1])
    return Blend(student.probs, none, none, none)


@dataclass(frozen=True)
class Behavior:
    """A behavior policy μ; by default the student's own draws.

    >>> policy = Behavior("mine", needs_teacher=lambda step: step < 10, blend=trust_region_blend)
    >>> policy.needs_teacher(9), policy.needs_teacher(10), policy.temperature(0)
    (True, False, 1.0)

    Attributes:
        kind: its name in the registry.
        needs_teacher: step → whether the teacher is asked token by token; steps count from 0.
        blend: (student, teacher `[..., V]`, budget array) → μ; the student drafts.
        budget: step → ε in nats.
        temperature: step → factor on the rollout temperature; both models come tempered.
    """

    kind: str
    needs_teacher: Callable[[int], bool] = lambda step: False
    blend: Callable[[Distribution, Distribution, mx.array], Blend] = pure_student
    budget: Callable[[int], float] = lambda step: 0.0
    temperature: Callable[[int], float] = lambda step: 1.0


def trust_region_blend(student: Distribution, teacher: Distribution, budget: mx.array) -> Blend:
    """argmin KL(μ‖π_T) subject to KL(μ‖π_S) ≤ budget, with its weight."""
    weight, kl, distance, probs = solve_blend(student, teacher.logprobs, budget)
    return Blend(probs, weight, kl, distance)


def vanilla(config: BehaviorConfig) -> Behavior:
    """Vanilla OPD: the student draws, the teacher scores afterwards."""
    return Behavior("vanilla")


def trb(config: BehaviorConfig) -> Behavior:
    """TRB: the blend under a budget annealed to zero over `warmup_steps` (arXiv 2605.31159)."""

    def budget(step: int) -> float:
        return linear_decay(step, config.budget, config.warmup_steps)

    return Behavior("trb", lambda step: budget(step) > 0, trust_region_blend, budget)


def fixed(config: BehaviorConfig) -> Behavior:
    """Fixed-ε blending: the same solver under a constant budget for the whole run."""
    return Behavior(
        "fixed", lambda step: config.budget > 0, trust_region_blend, lambda step: config.budget
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

    return Behavior("skd", lambda step: True, blend)


def temperature(config: BehaviorConfig) -> Behavior:
    """Temperature warm-up: the student alone, its temperature rising to 1 over `warmup_steps`."""

    def factor(step: int) -> float:
        return rising_temperature(step, config.start_temperature, config.warmup_steps)

    return Behavior("temperature", temperature=factor)


BEHAVIORS: dict[str, Callable[[BehaviorConfig], Behavior]] = {
    "vanilla": vanilla,
    "trb": trb,
    "fixed": fixed,
    "skd": skd,
    "temperature": temperature,
}


def make_behavior(config: BehaviorConfig) -> Behavior:
    """The policy that a config names.

    Raises:
        UserError: a policy of one's own that cannot be found, or is none.
    """
    if config.kind in BEHAVIORS:
        return BEHAVIORS[config.kind](config)
    with reading(f"behavior.kind {config.kind}"):
        behavior = _own_behavior(config.kind)(config)
    if not isinstance(behavior, Behavior):
        raise UserError(
            f"behavior.kind {config.kind} gave a {type(behavior).__name__}, expected a "
            "trb_mlx.Behavior."
        )
    return behavior


def _own_behavior(kind: str) -> Callable[..., Any]:
    """The function behind `package.module:NAME`, or behind an entry point's name.

    Modules are also looked for in the working folder, as by `python -m`.
    """
    if kind in entry_points(group=BEHAVIOR_GROUP).names:
        (entry,) = entry_points(group=BEHAVIOR_GROUP, name=kind)
        function = entry.load()
    else:
        module, _, name = kind.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        function = getattr(import_module(module), name, None)
    if not callable(function):
        raise UserError(
            f"behavior.kind {kind} names no function; expected one that takes the config's "
            "behavior section and gives a trb_mlx.Behavior."
        )
    return function
