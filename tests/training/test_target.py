"""Targets: each method's loss is what its equation says, and vanilla where it should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trb_mlx.config import (
    BehaviorConfig,
    Config,
    LoraConfig,
    LossConfig,
    RolloutConfig,
    StudentConfig,
    TargetConfig,
    TeacherConfig,
    TrainConfig,
)
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.scoring import sample_teacher, score, score_pair
from trb_mlx.training.objective import Objective
from trb_mlx.training.rollouts import RolloutSampler
from trb_mlx.training.step import Stepper
from trb_mlx.training.trainer import Trainer
from trb_mlx.types import Job, Metrics, Prompt, Rollout, RolloutKey, Sampling

TEXTS = ["Compute 1+2.", "b", "a longer prompt than the others", "why"]
PROMPTS = [Prompt(i, text, tuple(text.encode())) for i, text in enumerate(TEXTS)]
SIZES = (8, 4096)
EXACT = LossConfig(mode="exact")
Updated = tuple[Metrics, dict[str, np.ndarray]]


def jobs(step: int = 0) -> list[Job]:
    return [Job(prompt, RolloutKey(0, step, prompt.index, 0)) for prompt in PROMPTS]


def rollouts(pair: Pair) -> Rollout:
    """The student's rollouts of step 0, scored."""
    rollout = sample(pair.student, jobs(), Sampling(max_tokens=10, support=8))
    score(pair.teacher, rollout, SIZES, False)
    return rollout


def at_step(rollout: Rollout, step: int) -> Rollout:
    """The same tokens as if they were another step's."""
    moved = [replace(job, key=replace(job.key, step=step)) for job in rollout.jobs]
    return replace(rollout, jobs=moved)


def updated(pair: Pair, rollout: Rollout, loss: LossConfig, target: TargetConfig) -> Updated:
    """The metrics and the new adapters of one update from a fixed start."""
    module = pair.student.model.module
    if not tree_flatten(module.trainable_parameters()):
        add_lora(module, LoraConfig(rank=4), seed=0)
    start = tree_flatten(module.trainable_parameters())
    stepper = Stepper(module, Objective(loss, pair, target), TrainConfig(micro_batch_size=3))
    metrics = stepper.update(rollout, 0.01)
    after = {name: np.array(value) for name, value in tree_flatten(module.trainable_parameters())}
    module.load_weights(start, strict=False)
    return metrics, after


def assert_same(one: Updated, other: Updated) -> None:
    assert one[0]["loss"] == other[0]["loss"]
    assert all((one[1][name] == other[1][name]).all() for name in one[1])


def assert_different(one: Updated, other: Updated) -> None:
    assert one[0]["loss"] != other[0]["loss"]
    assert any((one[1][name] != other[1][name]).any() for name in one[1])


def student_logprobs(pair: Pair, rollout: Rollout) -> list[np.ndarray]:
    """Of each row, the student's log-probs `[length, V]` at its response tokens."""
    rows = []
    for packed in pack_rollout(rollout, 1):
        rows.append((int(packed.rows[0]), packed.pick(pair.student.logits(packed.ids))))
    ordered = [logits for _, logits in sorted(rows, key=lambda pair: pair[0])]
    return [np.asarray(log_softmax(logits)).astype(np.float64) for logits in ordered]


def test_veto_without_power_is_vanilla_bit_for_bit(pair: Pair) -> None:
    rollout = rollouts(pair)
    vanilla = updated(pair, rollout, EXACT, TargetConfig())
    veto = TargetConfig(kind="veto", power=0.6, warmup_steps=4)
    assert_same(vanilla, updated(pair, rollout, EXACT, veto.model_copy(update={"power": 0.0})))
    assert_same(vanilla, updated(pair, at_step(rollout, 4), EXACT, veto))
    early, late = (updated(pair, at_step(rollout, step), EXACT, veto) for step in (0, 3))
    assert_different(vanilla, early)
    assert_different(early, late)
    assert early[0]["reverse_kl"] == vanilla[0]["loss"]


def test_gkd_s_ends_are_forward_and_reverse_kl(pair: Pair) -> None:
    rollout, plain = rollouts(pair), TargetConfig()
    ends = [LossConfig(mode="exact", divergence="jsd", beta=beta) for beta in (0.0, 1.0)]
    named = [LossConfig(mode="exact", divergence=name) for name in ("forward_kl", "reverse_kl")]
    updates = [updated(pair, rollout, loss, plain) for loss in ends]
    for one, loss in zip(updates, named, strict=True):
        assert_same(one, updated(pair, rollout, loss, plain))
    assert_different(*updates)
    middle = updated(pair, rollout, LossConfig(mode="exact", divergence="jsd"), plain)
    assert 0 < middle[0]["loss"] < np.log(2)
    assert middle[0]["reverse_kl"] == updates[1][0]["loss"]


