"""The behavior policies beyond the trust region: SKD and temperature warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.config import BehaviorConfig, BehaviorKind
from trb_mlx.models.pair import Pair
from trb_mlx.ops.distribution import Distribution, softmax
from trb_mlx.rollout.behavior import BEHAVIORS, Behavior, make_behavior
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import sample_blended
from trb_mlx.types import Job, Prompt, RolloutKey, Sampling


def test_the_registry_holds_every_kind_of_the_config() -> None:
    kinds = get_args(BehaviorKind)
    assert set(kinds) == set(BEHAVIORS)
    for kind in kinds:
        assert make_behavior(BehaviorConfig(kind=kind)).kind == kind


def test_skd_asks_the_teacher_at_every_step_and_knows_no_budget() -> None:
    behavior = make_behavior(BehaviorConfig(kind="skd"))
    assert all(behavior.needs_teacher(step) for step in (0, 10**6))
    assert behavior.budget(0) == 0.0


def test_the_temperature_rises_to_one_and_stays() -> None:
    config = BehaviorConfig(kind="temperature", start_temperature=0.8, warmup_steps=4)
    behavior = make_behavior(config)
    actual = [behavior.temperature(step) for step in range(7)]
    assert actual == pytest.approx([0.8, 0.85, 0.9, 0.95, 1.0, 1.0, 1.0])
    assert actual[4:] == [1.0] * 3
    assert not any(behavior.needs_teacher(step) for step in range(7))
    others: list[Callable[[BehaviorConfig], Behavior]] = [
        BEHAVIORS[kind] for kind in BEHAVIORS if kind != "temperature"
    ]
    assert all(make(BehaviorConfig()).temperature(0) == 1.0 for make in others)


def test_skd_rollouts_have_its_law(pair: Pair) -> None:
    """First tokens of many rollouts, against the closed form of both models' first logits."""
    prompt = Prompt(0, "ab", tuple(b"ab"))
    work = [Job(prompt, RolloutKey(0, 0, 0, n)) for n in range(6000)]
    behavior = make_behavior(BehaviorConfig(kind="skd", top_k=5, teacher_temperature=0.6))
    sampling = Sampling(max_tokens=1, batch_size=1500, support=4)
    rollout = sample_blended(pair, work, sampling, behavior, 0.0, Fixed(1))
    student, teacher = (
        softmax(scorer.logits(mx.array([prompt.tokens]))[:, -1])
        for scorer in (pair.student, pair.teacher)
    )
    blend = behavior.blend(student, teacher, mx.array(0.0))
    law = np.asarray(blend.probs)[0]
    counts, expected = np.bincount(rollout.tokens[:, 0], minlength=len(law)), law * len(work)
    used = expected > 5
    chi = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert chi < used.sum() + 5 * np.sqrt(2 * used.sum())
    from_student = np.asarray(student.probs)[0] * len(work)  # the test has the power to fail
    assert ((counts - from_student)[used] ** 2 / from_student[used]).sum() > 3 * chi
    assert rollout.records is not None
    np.testing.assert_allclose(rollout.records.weight[:, 0], blend.weight.item(), rtol=1e-4)
    assert np.isfinite(rollout.records.kl_behavior).all()


@pytest.mark.parametrize("kind", BEHAVIORS)
def test_a_block_of_positions_is_solved_as_each_alone(kind: str) -> None:
    rng = np.random.default_rng(0)
    student, teacher = (
        softmax(mx.array(rng.normal(size=(2, 3, 90)).astype(np.float32) * 2)) for _ in range(2)
    )
    behavior, budget = make_behavior(BehaviorConfig(kind=kind, budget=0.3)), mx.array(0.3)
    whole = behavior.blend(student, teacher, budget)
    assert whole.weight.shape == (2, 3)
    for row in range(2):
        for place in range(3):
            one = [Distribution(*(x[row, place] for x in rows)) for rows in (student, teacher)]
            alone = behavior.blend(*one, budget)
            np.testing.assert_allclose(
                np.asarray(whole.probs)[row, place], np.asarray(alone.probs), atol=1e-5
            )
            assert whole.weight[row, place].item() == pytest.approx(alone.weight.item(), abs=1e-5)
