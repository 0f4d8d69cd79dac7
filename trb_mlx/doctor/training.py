"""Updates on the device: compiled, resumed, and in 16 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from trb_mlx.backend import can_compile
from trb_mlx.config import LoraConfig, LossConfig, TrainConfig
from trb_mlx.doctor import reference
from trb_mlx.doctor.check import Finding, Skip
from trb_mlx.doctor.tiny import tiny_pair
from trb_mlx.models.head import split_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.models.precision import bound
from trb_mlx.models.self_teacher import self_teacher
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.scoring import score
from trb_mlx.runs.checkpoint import TrainingState, checkpoints, load_checkpoint, save_checkpoint
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

VOCAB, SHARPNESS, RATE = 64, 0.5, 0.01
PROMPTS = ((1, 2, 3), (4,), (5, 6, 7, 8, 9, 10), (11, 12))

Arrays = dict[str, np.ndarray]


def compiled_step() -> Sequence[Finding]:
    """Two updates through mx.compile, its rows padded to buckets, and as they are."""
    if not can_compile():
        raise Skip("no C++ compiler (g++), which mx.compile needs on a CPU")
    rollout = _rollout(tiny_pair(VOCAB, SHARPNESS))
    eager, compiled = (_stepper(tiny_pair(VOCAB, SHARPNESS), kind) for kind in ("off", "on"))
    start = _adapters(eager)
    losses = [
        [stepper.update(rollout, RATE)["loss"] for _ in range(2)] for stepper in (eager, compiled)
    ]
    return (
        Finding("loss differs by", reference.gap(losses[1], losses[0]), bound(1e-4, 1e-2)),
        Finding("update by", _distance(start, eager, compiled), bound(1e-2, 0.2)),
    )


def checkpoint() -> Sequence[Finding]:
    """Adapters and optimizer through files, and the update after them."""
    rollout = _rollout(tiny_pair(VOCAB, SHARPNESS))
    straight, resumed = (_stepper(tiny_pair(VOCAB, SHARPNESS), "off") for _ in range(2))
    straight.update(rollout, RATE)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), straight.module, straight.optimizer, TrainingState(1), keep=1)
        path = checkpoints(Path(folder))[-1]
        load_checkpoint(path, resumed.module, resumed.optimizer)
    read = _unequal(_adapters(straight), _adapters(resumed)) + _unequal(
        _moments(straight), _moments(resumed)
    )
    start = _adapters(straight)
    for stepper in (straight, resumed):
        stepper.update(rollout, RATE)
    # A GPU may add up in another order the second time.
    limit = 0.0 if mx.default_device() == mx.Device(mx.cpu) else 1e-2
    return (
        Finding("arrays that differ", float(read), 0.0),
        Finding("resumed update differs by", _distance(start, straight, resumed), limit),
    )


def half_precision(dtype: mx.Dtype) -> Sequence[Finding]:
    """Log-probs of 16-bit logits in float32, and the loss of a pair in 16 bits."""
    logits = mx.array(np.random.default_rng(3).normal(size=(4, 4096)) * 4).astype(dtype)
    rounded = reference.normalize(np.asarray(logits.astype(mx.float32)))
    losses = []
    for kind in (mx.float32, dtype):
        pair = tiny_pair(VOCAB, SHARPNESS, kind)
        metrics = _stepper(pair, "off").update(_rollout(tiny_pair(VOCAB, SHARPNESS)), RATE)
        losses.append(metrics["loss"] if not metrics["skipped"] else float("nan"))
    return (
        Finding(
            "log-softmax differs by",
            float(np.abs(np.asarray(log_softmax(logits).astype(mx.float32)) - rounded).max()),
            2e-5,
        ),
        # bfloat16 keeps 8 bits, so that a logit may be off by 0.4%; over tokens it averages out.
        Finding("loss from float32's by", abs(losses[1] / losses[0] - 1.0), 0.01),
    )


def _rollout(pair: Pair) -> Rollout:
    """A few rollouts of the student with both models' records."""
    jobs = [
        Job(Prompt(place, "", prompt), RolloutKey(3, 0, place, 0))
        for place, prompt in enumerate(PROMPTS)
    ]
    rollout = sample(pair.student, jobs, Sampling(max_tokens=12, support=8))
    score(pair.teacher, rollout, (4, 1000))
    return rollout


def own_teacher() -> Sequence[Finding]:
    """A model under itself: the loss is 0 to rounding, before adapters and with them at rest."""
    student = tiny_pair(VOCAB, SHARPNESS).student
    teacher = replace(student, model=self_teacher(student.model), is_teacher=True)
    teacher = replace(teacher, split=split_model(teacher.model.module))
    pair = Pair(student, teacher)
    stepper = _stepper(pair, "off")
    metrics = stepper.update(_rollout(pair), RATE)
    return [
        Finding("loss", abs(metrics["loss"]), bound(1e-6, 1e-3)),
        Finding("gradient", metrics["grad_norm"], bound(1e-5, 1e-2)),
    ]


def _stepper(pair: Pair, compiled: str) -> Stepper:
    module = pair.student.model.module
    add_lora(module, LoraConfig(rank=4), seed=0)
    config = TrainConfig.model_validate({"compile": compiled})
    return Stepper(module, Objective(LossConfig(), pair), config)


def _adapters(stepper: Stepper) -> Arrays:
    return {k: np.array(v) for k, v in tree_flatten(stepper.module.trainable_parameters())}


def _moments(stepper: Stepper) -> Arrays:
    return {k: np.array(v) for k, v in tree_flatten(stepper.optimizer.state)}


def _unequal(one: Arrays, other: Arrays) -> int:
    """How many arrays of either are missing or differ in the other."""
    names = one.keys() | other.keys()
    missing = np.zeros(0)
    return sum(
        not np.array_equal(one.get(name, missing), other.get(name, missing)) for name in names
    )


def _distance(start: Arrays, stepper: Stepper, other: Stepper) -> float:
    """The distance of two students, relative to how far the first has moved."""
    one, two = _adapters(stepper), _adapters(other)
    distance, moved = (
        sum(float(((one[name] - x[name]) ** 2).sum()) for name in one) for x in (two, start)
    )
    return float(np.sqrt(distance / moved))