@pytest.mark.parametrize("mode", ["tail", "exact"])
def test_the_sft_loss_is_the_mean_negative_log_likelihood(pair: Pair, mode: str) -> None:
    sampling = Sampling(max_tokens=10, support=8)
    rollout = sample_teacher(pair, jobs(), sampling)
    score_pair(pair, rollout, sampling, SIZES)
    target, loss = TargetConfig(sft_steps=2), LossConfig(mode=mode)
    logprobs = student_logprobs(pair, rollout)
    chosen = [row[np.arange(len(row)), rollout.response(i)] for i, row in enumerate(logprobs)]
    metrics, _ = updated(pair, rollout, loss, target)
    assert metrics["loss"] == pytest.approx(-np.concatenate(chosen).mean(), rel=1e-5)
    vanilla = updated(pair, rollout, loss, TargetConfig())
    assert metrics["reverse_kl"] == pytest.approx(vanilla[0]["loss"], rel=1e-6)
    assert_different(vanilla, updated(pair, rollout, loss, target))
    assert_same(vanilla, updated(pair, at_step(rollout, 2), loss, target))


@pytest.mark.parametrize("mode", ["tail", "exact"])
def test_corrected_positions_alone_train_towards_the_teachers_likeliest(
    pair: Pair, mode: str
) -> None:
    rollout, saki = rollouts(pair), TargetConfig(corrections="top_token")
    loss, records = LossConfig(mode=mode), rollout.records
    assert records is not None
    vanilla = updated(pair, rollout, loss, TargetConfig())
    assert_same(vanilla, updated(pair, rollout, loss, saki))  # the student alone corrects nothing
    corrected = np.random.default_rng(0).random(rollout.tokens.shape) < 0.3
    records.corrected = corrected
    objective = Objective(loss, pair, saki)
    plain = Objective(loss, pair, TargetConfig())
    logprobs = student_logprobs(pair, rollout)
    for packed in pack_rollout(rollout, 1):
        row, length = int(packed.rows[0]), packed.count
        top = np.asarray(packed.pick(pair.teacher.logits(packed.ids))).argmax(-1)
        labels = np.where(corrected[row, :length], top, -1)
        batch = objective.batch(rollout, packed, packed.count)
        np.testing.assert_array_equal(np.asarray(batch["labels"]), labels)
        weights = mx.where(mx.array(labels) < 0, batch["weights"], 0.0)
        rest, _ = plain.loss(batch | {"weights": weights})
        fixed = labels >= 0
        toward = -logprobs[row][np.flatnonzero(fixed), labels[fixed]].sum() / length
        corrected_loss, _ = objective.loss(batch)
        assert corrected_loss.item() == pytest.approx(rest.item() + toward, rel=1e-5)
        assert fixed.any()
    assert_different(vanilla, updated(pair, rollout, loss, saki))


def test_a_compiled_loss_is_traced_once_while_scalars_change(pair: Pair) -> None:
    rollout = rollouts(pair)
    target = TargetConfig(kind="veto", power=0.8, warmup_steps=4, sft_steps=1)
    objective, traces = Objective(EXACT, pair, target), 0

    def counted(batch: dict[str, mx.array]) -> mx.array:
        nonlocal traces
        traces += 1
        return objective.loss(batch)[0]

    compiled, values = mx.compile(counted), []
    for step in range(4):
        moved = at_step(rollout, step)
        moved.temperature = 0.9 - 0.1 * step
        (packed,) = pack_rollout(moved, len(TEXTS))
        batch = objective.batch(moved, packed, packed.count)
        values.append(compiled(batch).item())
        assert values[-1] == pytest.approx(objective.loss(batch)[0].item(), rel=1e-4)
    assert traces == 1
    assert len(set(values)) == 4


def make_trainer(
    pair: Pair,
    target: TargetConfig | None = None,
    draft_length: int | Literal["auto"] = 3,
    **behavior: object,
) -> Trainer:
    """A trainer with a behavior policy, and nothing to evaluate or reward with."""
    config = Config(
        teacher=TeacherConfig(model="t"),
        student=StudentConfig(model="s"),
        rollout=RolloutConfig(
            max_tokens=10, rollouts_per_prompt=2, temperature=0.9, draft_length=draft_length
        ),
        behavior=BehaviorConfig(**behavior),
        target=target or TargetConfig(),
        train=TrainConfig(prompts_per_step=3),
    )
    module = pair.student.model.module
    if not tree_flatten(module.trainable_parameters()):
        add_lora(module, LoraConfig(rank=4), seed=0)
    objective = Objective(config.loss, pair, config.target)
    stepper = Stepper(module, objective, config.train)
    evaluator: Any = None
    sampler = RolloutSampler(config, pair, PROMPTS)
    return Trainer(config, sampler, stepper, evaluator, lambda rollout: [])


