"""Diagnostics measured with real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trb_mlx.backend import prepare_backend
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.rewards import Verifier
from trb_mlx.errors import UserError
from trb_mlx.evaluation.diagnosis import diagnose, excerpt, excerpt_pairs
from trb_mlx.evaluation.diagnostics import default_sizes, read_diagnostics, write_diagnostics
from trb_mlx.evaluation.evaluator import answer_rewards
from trb_mlx.models.pair import Pair
from trb_mlx.report.measures import auroc, paired_gain
from trb_mlx.rollout.continuation import continue_rollouts
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.scoring import score
from trb_mlx.rollout.text import response_texts
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling


def small(**changes: object) -> Config:
    values = [(key.replace("__", "."), value) for key, value in changes.items()]
    return load_config("small", values)


def drawn(pair: Pair, temperature: float = 1.0) -> tuple[Rollout, Sampling]:
    """Six rollouts of at most ten tokens, with records."""
    sampling = Sampling(10, 4, temperature, support=1 if temperature else 0)
    jobs = [Job(Prompt(i, "p", (i + 1, i + 2)), RolloutKey(0, 7, i, 0)) for i in range(6)]
    return sample(pair.student, jobs, sampling), sampling


def test_a_prefix_continued_by_its_own_model_greedily_is_the_rollout(pair: Pair) -> None:
    rollout, sampling = drawn(pair, temperature=0.0)
    for cut in (1, 4, 9):
        again = continue_rollouts(pair.student, rollout, cut, sampling, stream=8)
        assert [again.response(row) for row in range(6)] == [
            rollout.response(row) for row in range(6)
        ]
        assert again.stopped.tolist() == rollout.stopped.tolist()


def test_what_stopped_within_the_cut_stays(pair: Pair) -> None:
    rollout, sampling = drawn(pair)
    rollout.lengths[2], rollout.stopped[2] = 3, True
    other = continue_rollouts(pair.teacher, rollout, 5, sampling, stream=8)
    assert other.response(2) == rollout.response(2)
    assert other.jobs == rollout.jobs
    for row in range(6):
        kept = min(5, int(rollout.lengths[row]))
        assert other.response(row)[:kept] == rollout.response(row)[:kept]
    assert (other.lengths <= 10).all()
    assert [other.response(row) for row in range(6)] != [rollout.response(row) for row in range(6)]


def test_an_excerpt_shows_every_token_with_its_ratio(pair: Pair) -> None:
    rollout, _ = drawn(pair)
    score(pair.teacher, rollout, (2, 1000))
    assert rollout.records is not None
    shown = excerpt(pair.student, rollout, 1, None)
    ids = rollout.response(1)
    ratio = (rollout.records.teacher_logprob - rollout.records.student_logprob)[1, : len(ids)]
    np.testing.assert_allclose(shown.scores, ratio, atol=1e-3)
    assert shown.score == pytest.approx(float(ratio.mean()), abs=1e-3)
    assert len(shown.pieces) == shown.length == len(ids)


class Recording(Verifier):
    """Keeps what it is asked to score."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[tuple[str, str, str | None]] = []

    def score(self, response: str, answer: str, grader: str | None = None) -> float:
        self.items.append((response, answer, grader))
        return 1.0


def test_excerpts_are_scored_as_the_rollouts_of_budgets_are(pair: Pair) -> None:
    prompts = [Prompt(i, "p<think>\n", (i + 1, i + 2), f"{i}", f"grader {i}") for i in range(3)]
    jobs = [Job(prompt, RolloutKey(0, 7, prompt.index, 0)) for prompt in prompts]
    rollout = sample(pair.student, jobs, Sampling(10, 4, 1.0, support=1))
    score(pair.teacher, rollout, (2, 1000))
    of_budgets, of_excerpts = Recording(), Recording()
    assert answer_rewards(pair.student, rollout, of_budgets) == [1.0, 1.0, 1.0]
    shown = excerpt_pairs(pair.student, rollout, rollout, of_excerpts)
    assert [(each.vanilla.reward, each.blended.reward) for each in shown] == [(1.0, 1.0)] * 3
    text = response_texts(pair.student, rollout)[0]
    assert of_budgets.items[0] == (f"<think>{text}", "0", "grader 0")
    assert of_excerpts.items[::2] == of_excerpts.items[1::2] == of_budgets.items


def test_the_bundled_pair_shows_what_the_paper_shows(tmp_path: Path) -> None:
    """Teacher-guided prefixes are worth more, and the sequence score tells right from wrong."""
    prepare_backend()
    config = small()
    lines: list[str] = []
    diagnostics = diagnose(config, default_sizes(config, 24, [16]), lines.append)
    assert lines[-1] == "continuations from 16 tokens"
    assert [point.budget for point in diagnostics.budgets] == [0.0, 0.075, 0.3, 1.2]
    means = [np.mean(point.teacher_logprob) for point in diagnostics.budgets]
    assert means == sorted(means)
    for point in diagnostics.continuations:
        assert paired_gain(point.blended, point.vanilla).value > 0
    student = diagnostics.budgets[1]
    scores = np.array(student.teacher_logprob) - np.array(student.student_logprob)
    area = auroc(scores.tolist(), student.rewards)
    assert area is not None
    assert area.value > 0.9
    assert len(diagnostics.excerpts) == 3
    write_diagnostics(tmp_path / "d.json", diagnostics)
    assert read_diagnostics(tmp_path / "d.json") == diagnostics


def test_sizes_have_defaults_and_bounds() -> None:
    config = small()
    assert default_sizes(config).model_dump() == {
        "prompts": 128,
        "cuts": [8, 16, 24, 32],
        "budgets": [0.0, 0.075, 0.3, 1.2],
    }
    chosen = default_sizes(config, 4, [20, 10, 10], [1.0])
    assert (chosen.prompts, chosen.cuts, chosen.budgets) == (4, [10, 20], [0.0, 0.3, 1.0])
    assert default_sizes(small(behavior__budget=0.0)).budgets == [0.0]
    assert default_sizes(small(rollout__max_tokens=3)).cuts == [1, 2]
    for cut in (0, 48):
        with pytest.raises(UserError, match=f"--cuts {cut}: expected 1 to 47"):
            default_sizes(config, cuts=[cut])
