"""The reported divergence, by chunks of tokens or from whole logits, against float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trb_mlx.evaluation.evaluator import mean_reverse_kl
from trb_mlx.models.pair import Pair
from trb_mlx.ops import fused_head
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.sampler import Sampling, sample
from trb_mlx.types import Job, Prompt, RolloutKey


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
            p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (student, teacher))
            terms = np.where(np.exp(p) > 0, np.exp(p) * (p - q), 0.0)
        sums += terms.sum(-1).tolist()
    assert len(sums) == rollout.lengths.sum()
    expected = pytest.approx(float(np.mean(sums)), rel=1e-4)
    assert mean_reverse_kl(pair, rollout, 2) == expected
    monkeypatch.setattr(fused_head.chunk_tokens, "__defaults__", (1, 6 * 259 * 4))
    assert mean_reverse_kl(pair, rollout, 2) == expected
    whole = Pair(*(dataclasses.replace(scorer, split=None) for scorer in scorers))
    assert mean_reverse_kl(whole, rollout, 2) == expected
