"""Rollouts: the batch is not felt, the law is the behavior's, and the records are right."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny import EXTRAS, make_model

from trb_mlx.config import BehaviorConfig, ModelConfig
from trb_mlx.models.loading import load_model
from trb_mlx.models.pair import Pair, Scorer, single
from trb_mlx.ops.numerics import entropy, log_softmax
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.kv_cache import CachedModel
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.sampler import Sampling, sample, sample_blended, score
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey

TEXTS = ["a", "Compute 12+7.", "the quick brown fox jumps over it", "hm?"]


def jobs(copies: int = 1, seed: int = 0, step: int = 0) -> list[Job]:
    return [
        Job(Prompt(i, text, tuple(text.encode())), RolloutKey(seed, step, i, n))
        for i, text in enumerate(TEXTS)
        for n in range(copies)
    ]


def blended(pair: Pair, work: list[Job], budget: float, **changes: object) -> Rollout:
    sampling = Sampling(**{"max_tokens": 12, "batch_size": 64, "support": 8, **changes})
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=budget))
    return sample_blended(pair.student, pair.teacher, work, sampling, behavior, budget)


@pytest.mark.parametrize("kind", EXTRAS)
def test_batched_equals_single(kind: str, tmp_path: Path) -> None:
    """Ragged prompts, rows that leave, and (gemma3) windows shorter than the rows."""
    model = load_model(ModelConfig(model=str(make_model(tmp_path / kind, kind, seed=4))))
    scorer = single(model)
    prompts = [tuple(text.encode()) for text in TEXTS]
    tail = mx.array(np.random.default_rng(0).integers(1, 250, size=(4, 14)))
    batch = CachedModel(scorer, prompts)
    last = mx.array([prompt[-1] for prompt in prompts])
    rows = list(range(4))
    for position in range(14):
        logits = np.asarray(batch.step(last[mx.array(rows)]))
        for place, row in enumerate(rows):
            text = [*prompts[row], *tail[row, :position].tolist()]
            alone = np.asarray(scorer.logits(mx.array([text])))[0, -1]
            np.testing.assert_allclose(logits[place], alone, atol=2e-4)
        last = tail[:, position]
        if position in (3, 9):  # rows leave, of the middle and of the end
            gone = 1 if position == 3 else 3
            batch.keep([place for place, row in enumerate(rows) if row != gone])
            rows.remove(gone)


def test_neither_batch_size_nor_order_changes_what_is_drawn(pair: Pair) -> None:
    whole = blended(pair, jobs(2), 0.1)
    small = blended(pair, jobs(2), 0.1, batch_size=3)
    backwards = blended(pair, jobs(2)[::-1], 0.1)
    for row in range(8):
        assert whole.response(row) == small.response(row) == backwards.response(7 - row)
    assert blended(pair, jobs(2, seed=1), 0.1).response(0) != whole.response(0)
    assert blended(pair, jobs(2, step=1), 0.1).response(0) != whole.response(0)
    assert whole.response(0) != whole.response(1)  # two rollouts of one prompt


def test_rows_end_with_the_students_eos(pair: Pair) -> None:
    rollout = sample(pair.student, jobs(40), Sampling(max_tokens=40))
    ends = rollout.stopped
    assert 0 < ends.sum() < len(ends)
    for row in range(len(ends)):
        response = rollout.response(row)
        assert (response[-1] == 256) == ends[row]
        assert 256 not in response[:-1]
        assert 258 not in response  # the teacher's own EOS cannot be drawn
        assert len(response) == 40 or ends[row]


def test_the_empirical_law_is_the_behaviors(pair: Pair) -> None:
    """First tokens of many rollouts of one prompt, against μ solved for its logits."""
    prompt = Prompt(0, "ab", tuple(b"ab"))
    work = [Job(prompt, RolloutKey(0, 0, 0, n)) for n in range(6000)]
    budget = 0.3
    rollout = blended(pair, work, budget, max_tokens=1, batch_size=1500, support=4)
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=budget))
    student, teacher = (
        log_softmax(scorer.logits(mx.array([prompt.tokens]))[:, -1])
        for scorer in (pair.student, pair.teacher)
    )
    law = np.exp(np.asarray(behavior.blend(student, teacher, mx.array(budget)).logprobs))[0]
    counts = np.bincount(rollout.tokens[:, 0], minlength=len(law))
    expected = law * len(work)
    used = expected > 5
    chi = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert chi < used.sum() + 5 * np.sqrt(2 * used.sum())
    from_student = np.exp(np.asarray(student))[0] * len(work)  # the test has the power to fail
    assert ((counts - from_student)[used] ** 2 / from_student[used]).sum() > 3 * chi


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_records_against_both_models_without_a_cache(pair: Pair, temperature: float) -> None:
    budget = 0.2
    rollout = blended(pair, jobs(3), budget, temperature=temperature)
    records = rollout.records
    assert records is not None
    assert rollout.mask.sum() == rollout.lengths.sum()
    for packed in pack_rollout(rollout, 5):
        logits = [packed.pick(s.logits(packed.ids)) for s in (pair.student, pair.teacher)]
        tempered = [np.asarray(log_softmax(x / temperature)) for x in logits]
        plain = [np.asarray(log_softmax(x)) for x in logits]
        chosen = np.asarray(packed.flat(rollout.tokens))[:, None]
        support = np.asarray(packed.flat(records.support))
        found = {name: np.asarray(packed.flat(v)) for name, v in records.arrays().items()}
        for name, row in zip(("student", "teacher"), tempered, strict=True):
            at_token = np.take_along_axis(row, chosen, -1)[:, 0]
            np.testing.assert_allclose(found[f"{name}_logprob"], at_token, atol=1e-4)
            expected = np.asarray(entropy(mx.array(row)))
            np.testing.assert_allclose(found[f"{name}_entropy"], expected, atol=1e-4)
        np.testing.assert_allclose(
            found["teacher_support"], np.take_along_axis(plain[1], support, -1), atol=1e-4
        )
        mass = np.exp(np.take_along_axis(plain[1], support, -1)).sum(-1)
        np.testing.assert_allclose(np.exp(found["teacher_rest"]), 1 - mass, atol=1e-5)
        tops = [np.argsort(-row, -1)[:, :8] for row in plain]
        shared = [len(set(a) & set(b)) for a, b in zip(*tops, strict=True)]
        assert found["overlap"].tolist() == shared
        assert (np.sort(support) == np.sort(tops[0])).all()
    used = rollout.mask
    assert (records.kl_behavior[used] <= budget * 1.001).all()
    assert (records.weight[used] > 0).all()
    assert (records.total_variation[used] <= np.sqrt(budget / 2)).all()  # Pinsker


def test_scoring_afterwards_equals_asking_token_by_token(pair: Pair) -> None:
    """At a budget of almost nothing the rollouts are the student's, and the records agree."""
    asked = blended(pair, jobs(2), 1e-30)
    scored = sample(pair.student, jobs(2), Sampling(max_tokens=12, support=8))
    score(pair.teacher, scored, 3)
    np.testing.assert_array_equal(asked.tokens, scored.tokens)
    assert asked.records is not None
    assert scored.records is not None
    for name in ("teacher_rest", "teacher_logprob", "teacher_entropy", "student_entropy"):
        np.testing.assert_allclose(
            getattr(asked.records, name), getattr(scored.records, name), atol=1e-4
        )


def test_vanilla_asks_no_teacher_and_trb_stops_asking() -> None:
    vanilla = make_behavior(BehaviorConfig(kind="vanilla"))
    trb = make_behavior(BehaviorConfig(kind="trb", budget=0.1, warmup_steps=4))
    fixed = make_behavior(BehaviorConfig(kind="fixed", budget=0.1, warmup_steps=4))
    assert [vanilla.needs_teacher(k) for k in (0, 9)] == [False, False]
    assert [trb.needs_teacher(k) for k in (0, 3, 4, 9)] == [True, True, False, False]
    assert [fixed.needs_teacher(k) for k in (0, 9)] == [True, True]
    assert [trb.budget(k) for k in (0, 2, 4)] == [0.1, 0.05, 0.0]


def test_zero_temperature_takes_the_likeliest(pair: Pair) -> None:
    scorer: Scorer = pair.student
    rollout = sample(scorer, jobs()[:1], Sampling(max_tokens=5, temperature=0.0))
    text = list(TEXTS[0].encode())
    for token in rollout.response(0):
        assert np.asarray(scorer.logits(mx.array([text])))[0, -1].argmax() == token
        text.append(token)
