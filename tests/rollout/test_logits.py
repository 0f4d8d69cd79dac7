"""Logits by chunks: every response token once, beside what the whole text gives."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.models.pair import Pair
from trb_mlx.rollout import logits
from trb_mlx.rollout.logits import logit_chunks
from trb_mlx.rollout.sampler import sample
from trb_mlx.types import Job, Prompt, RolloutKey, Sampling


@pytest.mark.parametrize("size", [5, 1000])
def test_chunks_hold_every_token_and_both_models_logits(
    pair: Pair, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "chunk_tokens", lambda *_: size)
    prompts = [Prompt(i, "", tuple(range(40, 43 + 4 * i))) for i in range(4)]
    jobs = [Job(prompt, RolloutKey(0, 0, prompt.index, 0)) for prompt in prompts]
    rollout = sample(pair.student, jobs, Sampling(9))
    seen = np.zeros_like(rollout.tokens)
    for chunk in logit_chunks([pair.student, pair.teacher], rollout, 3):
        assert len(chunk.rows) <= size
        seen[chunk.rows, chunk.positions] += 1
        taken = np.asarray(chunk.take(rollout.tokens))
        for number, (row, position) in enumerate(zip(chunk.rows, chunk.positions, strict=True)):
            assert taken[number] == rollout.tokens[row, position]
            text = [*jobs[row].prompt.tokens, *rollout.response(row)[:position]]
            for scorer, values in zip((pair.student, pair.teacher), chunk.logits, strict=True):
                whole = np.asarray(scorer.logits(mx.array([text])))[0, -1]
                np.testing.assert_allclose(np.asarray(values)[number], whole, atol=1e-3)
    np.testing.assert_array_equal(seen, rollout.mask)
