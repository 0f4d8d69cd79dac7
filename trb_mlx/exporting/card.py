"""The model card of an export: what it is, what it was made from, and how it did."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from trb_mlx import __version__
from trb_mlx.config import Section
from trb_mlx.exporting.base import license_of
from trb_mlx.exporting.source import Source
from trb_mlx.method import (
    describe_behavior,
    describe_divergence,
    describe_lengths,
    describe_loss,
    describe_target,
)
from trb_mlx.text import number

_USAGE = {
    "peft": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, "PATH_OR_ID_OF_THIS_FOLDER")
```""",
    "mlx-lm": """```sh
python -m mlx_lm generate --model {base} --adapter-path THIS_FOLDER --prompt "…"
```""",
    "merged": """```sh
python -m mlx_lm generate --model PATH_OR_ID_OF_THIS_FOLDER --prompt "…"
```""",
    "base": """```sh
python -m mlx_lm generate --model THIS_FOLDER --prompt "…"
```""",
}
_TITLES = {
    "peft": "A LoRA adapter in PEFT's format",
    "mlx-lm": "A LoRA adapter in mlx-lm's format",
    "merged": "A whole model",
    "base": "The base of an adapter",
}


def write_card(
    folder: Path,
    kind: str,
    source: Source,
    base: str,
    license: str | None,
    notes: Sequence[str],
) -> None:
    """Write README.md of an export.

    Args:
        folder: the export's.
        kind: `peft`, `mlx-lm`, `merged` or `base`.
        source: the checkpoint that it was made from.
        base: the model under the adapter.
        license: of the weights, where it is known.
        notes: sentences about what differs from the trained student.
    """
    student, teacher = source.config.student.model, source.config.teacher.model
    if kind == "base":
        opening = f"{_TITLES[kind]}: {public_name(student)}, unquantized."
    else:
        opening = (
            f"{_TITLES[kind]}: step {source.step} of a run of trb-mlx {__version__}, in which "
            f"{public_name(student)} was distilled on-policy from {public_name(teacher)} by "
            f"{describe_divergence(source.config)}."
        )
    name = public_name(base)
    parts = [
        f"---\n{_front_matter(kind, base, license)}\n---",
        f"# {source.run}",
        opening,
        *notes,
        _USAGE[kind].format(base=name if kind == "peft" else shlex.quote(name)),
    ]
    if kind != "base":
        parts += ["## How it was made", _settings_table(source, base)]
        parts += ["## Figures", _figures(source)]
    parts += [
        "## Licence",
        f"Weights: {license or 'not known: say it with `--license`, or here'} (the base's card). "
        f"Teacher: {license_of(teacher) or 'not known'}; what its licence says about models "
        "trained on its outputs applies here too.",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def public_name(model: str) -> str:
    """A model's name without the folders that it lies in on this machine."""
    return Path(model).name if is_local(model) else model


def is_local(model: str) -> bool:
    """Whether a model is named by a path."""
    return model.startswith((".", "/", "~")) or Path(model).expanduser().exists()


def _front_matter(kind: str, base: str, license: str | None) -> str:
    on_hub = kind != "base" and not is_local(base) and base.count("/") == 1
    adapter_tags = ["lora"] if kind in ("peft", "mlx-lm") else []
    data = ModelCardData(
        license=license or "unknown",
        base_model=base if on_hub else None,
        library_name="peft" if kind == "peft" else "mlx",
        pipeline_tag="text-generation",
        tags=["on-policy-distillation", "trb-mlx", *adapter_tags],
    )
    order = ["license", "base_model", "library_name", "pipeline_tag", "tags"]
    return data.to_yaml(original_order=order)


def _settings_table(source: Source, base: str) -> str:
    config = source.config
    train, rollout = config.train, config.rollout
    rows = {
        "base": public_name(base),
        "student as trained": _settings(config.student),
        "teacher": _settings(config.teacher),
        "behavior policy": describe_behavior(config),
        "loss": ", ".join([describe_loss(config), *describe_target(config)]),
        "adapter": _settings(config.lora),
        "prompts": _settings(config.data.train),
        "rollouts a step": (
            f"{train.prompts_per_step} prompts × {rollout.rollouts_per_prompt}, at most "
            f"{rollout.max_tokens} tokens, temperature {rollout.temperature:g}"
            + "".join(f", {phrase}" for phrase in describe_lengths(config))
        ),
        "steps": f"{source.step} of {train.steps}",
        "optimizer": f"AdamW, learning rate {train.learning_rate:g}, seed {train.seed}",
    }
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _settings(section: Section) -> str:
    """`key=value, …` of the keys that are set, without paths of this machine."""
    values = section.model_dump(mode="json", exclude_none=True)
    return ", ".join(
        f"{key}={public_name(value) if isinstance(value, str) else value}"
        for key, value in values.items()
    )


def _figures(source: Source) -> str:
    """Every held-out metric before training and at the last evaluation before this step."""
    scored = [line for line in source.metrics if any(key.startswith("eval/") for key in line)]
    if not scored:
        return "The run was not evaluated."
    first, last = scored[0], scored[-1]
    lines = [f"| held-out | step {first['step']} | step {last['step']} |", "| --- | --- | --- |"]
    for name in sorted(key for key in {*first, *last} if key.startswith("eval/")):
        before, after = (number(line.get(name), missing="—") for line in (first, last))
        lines.append(f"| {name} | {before} | {after} |")
    return "\n".join(lines)
