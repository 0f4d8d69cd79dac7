"""TRL's recipe: a Python script around its DistillationTrainer, in the names of TRL 1.16."""

from __future__ import annotations

import math
from typing import Any

from trb_mlx.config import Config
from trb_mlx.exporting.verl import left_behind
from trb_mlx.method import describe_divergence

_SCRIPT = '''\
"""On-policy distillation with TRL, from the settings of a trb-mlx run; names of TRL 1.16.

Written by `trb-mlx export --recipe trl` and not run by it. Start with `accelerate launch`.

Without a counterpart in TRL's distillation trainer, so left behind:
{left}
"""

from datasets import load_dataset
from peft import LoraConfig
from trl import DistillationConfig, DistillationTrainer

STUDENT = {student!r}
TEACHER = {teacher!r}
NUM_GENERATIONS = {generations}  # rollout.rollouts_per_prompt: copies of a prompt in a batch

# Prompts: {source}. The trainer reads a column `prompt` of chat messages.
dataset = load_dataset("json", data_files="prompts.jsonl", split="train")
dataset = dataset.shuffle(seed={seed})
dataset = dataset.select([row for row in range(len(dataset)) for _ in range(NUM_GENERATIONS)])

settings = DistillationConfig(
    output_dir={output!r},
{settings}
)
adapters = LoraConfig(
{adapters}
)
trainer = DistillationTrainer(
    model=STUDENT,
    teacher_model=TEACHER,
    args=settings,
    train_dataset=dataset,
    peft_config=adapters,
)
trainer.train()
trainer.save_model(settings.output_dir)
'''


def trl_recipe(config: Config, name: str) -> str:
    """The text of the script; `name` is the run's."""
    return _SCRIPT.format(
        left="\n".join(f"- {line}" for line in [*left_behind(config), *_loss(config)]),
        student=config.student.model,
        teacher=config.teacher.model,
        generations=config.rollout.rollouts_per_prompt,
        source=config.data.train.source,
        seed=config.train.seed,
        output=name,
        settings=_arguments(_settings(config)),
        adapters=_arguments(_adapters(config)),
    )


def _loss(config: Config) -> list[str]:
    if config.loss.mode == "exact":
        return []
    return [f"loss.mode {config.loss.mode}, k = {config.loss.top_k}: TRL sums over the vocabulary"]


def _settings(config: Config) -> dict[str, tuple[Any, str]]:
    """DistillationConfig's arguments, each with where it comes from."""
    train, rollout = config.train, config.rollout
    rows = train.prompts_per_step * rollout.rollouts_per_prompt
    micro = math.gcd(rows, train.micro_batch_size)
    # Of the generalised Jensen-Shannon divergence that TRL computes.
    beta = {"reverse_kl": 1.0, "forward_kl": 0.0, "jsd": config.loss.beta}[config.loss.divergence]
    return {
        "beta": (beta, describe_divergence(config)),
        "temperature": (rollout.temperature, "rollout.temperature, of the loss too"),
        "top_p": (1.0, "nothing cut off"),
        "top_k": (0, ""),
        "max_completion_length": (rollout.max_tokens, "rollout.max_tokens"),
        "chat_template_kwargs": ({"enable_thinking": config.prompt.enable_thinking}, ""),
        "shuffle_dataset": (False, "shuffled above, the copies of a prompt together"),
        "per_device_train_batch_size": (micro, "train.micro_batch_size; on one GPU"),
        "gradient_accumulation_steps": (rows // micro, f"{rows} rollouts an update"),
        "max_steps": (train.steps, "train.steps"),
        "learning_rate": (train.learning_rate, ""),
        "lr_scheduler_type": ("constant_with_warmup", "a cosine warm-up here"),
        "warmup_steps": (train.lr_warmup_steps, "train.lr_warmup_steps"),
        "adam_beta1": (train.betas[0], ""),
        "adam_beta2": (train.betas[1], ""),
        "weight_decay": (train.weight_decay, ""),
        "max_grad_norm": (train.max_grad_norm, ""),
        "gradient_checkpointing": (train.grad_checkpoint, ""),
        "save_steps": (config.run.save_every, ""),
        "seed": (train.seed % 2**32, ""),
    }


def _adapters(config: Config) -> dict[str, tuple[Any, str]]:
    lora = config.lora
    targets: Any = sorted(lora.keys) if lora.keys else "all-linear"
    return {
        "r": (lora.rank, ""),
        "lora_alpha": (lora.scale * lora.rank, "lora.scale · lora.rank"),
        "lora_dropout": (lora.dropout, ""),
        "target_modules": (targets, ""),
        "use_dora": (lora.dora, ""),
        "task_type": ("CAUSAL_LM", ""),
    }


def _arguments(values: dict[str, tuple[Any, str]]) -> str:
    return "\n".join(
        f"    {name}={value!r}," + (f"  # {why}" if why else "")
        for name, (value, why) in values.items()
    )
