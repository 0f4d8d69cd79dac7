"""The step: split as one likes, guarded against what is not finite, the same when compiled."""

from __future__ import annotations

import copy

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig, LossConfig, TrainConfig
from trb_mlx.evaluation.distances import mean_reverse_kl
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.scoring import score
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper
from trb_mlx.types import Job, Prompt, Records, Rollout, RolloutKey, Sampling

TEXTS = ["Compute 1+2.", "b", "a longer prompt than the others", "Compute 12+7-5.", "why"]


def rollouts(pair: Pair, support: int = 8) -> Rollout:
    jobs = [
        Job(Prompt(i, text, tuple(text.encode())), RolloutKey(0, 0, i, 0))
        for i, text in enumerate(TEXTS)
    ]
    rollout = sample(pair.student, jobs, Sampling(max_tokens=14, support=support))
    score(pair.teacher, rollout, (8, 1000), keep_hidden=False)
    return rollout


def make_stepper(pair: Pair, mode: str = "tail", **changes: object) -> Stepper:
    module = pair.student.model.module
    if not tree_flatten(module.trainable_parameters()):
        add_lora(module, LoraConfig(rank=4), seed=0)
    config = TrainConfig(**{"learning_rate": 0.01, "micro_batch_size": 8, **changes})
    return Stepper(module, Objective(LossConfig(mode=mode), pair), config)


def parameters(stepper: Stepper) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in tree_flatten(stepper.module.trainable_parameters())}


