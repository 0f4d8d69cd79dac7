"""Distances between models, against float64 and in pieces."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx import bounds
from trb_mlx.evaluation.distances import NAMES, distance_sums, mean_reverse_kl
from trb_mlx.models.pair import Pair
from trb_mlx.rollout import logits
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.sampler import sample
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling


@pytest.fixture
def rollout(pair: Pair) -> Rollout:
    prompts = [Prompt(i, "", tuple(range(40, 43 + 4 * i))) for i in range(4)]
    jobs = [Job(prompt, RolloutKey(0, 0, prompt.index, 0)) for prompt in prompts]
    return sample(pair.student, jobs, Sampling(9))


def logprobs(pair: Pair, rollout: Rollout, row: int) -> list[np.ndarray]:
    """Both models' float64 log-probs `[T, V]` at the positions of one row."""
    prompt = rollout.jobs[row].prompt.tokens
    ids = mx.array([[*prompt, *rollout.response(row)]])[:, :-1]
    logprobs = []
    for scorer in (pair.student, pair.teacher):
        values = np.asarray(scorer.logits(ids), np.float64)[0, len(prompt) - 1 :]
        peak = values.max(-1, keepdims=True)
        logprobs.append(values - peak - np.log(np.exp(values - peak).sum(-1, keepdims=True)))
    return logprobs


def test_every_sum_is_its_definition(pair: Pair, rollout: Rollout) -> None:
    sums = distance_sums(pair, rollout, 3, support=5)
    for row in range(4):
        student, teacher = logprobs(pair, rollout, row)
        seen = np.isfinite(student)
        gap = np.where(seen, student, 0.0) - np.where(seen, teacher, 0.0)
        tops = [np.argsort(-side, axis=-1)[:, :5] for side in (student, teacher)]
        shared = [len(set(a) & set(b)) / 5 for a, b in zip(*tops, strict=True)]
        student_probs, teacher_probs = np.exp(student), np.exp(teacher)
        expected = {
            "reverse_kl": (student_probs * gap).sum(),
            "forward_kl": -(teacher_probs * gap).sum(),
            "topk_overlap": sum(shared),
            "student_entropy": -(student_probs * np.where(seen, student, 0.0)).sum(),
            "teacher_entropy": -(teacher_probs * np.where(seen, teacher, 0.0)).sum(),
        }
        for name in NAMES:
            assert sums[name][row] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_long_texts_go_in_pieces(
    pair: Pair, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distance_sums(pair, rollout, 2, support=5)
    monkeypatch.setattr(logits, "chunk_tokens", lambda *_: 5)
    pieces = distance_sums(pair, rollout, 2, support=5)
    for name in NAMES:
        np.testing.assert_allclose(pieces[name], whole[name], rtol=1e-4)


def test_the_mean_over_response_tokens(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        Job(Prompt(row, "", tuple(text.encode())), RolloutKey(0, 0, row, 0))
        for row, text in enumerate(["one", "another", "a third prompt"])
    ]
    rollout = sample(pair.student, jobs, Sampling(max_tokens=9))
    sums, scorers = [], (pair.student, pair.teacher)
    for packed in pack_rollout(rollout, 8):
        student, teacher = (np.float64(packed.pick(s.logits(packed.ids))) for s in scorers)
        with np.errstate(invalid="ignore"):
            student, teacher = (
                logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                for logits in (student, teacher)
            )
            terms = np.where(np.exp(student) > 0, np.exp(student) * (student - teacher), 0.0)
        sums += terms.sum(-1).tolist()
    assert len(sums) == rollout.lengths.sum()
    expected = pytest.approx(float(np.mean(sums)), rel=1e-4)
    assert mean_reverse_kl(pair, rollout, 2) == expected
    monkeypatch.setattr(bounds.chunk_tokens, "__defaults__", (1, 6 * 259 * 4))
    assert mean_reverse_kl(pair, rollout, 2) == expected
    whole = Pair(*(dataclasses.replace(scorer, split=None) for scorer in scorers))
    assert mean_reverse_kl(whole, rollout, 2) == expected


def test_it_agrees_with_the_evaluation_during_training(pair: Pair, rollout: Rollout) -> None:
    sums = distance_sums(pair, rollout, 2, support=5)
    mean = sums["reverse_kl"].sum() / rollout.lengths.sum()
    assert mean == pytest.approx(mean_reverse_kl(pair, rollout, 2), rel=1e-5)


def test_a_model_is_no_distance_from_itself(pair: Pair, rollout: Rollout) -> None:
    sums = distance_sums(Pair(pair.student, pair.student), rollout, 4, support=5)
    np.testing.assert_allclose(sums["reverse_kl"], 0.0, atol=1e-6)
    np.testing.assert_allclose(sums["topk_overlap"], rollout.lengths)
