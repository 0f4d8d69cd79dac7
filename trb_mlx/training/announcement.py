"""What a run says before it begins, and the commands that may follow it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trb_mlx.config import Config
from trb_mlx.data.formats import fill_plain
from trb_mlx.kernels.blend import kernel_note
from trb_mlx.method import describe_method, unread_keys
from trb_mlx.models.loading import LanguageModel, resolve
from trb_mlx.models.pair import Pair
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.runs.folder import RunFolder
from trb_mlx.training.trainer import Trainer


def announcement(
    config: Config, folder: RunFolder, pair: Pair, trainer: Trainer, hidden_reason: str
) -> Iterator[str]:
    """The method, and what of it this config and these models make other than expected.

    Args:
        config: as it was given, before lengths were fitted to the models' contexts.
        folder: the run's.
        pair: both models.
        trainer: the run's.
        hidden_reason: whether the teacher's hidden states are kept, or nothing.
    """
    behavior, steps = config.behavior, config.train.steps
    yield (
        f"{config.student.model} ← {config.teacher.model}: {steps} steps of "
        f"{config.train.prompts_per_step} prompts × {config.rollout.rollouts_per_prompt} rollouts, "
        f"{describe_method(config)}, into {folder.path}"
    )
    if behavior.kind == "trb" and behavior.warmup_steps > steps:
        yield (
            f"warning: behavior.warmup_steps {behavior.warmup_steps} is longer than the run "
            f"(train.steps {steps}): the budget will not reach 0."
        )
    solver = kernel_note() if behavior.kind in ("trb", "fixed") else None
    for sentence in filter(None, [*unread_keys(config), pair.student.model.note, solver]):
        yield f"note: {sentence}"
    if config.is_self_taught:
        chosen = f"as it starts, with {config.student.adapter}"
        as_it_is = chosen if config.teacher.adapter == "start" else "without any adapter"
        yield f"one model is student and teacher, and held once; the teacher is it {as_it_is}"
    if hidden_reason:
        yield hidden_reason
    if trainer.sampler.behavior.needs_teacher(0) and config.rollout.draft_length != 1:
        scorers = {"student": pair.student, "teacher": pair.teacher}
        stuck = [
            f"{role} {s.model.name}"
            for role, s in scorers.items()
            if not make_decoder(s).is_trimmable
        ]
        if stuck:
            models = " and ".join(stuck)
            yield f"{models} cannot take tokens back, so the teacher is asked at every token"
    unfused = trainer.stepper.objective.unfused
    if unfused is not None:
        yield f"{unfused}, so the logits of a whole micro-batch are held at once"


def next_commands(config: Config, folder: RunFolder, student: LanguageModel) -> list[str]:
    """The commands that a user is likely to type next."""
    run = str(folder.path)
    commands = [
        ["trb-mlx", "generate", run, "--prompt", "…"],
        ["trb-mlx", "eval", run],
        ["trb-mlx", "report", run],
        ["trb-mlx", "export", run, "--to", "peft"],
    ]
    model = resolve(config.student.model)
    # mlx-lm would load the base as it was before rounding, reads no GGUF, and computes some models
    # otherwise.
    if config.student.quantize is None and not Path(model).is_file() and student.note is None:
        prompt = _mlx_lm_prompt(config, student.tokenizer)
        start = ["python", "-m", "mlx_lm", "generate", "--model", model]
        commands.append([*start, "--adapter-path", str(folder.adapter_path), "--prompt", prompt])
    return ["next:", *(f"  {shlex.join(command)}" for command in commands)]


def _mlx_lm_prompt(config: Config, tokenizer: Any) -> str:
    """What mlx-lm must be given: without a chat template it reads a prompt as it stands."""
    if tokenizer.has_chat_template or config.prompt.chat_template is not None:
        return "…"
    text = fill_plain(config.prompt.plain, "…", config.prompt.system or "")
    return text.replace("\n", "\\n")  # which mlx-lm takes for a line's end
