"""Rollouts: neither batch nor block is felt, and the records are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx import bounds
from trb_mlx.config import BehaviorConfig
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.distribution import Distribution
from trb_mlx.ops.numerics import entropy, log_softmax
from trb_mlx.rollout.behavior import Blend, make_behavior
from trb_mlx.rollout.decoder import RowDecoder
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.scoring import score
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

TEXTS = ["a", "Compute 12+7.", "the quick brown fox jumps over it", "hm?"]


def jobs(copies: int = 1, seed: int = 0, step: int = 0) -> list[Job]:
    return [
        Job(Prompt(i, text, tuple(text.encode())), RolloutKey(seed, step, i, n))
        for i, text in enumerate(TEXTS)
        for n in range(copies)
    ]


def blended(
    pair: Pair, work: list[Job], budget: float, length: int = 4, **changes: object
) -> Rollout:
    sampling = Sampling(**{"max_tokens": 12, "batch_size": 64, "support": 8, **changes})
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=budget))
    return sample_blended(pair, work, sampling, behavior, budget, Fixed(length))


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_the_block_length_changes_neither_tokens_nor_records(pair: Pair, length: int) -> None:
    one = blended(pair, jobs(4), 0.1, 3, batch_size=5)
    other = blended(pair, jobs(4), 0.1, length)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.stopped, other.stopped)
    assert one.records is not None
    assert other.records is not None
    for name, values in one.records.arrays().items():
        actual = getattr(other.records, name)
        if name in ("support", "teacher_support"):  # in no particular order
            values, actual = np.sort(values, -1), np.sort(actual, -1)
        np.testing.assert_allclose(actual, values, atol=1e-4, err_msg=name)
    share = one.records.corrected[one.mask].mean()
    assert 0.02 < share < one.records.total_variation[one.mask].mean() * 3


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_what_is_recorded_changes_no_token(pair: Pair, temperature: float) -> None:
    kept, bare = (
        sample(pair.student, jobs(4), Sampling(12, 5, temperature, support)) for support in (8, 0)
    )
    np.testing.assert_array_equal(kept.tokens, bare.tokens)
    assert bare.records is None


def test_a_round_is_chosen_for_what_its_rows_have_left_and_who_waits(pair: Pair) -> None:
    asked: list[tuple[list[int], bool]] = []

    class Asked(Fixed):
        def choose(self, left: Sequence[int], refilled: bool) -> int:
            asked.append((list(left), refilled))
            return 9

    sampling = Sampling(max_tokens=12, batch_size=3)
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=0.1))
    rollout = sample_blended(pair, jobs(2), sampling, behavior, 0.1, Asked(9))
    assert asked[0] == ([12] * 3, True)
    assert all(len(left) == 3 for left, refilled in asked if refilled)
    assert all(1 <= tokens <= 12 for left, _ in asked for tokens in left)
    waiting = [refilled for _, refilled in asked]
    assert waiting == sorted(waiting, reverse=True)
    assert not waiting[-1]
    assert sum(len(left) for left, _ in asked) == rollout.rounds
    assert sum(len(left) * min(9, max(left)) for left, _ in asked) == rollout.drafted


def test_nothing_is_blended_behind_a_rejected_draft(pair: Pair) -> None:
    """Every blended row is of an emitted token, but for those that a stop cuts off."""
    behavior, rows = make_behavior(BehaviorConfig(kind="fixed", budget=0.3)), []

    def counted(student: Distribution, *others: Any) -> Blend:
        rows.append(len(student.logprobs))
        return behavior.blend(student, *others)

    sampling = Sampling(max_tokens=12, batch_size=64)
    counting = dataclasses.replace(behavior, blend=counted)
    rollout = sample_blended(pair, jobs(4), sampling, counting, 0.3, Fixed(6))
    emitted, cut = int(rollout.lengths.sum()), 6 * len(rollout.jobs)
    assert emitted <= sum(rows) <= emitted + cut
    assert sum(rows) < rollout.drafted


def test_rows_are_taken_some_at_a_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few, the tokens and records stay the same."""
    sampling = Sampling(max_tokens=12, support=8)
    whole, alone = blended(pair, jobs(3), 0.2), sample(pair.student, jobs(3), sampling)
    monkeypatch.setattr(bounds, "CPU_ENTRIES", 5 * 384)
    parts, alone_in_parts = blended(pair, jobs(3), 0.2), sample(pair.student, jobs(3), sampling)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(alone.tokens, alone_in_parts.tokens)
    assert whole.records is not None
    assert parts.records is not None
    for name, values in whole.records.arrays().items():
        actual = getattr(parts.records, name)
        np.testing.assert_allclose(actual, values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_bound_of_the_vocabulary_changes_no_token(pair: Pair, rows: int) -> None:
    """Fewer rows are decoded at once, in shorter blocks."""
    sampling = Sampling(max_tokens=12)
    whole, alone = blended(pair, jobs(3), 0.2), sample(pair.student, jobs(3), sampling)
    with bounds.bounded(4 * rows * pair.student.merge.size / 2**20):
        parts, few = blended(pair, jobs(3), 0.2), sample(pair.student, jobs(3), sampling)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(alone.tokens, few.tokens)
    assert parts.rounds > whole.rounds


def test_without_a_budget_the_rollouts_are_the_students(pair: Pair) -> None:
    """Drafts are drawn as the student draws alone, and none is rejected."""
    alone = sample(pair.student, jobs(4), Sampling(max_tokens=12))
    np.testing.assert_array_equal(blended(pair, jobs(4), 0.0).tokens, alone.tokens)


def test_rows_draw_one_token_beyond_their_stop_at_most(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished row leaves at once, and its place is taken by the next prompt."""
    read: list[int] = []
    plain = RowDecoder.logits

    def counted(self: RowDecoder, tokens: mx.array) -> mx.array:
        read.append(tokens.size)
        return plain(self, tokens)

    monkeypatch.setattr(RowDecoder, "logits", counted)
    work = jobs(40)
    rollout = sample(pair.student, work, Sampling(max_tokens=40, batch_size=8))
    assert rollout.stopped.any()
    assert 0 <= rollout.drafted - rollout.lengths.sum() <= len(work)
    assert rollout.drafted == rollout.rounds == sum(read)


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


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_records_against_both_models_without_a_cache(pair: Pair, temperature: float) -> None:
    rollout = blended(pair, jobs(3), 0.2, temperature=temperature)
    records = rollout.records
    assert records is not None
    assert rollout.mask.sum() == rollout.lengths.sum()
    for packed in pack_rollout(rollout, 5):
        logits = [packed.pick(s.logits(packed.ids)) for s in (pair.student, pair.teacher)]
        tempered = [np.asarray(log_softmax(x / temperature)) for x in logits]
        plain = [np.asarray(log_softmax(x)) for x in logits]
        chosen = np.asarray(packed.flat(rollout.tokens))[:, None]
        support = np.asarray(packed.flat(records.support))
        actual = {name: np.asarray(packed.flat(v)) for name, v in records.arrays().items()}
        for name, row in zip(("student", "teacher"), tempered, strict=True):
            at_token = np.take_along_axis(row, chosen, -1)[:, 0]
            np.testing.assert_allclose(actual[f"{name}_logprob"], at_token, atol=1e-4)
            expected = np.asarray(entropy(mx.array(row)))
            np.testing.assert_allclose(actual[f"{name}_entropy"], expected, atol=1e-4)
        np.testing.assert_allclose(
            actual["teacher_support"], np.take_along_axis(plain[1], support, -1), atol=1e-4
        )
        mass = np.exp(np.take_along_axis(plain[1], support, -1)).sum(-1)
        np.testing.assert_allclose(np.exp(actual["teacher_rest"]), 1 - mass, atol=1e-5)
        tops = [np.argsort(-row, -1)[:, :8] for row in plain]
        shared = [len(set(a) & set(b)) for a, b in zip(*tops, strict=True)]
        assert actual["overlap"].tolist() == shared
        assert (np.sort(support) == np.sort(tops[0])).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_blend_keeps_to_its_budget(pair: Pair, temperature: float) -> None:
    budget = 0.2
    rollout = blended(pair, jobs(3), budget, temperature=temperature)
    records, used = rollout.records, rollout.mask
    assert records is not None
    assert (records.kl_behavior[used] <= budget * 1.001).all()
    assert (records.weight[used] > 0).all()
    assert (records.total_variation[used] <= np.sqrt(budget / 2)).all()  # Pinsker


def test_the_law_is_kept_by_every_row_of_a_batch(pair: Pair) -> None:
    """Batch 1 equals a row of batch 8."""
    whole = blended(pair, jobs(2), 0.3)
    for row, job in enumerate(jobs(2)):
        assert blended(pair, [job], 0.3).response(0) == whole.response(row)


def test_scoring_afterwards_equals_asking_token_by_token(pair: Pair) -> None:
    """At a budget of almost nothing the rollouts are the student's, and the records agree."""
    asked = blended(pair, jobs(2), 1e-30, keep_hidden=True)
    scored = sample(pair.student, jobs(2), Sampling(max_tokens=12, support=8))
    score(pair.teacher, scored, (3, 1000), keep_hidden=True)
    np.testing.assert_array_equal(asked.tokens, scored.tokens)
    assert asked.records is not None
    assert scored.records is not None
    names = ("teacher_rest", "teacher_logprob", "teacher_entropy", "student_entropy")
    assert asked.records.teacher_hidden is not None
    for name in (*names, "teacher_hidden"):
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
