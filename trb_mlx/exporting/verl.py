"""verl's recipe: a shell script of overrides, in the key names of verl 0.9.1."""

from __future__ import annotations

import json
import shlex

from trb_mlx.config import Config
from trb_mlx.method import (
    describe_behavior,
    describe_lengths,
    describe_loss,
    describe_target,
)

_HEAD = """\
#!/usr/bin/env bash
# On-policy distillation with verl, from the settings of a trb-mlx run; key names of verl 0.9.1.
# Written by `trb-mlx export --recipe verl` and not run by it: set the GPUs and the data first.
#
# Without a counterpart in verl's distillation path, so left behind:
{left}
set -euo pipefail

STUDENT=${{STUDENT:-{student}}}
TEACHER=${{TEACHER:-{teacher}}}
TRAIN=${{TRAIN:-train.parquet}}  # prompts of {source}, in verl's parquet columns
TEST=${{TEST:-test.parquet}}

overrides=(
"""
_TAIL = """\
)
python3 -m verl.trainer.main_ppo "${overrides[@]}" "$@"
"""


def verl_recipe(config: Config, name: str) -> str:
    """The text of the script; `name` is the run's."""
    parts = [*_data(config), *_student(config), *_rollout(config), *_teacher(config)]
    head = _HEAD.format(
        left="\n".join(f"#   {line}" for line in left_behind(config)),
        student=shlex.quote(config.student.model),
        teacher=shlex.quote(config.teacher.model),
        source=config.data.train.source,
    )
    return head + "".join(f"  {part}\n" for part in [*parts, *_trainer(config, name)]) + _TAIL


def left_behind(config: Config) -> list[str]:
    """What of a run no cluster stack's distillation path has, one line each."""
    lines = ["EOS ids of both models merged into one stop event"]
    if config.behavior.kind != "vanilla":
        lines.insert(
            0, f"behavior ({describe_behavior(config)}): there the student alone draws the tokens"
        )
    lines += [*describe_lengths(config), *describe_target(config)]
    if config.student.model.startswith(("bundled:", "pypi:")) or config.student.quantize:
        lines.append(f"the student as it was loaded here ({config.student.model}): name another")
    if config.teacher.model.startswith(("bundled:", "pypi:", "mlx-community/")):
        lines.append(f"the teacher in MLX's own form ({config.teacher.model}): name the original")
    return lines


def _data(config: Config) -> list[str]:
    return [
        "# data",
        'data.train_files="$TRAIN"',
        'data.val_files="$TEST"',
        f"data.train_batch_size={config.train.prompts_per_step}  # train.prompts_per_step",
        f"data.max_prompt_length={config.data.max_prompt_tokens}",
        f"data.max_response_length={config.rollout.max_tokens}  # rollout.max_tokens",
        "data.filter_overlong_prompts=True",
        f"data.seed={config.train.seed}",
    ]


def _student(config: Config) -> list[str]:
    train, lora = config.train, config.lora
    targets = json.dumps(sorted({key.rpartition(".")[2] for key in lora.keys or ()}))
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    return [
        "# the student and its one update a batch",
        f'{model}.path="$STUDENT"',
        f"{model}.lora_rank={lora.rank}",
        f"{model}.lora_alpha={lora.scale * lora.rank:g}  # lora.scale · lora.rank",
        f"{model}.target_modules={shlex.quote(targets) if lora.keys else 'all-linear'}",
        f"{model}.enable_gradient_checkpointing={train.grad_checkpoint}",
        f"{actor}.optim.lr={train.learning_rate:g}",
        f"{actor}.optim.lr_scheduler_type=constant",
        f"{actor}.optim.lr_warmup_steps={train.lr_warmup_steps}",
        f"{actor}.optim.weight_decay={train.weight_decay:g}",
        f"{actor}.optim.betas='[{train.betas[0]:g},{train.betas[1]:g}]'",
        f"{actor}.optim.clip_grad={train.max_grad_norm:g}",
        f"{actor}.ppo_mini_batch_size={train.prompts_per_step}",
        f"{actor}.ppo_micro_batch_size_per_gpu={train.micro_batch_size}  # train.micro_batch_size",
        f"{actor}.loss_agg_mode=token-mean",
        f"{actor}.use_kl_loss=False",
        "algorithm.adv_estimator=grpo",  # needs no critic; task rewards are off
        "algorithm.use_kl_in_reward=False",
    ]


def _rollout(config: Config) -> list[str]:
    rollout = "actor_rollout_ref.rollout"
    return [
        "# rollouts",
        f"{rollout}.name=vllm",
        f"{rollout}.n={config.rollout.rollouts_per_prompt}  # rollout.rollouts_per_prompt",
        f"{rollout}.temperature={config.rollout.temperature:g}",
        f"{rollout}.top_p=1.0",
        f"{rollout}.top_k=-1",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={config.train.micro_batch_size}",
    ]


def _teacher(config: Config) -> list[str]:
    forward = config.loss.divergence == "forward_kl"
    teacher, loss = "distillation.teacher_models.teacher_model", "distillation.distillation_loss"
    return [
        "# the teacher and what is matched",
        "distillation.enabled=True",
        "distillation.nnodes=1",
        "distillation.n_gpus_per_node=1",
        f'{teacher}.model_path="$TEACHER"',
        f"{teacher}.num_replicas=1",
        f"{teacher}.inference.tensor_model_parallel_size=1",
        f"# loss: {describe_loss(config)}. verl has forward KL on the teacher's top-k",
        "# (forward_kl_topk), and reverse KL by the drawn token alone (k1).",
        f"{loss}.loss_mode={'forward_kl_topk' if forward else 'k1'}",
        f"{loss}.use_policy_gradient={not forward}",
        f"{loss}.use_task_rewards=False",
        f"{loss}.topk={config.loss.top_k}",
    ]


def _trainer(config: Config, name: str) -> list[str]:
    every = config.eval.every or -1
    return [
        "# the run",
        f"trainer.total_training_steps={config.train.steps}  # train.steps",
        f"trainer.save_freq={config.run.save_every}",
        f"trainer.test_freq={every}",
        "trainer.nnodes=1",
        "trainer.n_gpus_per_node=1",
        "trainer.project_name=trb-mlx",
        f"trainer.experiment_name={shlex.quote(name)}",
    ]
