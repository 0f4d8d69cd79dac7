"""The script that checks the paper's claims against a comparison's runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from paper_claims import CLAIMS, Run, paired, verdict

from trb_mlx.evaluation.intervals import Interval

BLENDED = frozenset({1, 2})


def run(score: float, entropies: list[float]) -> Run:
    steps = [{"step": i + 1, "entropy/teacher": value} for i, value in enumerate(entropies)]
    return Run({"final.pass@1": score, "early.area": 0.3}, steps, BLENDED)


def test_seeds_are_paired_and_entropies_split_where_the_blending_ends() -> None:
    runs = {
        ("trb", 0): run(0.9, [0.1, 0.3, 0.5]),
        ("vanilla", 0): run(0.8, [0.2, 0.6, 0.4]),
        ("trb", 1): run(0.1, [0.1, 0.3, 0.5]),  # without a partner
    }
    final, _, _, early, late = (paired(claim, runs) for claim in CLAIMS)
    assert (final[0].tolist(), final[1].tolist()) == ([90.0], [80.0])
    assert (early[0].item(), early[1].item()) == (pytest.approx(0.2), pytest.approx(0.4))
    assert (late[0].item(), late[1].item()) == (0.5, 0.4)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [(0.1, 0.2, "holds", "fails"), (-0.2, -0.1, "fails", "holds"), (-0.1, 0.1, "open", "open")],
)
def test_a_claim_holds_only_where_the_whole_interval_does(
    low: float, high: float, above: str, below: str
) -> None:
    found = Interval((low + high) / 2, low, high)
    assert (verdict(CLAIMS[0], found), verdict(CLAIMS[3], found)) == (above, below)
