"""What to lower where a run does not fit, in order, and what each saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trb_mlx.config import Config
from trb_mlx.config_file import parse_section
from trb_mlx.errors import UserError
from trb_mlx.planning.machine import Machine
from trb_mlx.planning.run import Plan, Planner

SMALLEST_BATCH, SMALLEST_ANSWER, SMALLEST_PROMPT, SMALLEST_TOKENS = 4, 64, 128, 512


@dataclass(frozen=True)
class Saving:
    """A change of one key, and the highest peak with it."""

    key: str
    value: Any
    peak_bytes: int
    changes_learning: bool


def savings(planner: Planner, plan: Plan) -> list[Saving]:
    """Each change by itself that lowers the highest peak: first those that change no result."""
    lowered = []
    for key, value, learning in _candidates(plan.config):
        try:
            lower = planner.plan(_changed(plan.config, {key: value}), plan.machine)
        except UserError:  # another key forbids it, or no layer of a model can be packed so
            continue
        peak = lower.memory.peak_bytes
        if peak < plan.memory.peak_bytes:
            lowered.append(Saving(key, value, peak, learning))
    return lowered


def fit(planner: Planner, config: Config, machine: Machine) -> tuple[Plan, dict[str, Any]]:
    """The plan of the config that fits, and what was changed; the nearest one where none does.

    Keys are lowered in the order of `savings`, each only as far as it helps.
    """
    changes: dict[str, Any] = {}
    plan = planner.plan(config, machine)
    while not plan.fits:
        better = next(iter(savings(planner, plan)), None)
        if better is None:
            break
        changes[better.key] = better.value
        plan = planner.plan(_changed(plan.config, {better.key: better.value}), machine)
    return plan, changes


def _candidates(config: Config) -> Iterator[tuple[str, Any, bool]]:
    """(key, lower value, whether it changes what is learnt)."""
    train, rollout = config.train, config.rollout
    if train.micro_batch_size > 1:
        yield "train.micro_batch_size", train.micro_batch_size // 2, False
    if train.micro_batch_tokens > SMALLEST_TOKENS:
        yield "train.micro_batch_tokens", train.micro_batch_tokens // 2, False
    if not train.grad_checkpoint:
        yield "train.grad_checkpoint", True, False
    if rollout.batch_size > SMALLEST_BATCH:
        yield "rollout.batch_size", max(SMALLEST_BATCH, rollout.batch_size // 2), False
    if train.vocabulary_mb > 16:
        yield "train.vocabulary_mb", train.vocabulary_mb // 2, False
    if config.loss.keep_hidden != "off":
        yield "loss.keep_hidden", "off", False
    if config.teacher.quantize is None and not config.is_self_taught:
        yield "teacher.quantize", {"bits": 4}, True
    if rollout.max_tokens > SMALLEST_ANSWER:
        yield "rollout.max_tokens", max(SMALLEST_ANSWER, rollout.max_tokens // 2), True
    if config.data.max_prompt_tokens > SMALLEST_PROMPT:
        yield (
            "data.max_prompt_tokens",
            max(SMALLEST_PROMPT, config.data.max_prompt_tokens // 2),
            True,
        )
    if config.lora.rank > 4 and config.student.adapter is None:
        yield "lora.rank", config.lora.rank // 2, True


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    values = config.model_dump(exclude_unset=True)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    return parse_section(Config, values, "the config")