@pytest.mark.parametrize("cut", ["rollout", "update", "evaluation"])
def test_a_step_that_is_cut_off_leaves_nothing_behind(
    pair: Pair, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved then is what an uninterrupted run has after the step before."""

    class Cut(BaseException):
        pass

    def fail(*_: object) -> None:
        raise Cut

    trainer = make_trainer(pair, draft_length="auto", kind="trb", budget=0.3)
    rollouts = "trb_mlx.training.rollouts"
    trainer.train_step()
    trainer.step = 1
    trainer.rewind()  # nothing to take back
    drafting = trainer.sampler.drafting
    weights = {k: np.array(v) for k, v in tree_flatten(pair.student.model.module.parameters())}
    assert drafting is not None
    with monkeypatch.context() as patch, pytest.raises(Cut):
        if cut == "rollout":  # after its last round
            patch.setattr(f"{rollouts}.sample_blended", lambda *a: sample_blended(*a) and fail())
        elif cut == "update":
            patch.setattr(trainer.stepper, "update", fail)
        trainer.train_step()
        assert trainer.sampler.drafting != drafting
        raise Cut
    trainer.rewind()
    assert trainer.sampler.drafting == drafting
    for name, value in tree_flatten(pair.student.model.module.parameters()):
        np.testing.assert_array_equal(np.array(value), weights[name])


def test_a_temperature_warm_up_is_vanilla_bit_for_bit_once_over(pair: Pair) -> None:
    vanilla = make_trainer(pair, kind="vanilla")
    warm = make_trainer(pair, kind="temperature", start_temperature=0.5, warmup_steps=3)
    for step in (3, 8):
        one, other = vanilla.sampler.sample(step), warm.sampler.sample(step)
        assert one.temperature == other.temperature == 0.9
        np.testing.assert_array_equal(one.tokens, other.tokens)
        for name, values in one.records.arrays().items():
            np.testing.assert_array_equal(values, getattr(other.records, name))
    early = warm.sampler.sample(0)
    assert early.temperature == 0.45
    assert early.response(0) != vanilla.sampler.sample(0).response(0)
    # The records are of the tempered distributions, and the objective scores them as such.
    assert warm.stepper.update(early, 0.0)["logprob_gap"] < 1e-5


@pytest.mark.parametrize("draft_length", [1, 4])
def test_corrections_of_a_blended_rollout_become_labels(pair: Pair, draft_length: int) -> None:
    saki = TargetConfig(corrections="top_token")
    trainer = make_trainer(pair, saki, draft_length, kind="fixed", budget=0.5)
    rollout = trainer.sampler.sample(0)
    records, used = rollout.records, rollout.mask
    assert records is not None
    assert 0 < records.corrected[used].mean() < 0.5
    labels = []
    for packed in pack_rollout(rollout, 1):
        top = np.asarray(packed.pick(pair.teacher.logits(packed.ids))).argmax(-1)
        corrected = np.asarray(packed.flat(records.corrected))
        batch = Objective(EXACT, pair, saki).batch(rollout, packed, 1)
        np.testing.assert_array_equal(np.asarray(batch["labels"]), np.where(corrected, top, -1))
        labels.append(np.asarray(batch["labels"]))
    assert (np.concatenate(labels) >= 0).sum() == records.corrected[used].sum()
    metrics = trainer.stepper.update(rollout, 0.0)
    assert metrics["loss"] != metrics["reverse_kl"]


def test_an_sft_phase_draws_from_the_teacher_and_then_from_the_behavior(pair: Pair) -> None:
    phased = make_trainer(pair, TargetConfig(sft_steps=2), kind="trb", budget=0.2, warmup_steps=9)
    plain = make_trainer(pair, kind="trb", budget=0.2, warmup_steps=9)
    taught = phased.sampler.sample(1)
    alone = sample(pair.teacher, taught.jobs, Sampling(max_tokens=10, temperature=0.9))
    np.testing.assert_array_equal(taught.tokens, alone.tokens)
    phased.step = 1
    metrics = phased.train_step().metrics
    assert (metrics["trb/epsilon"], metrics["trb/beta_mean"]) == (0.0, 1.0)
    np.testing.assert_array_equal(phased.sampler.sample(2).tokens, plain.sampler.sample(2).tokens)
