"""The law of whole sequences, known in full: what is emitted is the behavior policy's.

At least 200,000 tokens for each behavior policy and way of drawing, chi-square against every
sequence's exact probability, fixed seed. The bound is five standard deviations of the statistic.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from sequence_law import DEVIATIONS, HYBRIDS, TOP_K, draw, fits, make_jobs, tiny_pair

from trb_mlx.config import BehaviorConfig
from trb_mlx.rollout import speculative
from trb_mlx.rollout.behavior import BEHAVIORS, make_behavior
from trb_mlx.rollout.decoder import RowDecoder
from trb_mlx.rollout.recurrent_cache import RecurrentCache


@pytest.mark.parametrize(("kind", "block"), [*((kind, 3) for kind in BEHAVIORS), ("trb", 1)])
def test_sequences_have_exactly_the_law_of_the_behavior(kind: str, block: int) -> None:
    """Ragged prompts, stops inside blocks, rows that reject at different places, rows that leave
    and others that come; the same sequences under the student's law must not fit."""
    pair, jobs = tiny_pair(), make_jobs(24_000)
    rollout = draw(pair, kind, block, jobs)
    assert rollout.lengths.sum() >= 200_000
    some = draw(pair, kind, 4 - block, jobs[:3_000])  # token by token, and blocks: the very same
    np.testing.assert_array_equal(some.tokens, rollout.tokens[:3_000])
    for fit in fits(pair, kind, rollout):
        assert fit.cells > 80
        assert fit.deviations < DEVIATIONS
    if make_behavior(BehaviorConfig(kind=kind, top_k=TOP_K)).needs_teacher(0):
        assert all(fit.statistic > 5 * fit.cells for fit in fits(pair, "vanilla", rollout))


def test_sequences_have_the_law_of_both_models_behind_their_own_prompts() -> None:
    pair = tiny_pair()
    rollout = draw(pair, "trb", 3, make_jobs(8_000, owns=True))
    assert all(fit.deviations < DEVIATIONS for fit in fits(pair, "trb", rollout, owns=True))
    assert all(fit.statistic > 2 * fit.cells for fit in fits(pair, "trb", rollout))


@pytest.mark.parametrize("family", HYBRIDS)
def test_recurrent_models_have_the_law_in_blocks(family: str) -> None:
    """As student and as teacher; `scripts/sequence_law.py` does the same with 200,000 tokens."""
    pair, jobs = tiny_pair(family, family), make_jobs(1_000)
    rollout = draw(pair, "trb", 3, jobs)
    assert rollout.drafted > 1.5 * rollout.lengths.sum()  # blocks were drafted, and rejected
    assert all(fit.deviations < DEVIATIONS for fit in fits(pair, "trb", rollout))
    assert all(fit.statistic > 5 * fit.cells for fit in fits(pair, "vanilla", rollout))
    for block, batch in ((1, 700), (2, 50), (4, 3_000)):
        some = draw(pair, "trb", block, jobs[:600], batch)
        np.testing.assert_array_equal(some.tokens, rollout.tokens[:600])


def test_the_law_sees_states_that_are_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trim = RecurrentCache.trim
    monkeypatch.setattr(RecurrentCache, "trim", lambda self, counts: trim(self, None))
    monkeypatch.setattr(speculative, "make_decoder", RowDecoder)  # untried
    pair = tiny_pair("mamba2", "mamba2")
    rollout = draw(pair, "trb", 3, make_jobs(1_000))
    assert any(fit.deviations > DEVIATIONS for fit in fits(pair, "trb", rollout))
