"""Rollouts of the teacher carry the same records as blended ones that came out as the teacher."""

from __future__ import annotations

import numpy as np

from trb_mlx.models.pair import Pair
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.scoring import sample_teacher
from trb_mlx.types import Job, Prompt, RolloutKey, Sampling

TEXTS = ["a", "Compute 12+7.", "the quick brown fox jumps over it", "hm?"]


def test_records_of_the_teachers_own_rollouts(pair: Pair) -> None:
    """Scored in other batches, and by each model alone, the records are the same."""
    jobs = [
        Job(Prompt(i, text, tuple(text.encode())), RolloutKey(0, 0, i, n))
        for i, text in enumerate(TEXTS)
        for n in range(3)
    ]
    sampling = Sampling(max_tokens=12, temperature=0.7, support=8)
    rollout = sample_teacher(pair, jobs, sampling, (5, 4096))
    records, used = rollout.records, rollout.mask
    assert records is not None
    # The teacher as the only model of a recorded rollout: its entropies and log-probs.
    alone = sample(pair.teacher, jobs, sampling)
    np.testing.assert_array_equal(alone.tokens, rollout.tokens)
    assert alone.records is not None
    for name in ("entropy", "logprob"):
        np.testing.assert_allclose(
            getattr(records, f"teacher_{name}")[used],
            getattr(alone.records, f"student_{name}")[used],
            atol=1e-4,
        )
    assert (records.weight[used] == 1.0).all()
    assert (records.kl_behavior[used] > 0).all()
    assert (records.student_entropy[used] != records.teacher_entropy[used]).all()
    # Pinsker, for what the two statistics of one pair of distributions must satisfy.
    assert (records.total_variation[used] <= np.sqrt(records.kl_behavior[used] / 2) + 1e-6).all()
    stops = rollout.tokens[np.arange(len(jobs)), rollout.lengths - 1][rollout.stopped]
    assert (stops == pair.stop_id).all()
