"""Rollouts of the teacher carry the same records as blended ones that came out as the teacher."""

from __future__ import annotations

import numpy as np
import pytest

from trb_mlx.models.pair import Pair
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.scoring import sample_teacher, score_pair
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

TEXTS = ["a", "Compute 12+7.", "the quick brown fox jumps over it", "hm?"]


JOBS = [
    Job(Prompt(i, text, tuple(text.encode())), RolloutKey(0, 0, i, n))
    for i, text in enumerate(TEXTS)
    for n in range(3)
]
SAMPLING = Sampling(max_tokens=12, temperature=0.7, support=8)


@pytest.fixture
def rollout(pair: Pair) -> Rollout:
    """The teacher's own rollouts, scored by both models."""
    rollout = sample_teacher(pair, JOBS, SAMPLING)
    score_pair(pair, rollout, SAMPLING, (5, 4096))
    return rollout


def test_the_teachers_records_are_those_of_the_teacher_alone(pair: Pair, rollout: Rollout) -> None:
    """The same draws, entropies and log-probs, scored in other batches."""
    records, used = rollout.records, rollout.mask
    alone = sample(pair.teacher, JOBS, SAMPLING)
    np.testing.assert_array_equal(alone.tokens, rollout.tokens)
    assert records is not None
    assert alone.records is not None
    for name in ("entropy", "logprob"):
        np.testing.assert_allclose(
            getattr(records, f"teacher_{name}")[used],
            getattr(alone.records, f"student_{name}")[used],
            atol=1e-4,
        )


def test_the_behavior_is_the_teacher_at_some_distance_to_the_student(rollout: Rollout) -> None:
    records, used = rollout.records, rollout.mask
    assert records is not None
    assert (records.weight[used] == 1.0).all()
    assert (records.kl_behavior[used] > 0).all()
    assert (records.student_entropy[used] != records.teacher_entropy[used]).all()
    # Pinsker, for what the two statistics of one pair of distributions must satisfy.
    assert (records.total_variation[used] <= np.sqrt(records.kl_behavior[used] / 2) + 1e-6).all()


def test_the_teachers_rollouts_end_with_the_shared_stop(pair: Pair, rollout: Rollout) -> None:
    stops = rollout.tokens[np.arange(len(JOBS)), rollout.lengths - 1][rollout.stopped]
    assert (stops == pair.stop_id).all()
