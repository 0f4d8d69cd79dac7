"""The whole examination: every check on the default device, and the machine's facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from trb_mlx.backend import prepare_backend
from trb_mlx.doctor import attention, losses, products, rollouts, solving, training, vocabulary
from trb_mlx.doctor.check import FAIL, Check, Outcome, run_checks
from trb_mlx.doctor.machine import advice, facts

WIDE = f"{solving.WIDE:,} ids"

CHECKS = (
    Check("loss gradients", losses.gradients),
    Check("fused head", losses.fused_head),
    Check("trust region", partial(solving.trust_region, 4096, 16)),
    Check(f"trust region, {WIDE}", partial(solving.trust_region, solving.WIDE, 2)),
    Check("trust region's kernel", solving.kernel),
    Check("draws", solving.known_draws),
    Check(f"draws, {WIDE}", solving.wide_draws),
    Check(f"choices, {WIDE}", vocabulary.wide_choices),
    Check("products' rows", products.rows_of_products),
    Check("4-bit layers", products.quantized_layers),
    *(
        Check(f"attention, heads of {size}", partial(attention.attention, size))
        for size in attention.HEAD_SIZES
    ),
    Check("batched decoding", rollouts.batched_decoding),
    Check("law of rollouts", rollouts.law_of_rollouts),
    Check("compiled step", training.compiled_step),
    Check("checkpoint", training.checkpoint),
    Check("its own teacher", training.own_teacher),
    Check("bfloat16", partial(training.half_precision, mx.bfloat16)),
    Check("float16", partial(training.half_precision, mx.float16)),
)


@dataclass(frozen=True)
class Examination:
    """The machine's facts by name, advice that follows from them, and one outcome a check."""

    facts: dict[str, Any]
    advice: list[str]
    outcomes: list[Outcome]
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(outcome.result == FAIL for outcome in self.outcomes)

    def count(self, result: str) -> int:
        """How many checks ended in `PASS`, `FAIL` or `SKIPPED`."""
        return sum(outcome.result == result for outcome in self.outcomes)


def examine(
    checks: Sequence[Check] = CHECKS, begin: Callable[[str], None] = lambda name: None
) -> Examination:
    """Look at the machine, then run every check; `begin` hears what comes next."""
    begun = time.perf_counter()
    prepare_backend()
    begin("the machine")
    machine = facts()
    outcomes = list(run_checks(checks, begin))
    return Examination(machine, advice(machine), outcomes, time.perf_counter() - begun)