def difference(one: dict, other: dict) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.mark.parametrize("mode", ["tail", "exact"])
def test_micro_batches_do_not_change_a_step(pair: Pair, mode: str) -> None:
    """The average runs over all response tokens, however unequal the parts are."""
    whole = make_stepper(pair, mode)
    start = copy.deepcopy(parameters(whole))
    rollout = rollouts(pair)
    results = []
    # By rows, and by positions: the longest row has 44, so that 60 take one to three rows.
    for limits in (
        {},
        {"micro_batch_size": 2},
        {"micro_batch_tokens": 60},
        {"micro_batch_tokens": 1},
    ):
        stepper = make_stepper(pair, mode, **limits)
        stepper.module.load_weights([(k, mx.array(v)) for k, v in start.items()], strict=False)
        metrics = stepper.update(rollout, 0.01)
        results.append((metrics, parameters(stepper)))
    (first, after), *others = results
    assert difference(start, after) > 1e-3
    for metrics, other in others:
        assert metrics["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
        assert difference(after, other) < 1e-4


def test_the_loss_is_the_mean_over_tokens_of_the_recorded_divergence(pair: Pair) -> None:
    stepper = make_stepper(pair, "exact")
    rollout = rollouts(pair)
    expected = mean_reverse_kl(pair, rollout, 2)
    assert stepper.update(rollout, 0.0)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mode", ["tail", "renormalized", "truncated", "exact"])
def test_steps_reduce_the_divergence(pair: Pair, mode: str) -> None:
    stepper = make_stepper(pair, mode)
    rollout = rollouts(pair)
    before = mean_reverse_kl(pair, rollout, 8)
    first = stepper.update(rollout, 0.01)
    # Whatever is trained, the metric is a lower bound of the divergence.
    assert 0 < first["reverse_kl"] <= before + 1e-4
    assert (first["reverse_kl"] == first["loss"]) == (mode in ("tail", "exact"))
    for _ in range(4):
        stepper.update(rollout, 0.01)
    assert mean_reverse_kl(pair, rollout, 8) < before - 0.05


def test_the_gap_between_drawing_and_training_is_seen(pair: Pair) -> None:
    stepper = make_stepper(pair)
    rollout = rollouts(pair)
    first = stepper.update(rollout, 0.05)
    assert first["logprob_gap"] < 1e-4
    assert stepper.update(rollout, 0.05)["logprob_gap"] > 1e-3  # the student has moved on


def test_the_host_waits_once_a_step(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper, rollout = make_stepper(pair, "exact", micro_batch_size=1), rollouts(pair)
    waits, evaluate = [], mx.eval

    def counted(*arrays: object) -> None:
        waits.append(arrays)
        evaluate(*arrays)

    def refuse(*_: object) -> None:
        raise AssertionError("a number was fetched on its own")

    monkeypatch.setattr(mx, "eval", counted)
    monkeypatch.setattr(mx.array, "item", refuse)
    monkeypatch.setattr(mx.array, "__float__", refuse)
    monkeypatch.setattr(mx.array, "__bool__", refuse)
    stepper.update(rollout, 0.01)
    assert len(waits) == 1


def test_a_step_holds_one_micro_batch(pair: Pair) -> None:
    """Twelve times the rows take no more memory, though nothing waits between micro-batches."""
    peaks = []
    for copies in (1, 12):
        rollout = repeated(rollouts(pair), copies)
        stepper = make_stepper(pair, micro_batch_size=2)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        stepper.update(rollout, 0.0)
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < 1.5 * peaks[0]


def repeated(rollout: Rollout, copies: int) -> Rollout:
    """The rows of a rollout several times over."""
    assert rollout.records is not None
    arrays = [rollout.tokens, rollout.lengths, rollout.stopped]
    records = {name: np.repeat(v, copies, 0) for name, v in rollout.records.arrays().items()}
    jobs = [job for job in rollout.jobs for _ in range(copies)]
    return Rollout(jobs, *(np.repeat(a, copies, 0) for a in arrays), Records(**records))


def test_what_is_not_finite_is_skipped(pair: Pair) -> None:
    stepper = make_stepper(pair)
    rollout = rollouts(pair)
    stepper.update(rollout, 0.01)
    before, moments = (
        parameters(stepper),
        copy.deepcopy(dict(tree_flatten(stepper.optimizer.state))),
    )
    assert rollout.records is not None
    rollout.records.teacher_rest[0, 0] = np.nan
    metrics = stepper.update(rollout, 0.01)
    assert metrics["skipped"] == 1.0
    assert stepper.skipped == 1
    stepper.rewind(1)
    assert stepper.skipped == 0
    assert difference(before, parameters(stepper)) == 0.0
    after = dict(tree_flatten(stepper.optimizer.state))
    assert all((np.array(moments[name]) == np.array(after[name])).all() for name in moments)
    rollout.records.teacher_rest[0, 0] = -1.0
    assert stepper.update(rollout, 0.01)["skipped"] == 0.0


def test_clipping_bounds_the_update_not_the_reported_norm(pair: Pair) -> None:
    rollout = rollouts(pair)
    loose = make_stepper(pair).update(rollout, 0.0)
    tight = make_stepper(pair, max_grad_norm=1e-3).update(rollout, 0.0)
    assert tight["grad_norm"] == pytest.approx(loose["grad_norm"], rel=1e-5)
    assert loose["grad_norm"] > 1e-3


def test_an_update_can_be_taken_back(pair: Pair) -> None:
    stepper = make_stepper(pair)
    rollout = rollouts(pair)
    stepper.update(rollout, 0.01)
    before = parameters(stepper)
    again = stepper.update(rollout, 0.01)
    stepper.rewind(2)
    assert difference(before, parameters(stepper)) > 0
    stepper.rewind(1)
    assert difference(before, parameters(stepper)) == 0.0
    assert stepper.update(rollout, 0.01) == again  # the optimizer's state went back too


def test_the_teacher_does_not_move(pair: Pair) -> None:
    before = {k: np.array(v) for k, v in tree_flatten(pair.teacher.model.module.parameters())}
    stepper = make_stepper(pair)
    stepper.update(rollouts(pair), 0.1)
    after = dict(tree_flatten(pair.teacher.model.module.parameters()))
    assert all((np.array(after[name]) == value).all() for name, value in before.items())


@pytest.mark.parametrize("mode", ["tail", "exact"])
def test_compiled_equals_eager(pair: Pair, mode: str) -> None:
    """Padded to classes of rows, lengths and tokens, the step is the same."""
    rollout = rollouts(pair)
    eager = make_stepper(pair, mode)
    start = parameters(eager)
    expected, after = eager.update(rollout, 0.01), parameters(eager)
    eager.module.load_weights([(k, mx.array(v)) for k, v in start.items()], strict=False)
    compiled = make_stepper(pair, mode, compile="on", micro_batch_size=4)
    assert compiled.compiled
    metrics = compiled.update(rollout, 0.01)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert difference(after, parameters(compiled)) < 1e-3
    assert compiled.update(rollout, 0.01)["loss"] < metrics["loss"]  # it sees the new weights
