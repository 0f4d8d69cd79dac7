"""Both models before one response, each behind its own prompt: draws, records, batches, stops."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.config import BehaviorConfig
from trb_mlx.evaluation.distances import distance_sums, mean_reverse_kl
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.continuation import continue_rollouts
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.scoring import sample_teacher, score, score_pair
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

# Both longer and shorter than the student's, one with another last token, one without its own.
PROMPTS = [
    ("Compute 1+2.", "A worked answer: 1+2=3, and so on and on.\nCompute 1+2?"),
    ("a much longer prompt for the student than for the teacher", "b"),
    ("same", None),
    ("c", "c!"),
]
BUDGET = 0.2


def jobs_of(copies: int = 2) -> list[Job]:
    return [
        Job(
            Prompt(i, text, tuple(text.encode()), None, None, own, own and tuple(own.encode())),
            RolloutKey(5, 0, i, n),
        )
        for i, (text, own) in enumerate(PROMPTS)
        for n in range(copies)
    ]


def plain_logprobs(scorer: Scorer, prompt: tuple[int, ...], response: list[int]) -> np.ndarray:
    """log π(·|prompt, response so far) `[T, V]`: one text, one pass, no batch and no cache.

    What the shared vocabulary masks has −1e9, so that 0 · −∞ does not come up.
    """
    logits = np.asarray(scorer.logits(mx.array([[*prompt, *response]]))[0], np.float64)
    rows = np.maximum(logits[len(prompt) - 1 : -1], -1e9)
    return rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)


def plain_rows(pair: Pair, rollout: Rollout) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both models' log-probs of each row."""
    return [
        (
            plain_logprobs(pair.student, job.prompt.tokens, rollout.response(row)),
            plain_logprobs(
                pair.teacher, job.prompt.teacher_tokens or job.prompt.tokens, rollout.response(row)
            ),
        )
        for row, job in enumerate(rollout.jobs)
    ]


def drawn(pair: Pair, way: str, batch_size: int = 64, block: int = 3) -> Rollout:
    sampling = Sampling(max_tokens=10, batch_size=batch_size, support=6, keep_hidden=True)
    if way == "teacher":
        rollout = sample_teacher(pair, jobs_of(), sampling)
        score_pair(pair, rollout, sampling, (3, 200))
        return rollout
    if way == "student":
        rollout = sample(pair.student, jobs_of(), sampling)
        score(pair.teacher, rollout, (3, 200), keep_hidden=True)
        return rollout
    behavior = make_behavior(BehaviorConfig(kind="trb", budget=BUDGET))
    return sample_blended(pair, jobs_of(), sampling, behavior, BUDGET, Fixed(block))


WAYS = ["blended", "student", "teacher"]


@pytest.mark.parametrize("way", WAYS)
def test_records_are_those_of_plain_passes(pair: Pair, way: str) -> None:
    rollout = drawn(pair, way)
    records = rollout.records
    assert records is not None
    for row, (student, teacher) in enumerate(plain_rows(pair, rollout)):
        length, tokens = rollout.lengths[row], rollout.response(row)
        places = np.arange(length)
        support = records.support[row, :length]
        for name, expected in {
            "student_logprob": student[places, tokens],
            "teacher_logprob": teacher[places, tokens],
            "teacher_support": np.take_along_axis(teacher, support, -1),
            "teacher_entropy": -(np.exp(teacher) * teacher).sum(-1),
        }.items():
            actual = getattr(records, name)[row, :length]
            np.testing.assert_allclose(actual, expected, atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(records.teacher_top[row, :length], teacher.argmax(-1))
        inside = np.take_along_axis(student, support, -1)
        assert (inside.min(-1) >= np.sort(student)[:, -6] - 1e-4).all()


def test_the_prompts_matter(pair: Pair) -> None:
    """The same rollouts scored behind the student's prompts give other records."""
    rollout = drawn(pair, "student")
    assert rollout.records is not None
    own = rollout.records.teacher_logprob.copy()
    rollout.jobs = [
        Job(dataclasses.replace(job.prompt, teacher_tokens=None), job.key) for job in rollout.jobs
    ]
    score(pair.teacher, rollout, (3, 200))
    gaps = np.abs(own - rollout.records.teacher_logprob)[rollout.mask]
    has_own = np.array([PROMPTS[job.prompt.index][1] is not None for job in rollout.jobs])
    rows = np.nonzero(rollout.mask)[0]
    assert (gaps[has_own[rows]] > 1e-3).mean() > 0.9
    assert gaps[~has_own[rows]].max() < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_batched_equals_single(pair: Pair, way: str) -> None:
    """Rows alone, a few at once, all at once; token by token, and in blocks."""
    whole = drawn(pair, way)
    for batch_size, block in ((1, 1), (3, 4)):
        other = drawn(pair, way, batch_size, block)
        np.testing.assert_array_equal(other.tokens, whole.tokens)
        assert other.records is not None
        assert whole.records is not None
        for name, values in whole.records.arrays().items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(
                    other.records.arrays()[name], values, atol=2e-4, err_msg=name
                )


@pytest.mark.parametrize("way", WAYS)
def test_kept_hidden_states_are_those_of_a_second_pass(pair: Pair, way: str) -> None:
    rollout = drawn(pair, way)
    assert rollout.records is not None
    kept = rollout.records.teacher_hidden
    assert kept is not None
    for row, job in enumerate(rollout.jobs):
        prompt = job.prompt.teacher_tokens or job.prompt.tokens
        text = mx.array([[*prompt, *rollout.response(row)]])
        hidden = np.asarray(pair.teacher.hidden(text)[0, len(prompt) - 1 : -1])
        np.testing.assert_allclose(kept[row, : rollout.lengths[row]], hidden, atol=2e-4)


def test_distances_are_between_the_models_behind_their_own_prompts(pair: Pair) -> None:
    rollout = drawn(pair, "student")
    rows = plain_rows(pair, rollout)
    expected = np.array([(np.exp(s) * (s - t)).sum() for s, t in rows])
    sums = distance_sums(pair, rollout, 3, 4)
    np.testing.assert_allclose(sums["reverse_kl"], expected, rtol=1e-3)
    mean = expected.sum() / rollout.lengths.sum()
    assert mean_reverse_kl(pair, rollout, 3) == pytest.approx(mean, rel=1e-3)


def test_a_teacher_continues_behind_its_own_prompt(pair: Pair) -> None:
    rollout = drawn(pair, "student")
    sampling = Sampling(max_tokens=8, temperature=0.0)
    continued = continue_rollouts(pair.teacher, rollout, 3, sampling, stream=9)
    for row, job in enumerate(rollout.jobs):
        response = continued.response(row)
        prompt = job.prompt.teacher_tokens or job.prompt.tokens
        likeliest = plain_logprobs(pair.teacher, prompt, response).argmax(-1)
        assert response[3:] == likeliest[3:].tolist()
