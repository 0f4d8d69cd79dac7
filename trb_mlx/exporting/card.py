"""The model card of an export: what it is, what it was made from, and how it did."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trb_mlx import __version__
from trb_mlx.config import Config, Section
from trb_mlx.method import (
    describe_behavior,
    describe_divergence,
    describe_loss,
    describe_target,
)
from trb_mlx.text import number


@dataclass(frozen=True)
class Provenance:
    """What a card tells.

    `lines` are the run's metrics up to the exported step; `notes` are sentences about what
    differs from the trained student.
    """

    run: str
    config: Config
    step: int
    lines: Sequence[Mapping[str, Any]]
    base: str
    licence: str | None = None
    teacher_licence: str | None = None
    notes: Sequence[str] = ()


USAGE = {
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, "PATH_OR_ID_OF_THIS_FOLDER")""",
    "mlx-lm": 'python -m mlx_lm generate --model {base} --adapter-path THIS_FOLDER --prompt "…"',
    "merged": 'python -m mlx_lm generate --model PATH_OR_ID_OF_THIS_FOLDER --prompt "…"',
    "base": 'python -m mlx_lm generate --model THIS_FOLDER --prompt "…"',
}
_WHAT = {
    "peft": "A LoRA adapter in PEFT's format",
    "mlx-lm": "A LoRA adapter in mlx-lm's format",
    "merged": "A whole model",
    "base": "The base of an adapter",
}


def make_card(kind: str, facts: Provenance) -> str:
    """README.md of an export of one kind (`peft`, `mlx-lm`, `merged` or `base`)."""
    front = yaml.safe_dump(_front_matter(kind, facts), sort_keys=False)
    base = public_name(facts.base)
    language, base = ("python", base) if kind == "peft" else ("sh", shlex.quote(base))
    usage = f"```{language}\n{USAGE[kind].format(base=base)}\n```"
    parts = [f"---\n{front}---", f"# {facts.run}", _opening(kind, facts), usage]
    if kind != "base":
        parts += ["## How it was made", _table(_rows(facts))]
        parts += ["## Figures", _figures(facts)]
    parts += ["## Licence", _licence(facts)]
    return "\n\n".join(parts) + "\n"


def public_name(model: str) -> str:
    """A model's name without the folders that it lies in on this machine."""
    return Path(model).name if is_local(model) else model


def is_local(model: str) -> bool:
    """Whether a model is named by a path."""
    return model.startswith((".", "/", "~")) or Path(model).expanduser().exists()


def _front_matter(kind: str, facts: Provenance) -> dict[str, Any]:
    values: dict[str, Any] = {"license": facts.licence or "unknown"}
    if kind != "base" and not is_local(facts.base) and facts.base.count("/") == 1:
        values["base_model"] = facts.base
    values["library_name"] = "peft" if kind == "peft" else "mlx"
    values["pipeline_tag"] = "text-generation"
    values["tags"] = [
        "on-policy-distillation",
        "trb-mlx",
        *(["lora"] if kind in ("peft", "mlx-lm") else []),
    ]
    return values


def _opening(kind: str, facts: Provenance) -> str:
    student, teacher = facts.config.student.model, facts.config.teacher.model
    if kind == "base":
        return f"{_WHAT[kind]}: {public_name(student)}, unquantized."
    made = (
        f"{_WHAT[kind]}: step {facts.step} of a run of trb-mlx {__version__}, in which "
        f"{public_name(student)} was distilled on-policy from {public_name(teacher)} by "
        f"{describe_divergence(facts.config)}."
    )
    return "\n\n".join([made, *facts.notes])


def _rows(facts: Provenance) -> list[tuple[str, str]]:
    config = facts.config
    train, rollout = config.train, config.rollout
    return [
        ("base", public_name(facts.base)),
        ("student as trained", _settings(config.student)),
        ("teacher", _settings(config.teacher)),
        ("behavior policy", describe_behavior(config)),
        ("loss", ", ".join([describe_loss(config), *describe_target(config)])),
        ("adapter", _settings(config.lora)),
        ("prompts", _settings(config.data.train)),
        (
            "rollouts a step",
            f"{train.prompts_per_step} prompts × {rollout.rollouts_per_prompt}, at most "
            f"{rollout.max_tokens} tokens, temperature {rollout.temperature:g}",
        ),
        ("steps", f"{facts.step} of {train.steps}"),
        ("optimizer", f"AdamW, learning rate {train.learning_rate:g}, seed {train.seed}"),
    ]


def _settings(section: Section) -> str:
    """`key=value, …` of the keys that are set, without paths of this machine."""
    values = section.model_dump(mode="json", exclude_none=True)
    shown = {
        key: public_name(value) if isinstance(value, str) and is_local(value) else value
        for key, value in values.items()
    }
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _figures(facts: Provenance) -> str:
    """Every held-out metric before training and at the last evaluation before this step."""
    scored = [line for line in facts.lines if any(key.startswith("eval/") for key in line)]
    if not scored:
        return "The run was not evaluated."
    first, last = scored[0], scored[-1]
    names = sorted(key for key in {*first, *last} if key.startswith("eval/"))
    head = f"| held-out | step {first['step']} | step {last['step']} |\n| --- | --- | --- |"
    rows = []
    for name in names:
        values = (number(line.get(name), missing="—") for line in (first, last))
        rows.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join([head, *rows])


def _licence(facts: Provenance) -> str:
    ours = facts.licence or "not known: say it with `--license`, or here"
    theirs = facts.teacher_licence or "not known"
    return (
        f"Weights: {ours} (the base's card). Teacher: {theirs}; what its licence says about models "
        "trained on its outputs applies here too."
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])
