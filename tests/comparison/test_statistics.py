"""What is said of finished runs: means, paired differences, the curve's area, the verdict."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from trb_mlx.comparison.figure import draw_differences, write_curves, write_figure
from trb_mlx.comparison.outcomes import (
    Outcome,
    Score,
    held_out_curves,
    problem_scores,
    training_metrics,
)
from trb_mlx.comparison.spec import CompareSpec
from trb_mlx.comparison.statistics import compare_methods
from trb_mlx.comparison.table import (
    NARROW,
    SHORT,
    headings,
    notes,
    terminal_table,
    verdict,
    write_tables,
)
from trb_mlx.errors import RunError, UserError
from trb_mlx.evaluation.intervals import Interval, unseen_share

SPEC = CompareSpec.model_validate(
    {"base": "small", "methods": {"vanilla": None, "trb": None}, "seeds": [0], "early_steps": 10}
)
COUNT = 50


def outcome(variant: str, seed: int, score: float, held_out: float = 0.0) -> Outcome:
    """A run with the same hard and easy problems as every other of its seed, and a shift."""
    difficulty = np.random.default_rng(seed).uniform(0, 0.5, COUNT)
    problems = {f"{seed}-{i}": float(d + score) for i, d in enumerate(difficulty)}
    scores = {
        "pass@1": {key: Score(value) for key, value in problems.items()},
        "mean_length": dict.fromkeys(problems, Score(1.0)),
    }
    mean = float(np.mean(list(problems.values())))
    metrics = {"final.pass@1": mean, "cost.seconds": 61.0, "cost.tokens": 1000.0}
    return Outcome(
        variant.split()[0], variant, seed, metrics, held_out, {"final": scores}, {"final": 30}
    )


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def scored(variant: str, seed: int, sums: Sequence[Score], prefix: str = "") -> Outcome:
    """A run with a distance to the teacher by problem, and the mean over all its tokens."""
    problems = {f"{prefix}{i}": each for i, each in enumerate(sums)}
    mean = sum(each.total for each in sums) / sum(each.terms for each in sums)
    scores = {"reverse_kl": problems, "mean_length": dict.fromkeys(problems, Score(1.0))}
    metrics = {"final.reverse_kl": mean, "cost.seconds": 1.0, "cost.tokens": 1.0}
    return Outcome(variant, variant, seed, metrics, 0.0, {"final": scores}, {"final": 30})


def test_pairing_takes_the_problems_difficulty_out() -> None:
    shifts = {0: 0.1, 1: 0.2, 2: 0.15}
    runs = [outcome("vanilla", seed, 0.0) for seed in shifts]
    runs += [outcome("trb", seed, shift) for seed, shift in shifts.items()]
    vanilla, trb = compare_methods(SPEC, runs)
    assert vanilla.difference == {}
    found = trb.difference["final.pass@1"]
    expected = stats.ttest_1samp(list(shifts.values()), 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert trb.over_problems["final.pass@1"].value == pytest.approx(0.15)
    low, high = ends(trb.over_problems["final.pass@1"])
    margin = unseen_share(3 * COUNT)  # no problem speaks for vanilla
    assert 0.13 < low + margin < high < 0.17  # the scores alone spread over 0.5
    assert "trb leads" in verdict(SPEC, [vanilla, trb])
    assert "not decided" not in verdict(SPEC, [vanilla, trb])


def test_a_problem_met_at_several_seeds_is_one_unit() -> None:
    runs = []
    for seed, shift in ((0, 0.1), (1, 0.3)):
        for variant, score in (("vanilla", 0.0), ("trb", shift)):
            run = outcome(variant, 0, score)  # the problems of seed 0
            runs.append(replace(run, seed=seed))
    _, trb = compare_methods(SPEC, runs)
    found = trb.over_problems["final.pass@1"]
    expected = 0.2 - unseen_share(COUNT)
    assert (found.value, found.low) == (pytest.approx(0.2), pytest.approx(expected))


@pytest.mark.parametrize("fresh", [True, False])
def test_both_intervals_are_of_one_difference(fresh: bool) -> None:
    """Short answers lie far from the teacher and long ones near: means of means say otherwise."""
    generator = np.random.default_rng(2)
    runs = []
    for seed in (0, 1, 2):
        prefix = f"{seed}-" if fresh else ""
        for variant, short, long in (("vanilla", 0.1, 0.50), ("trb", 0.3, 0.45)):
            tokens = [2.0, 200.0] * 20
            kl = generator.normal([short, long] * 20, 0.01)
            sums = [Score(t * k, t) for t, k in zip(tokens, kl, strict=True)]
            runs.append(scored(variant, seed, sums, prefix))
    _, trb = compare_methods(SPEC, runs)
    seeds, problems = trb.difference["final.reverse_kl"], trb.over_problems["final.reverse_kl"]
    assert problems.value == pytest.approx(seeds.value)
    for found in (seeds, problems):
        low, high = ends(found)
        assert -0.06 < low < found.value < high < -0.03  # of problems' means it is +0.075


def test_different_problems_cannot_be_paired() -> None:
    runs = [outcome("vanilla", 0, 0.0), replace(outcome("trb", 1, 0.0), seed=0)]
    with pytest.raises(RunError, match="trb and vanilla of seed 0 were evaluated on different"):
        compare_methods(SPEC, runs)


def test_a_sweeps_setting_is_chosen_by_problems_that_are_not_reported() -> None:
    runs = [
        outcome("vanilla", 0, 0.0),
        outcome("trb budget=1", 0, 0.4, held_out=0.2),
        outcome("trb budget=2", 0, 0.1, held_out=0.3),
    ]
    rows = compare_methods(SPEC, runs)
    assert [row.chosen for row in rows] == [True, False, True]
    assert "trb budget=2 leads" in verdict(SPEC, rows)
    assert "(one seed, no interval: not decided)" in verdict(SPEC, rows)
    assert "none over seeds, for there is one (0)" in notes(SPEC, rows)[0]


def test_equals_are_told_as_such() -> None:
    rows = compare_methods(SPEC, [outcome("vanilla", 0, 0.0), outcome("trb", 0, 0.0)])
    assert "vanilla and trb are level" in verdict(SPEC, rows)


def test_whoever_leads_it_is_said_what_is_not_decided() -> None:
    shifts = {0: 0.1, 1: -0.3, 2: 0.0}
    runs = [outcome("vanilla", seed, 0.0) for seed in shifts]
    runs += [outcome("trb", seed, shift) for seed, shift in shifts.items()]
    sentence = verdict(SPEC, compare_methods(SPEC, runs))
    assert "vanilla leads with" in sentence
    assert "trb follows, -6.7 ±" in sentence
    assert sentence.endswith("(the interval holds 0: not decided)")
    runs = [outcome("vanilla", 0, 0.2), outcome("trb", 0, 0.0)]
    assert "(one seed, no interval: not decided)" in verdict(SPEC, compare_methods(SPEC, runs))


def test_equal_gaps_of_two_seeds_decide_nothing() -> None:
    runs = [outcome(v, seed, s) for seed in (0, 1) for v, s in (("vanilla", 0.0), ("trb", 0.1))]
    rows = compare_methods(SPEC, runs)
    assert rows[1].difference["final.pass@1"].low is None
    assert "trb leads" in verdict(SPEC, rows)
    assert "(seeds alike, no interval: not decided)" in verdict(SPEC, rows)


def test_the_area_is_the_mean_height_up_to_the_step() -> None:
    lines = [
        {"step": 0, "eval/pass@1": 0.0, "time/eval_s": 1.0},
        {"step": 1, "completions/mean_length": 10.0, "time/rollout_s": 2.0, "time/update_s": 3.0},
        {"step": 5, "eval/pass@1": 0.4},
        {"step": 10, "eval/pass@1": 0.6},
        {"step": 15, "eval/pass@1": 0.9},
    ]
    found, held_out = training_metrics(lines, rollouts_per_step=8, early_steps=10)
    assert found == {"early.area": pytest.approx(0.35), "cost.seconds": 6.0, "cost.tokens": 80.0}
    assert held_out == 0.9


def test_without_answers_the_curve_is_reverse_kl_and_less_is_better() -> None:
    lines = [{"step": 0, "eval/reverse_kl": 4.0}, {"step": 10, "eval/reverse_kl": 2.0}]
    found, held_out = training_metrics(lines, 8, 10)
    assert (found["early.reverse_kl"], held_out) == (3.0, -2.0)
    spec = SPEC.model_copy(update={"decides": "cost.seconds"})
    slow = outcome("trb", 0, 0.0)
    slow = replace(slow, metrics={**slow.metrics, "cost.seconds": 90.0})
    assert "vanilla leads" in verdict(
        spec, compare_methods(spec, [outcome("vanilla", 0, 0.0), slow])
    )


def test_lines_become_scores_by_problem() -> None:
    sums = {"tokens": 4.0, "reverse_kl": 2.0, "forward_kl": 1.0, "topk_overlap": 3.0}
    line = {"key": "a", "rewards": [1, 0], "lengths": [2, 4], "stopped": [1, 1]}
    found = problem_scores([line | {"distribution": sums}])
    assert found["pass@1"] == {"a": Score(0.5)}
    assert found["reverse_kl"] == {"a": Score(2.0, 4.0)}
    assert found["truncated_fraction"] == {"a": Score(0.0)}
    assert problem_scores([line, line])["pass@1"] == {"a": Score(1.0, 2.0)}  # asked twice
    assert "pass@1" not in problem_scores([line | {"rewards": None}])


def test_tables_say_the_same_in_three_forms(tmp_path: Path) -> None:
    runs = [outcome(variant, seed, 0.1) for seed in (0, 1) for variant in ("vanilla", "trb")]
    rows = compare_methods(SPEC, runs)
    write_tables(tmp_path, SPEC, rows, missing=2)
    markdown = (tmp_path / "table.md").read_text()
    assert "2 runs are not finished." in markdown
    assert "| trb |" in markdown
    assert "| +0.0 pp | +0.0 pp [-3.6, +3.6] |" in markdown
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["spec"]["decides"] == "final.pass@1"
    mean = found["rows"][0]["over_seeds"]["final.pass@1"]["value"]
    with (tmp_path / "table.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["method"] == "vanilla"]
    values = [float(line["value"]) for line in lines if line["metric"] == "final.pass@1"]
    assert np.mean(values) == pytest.approx(mean)


def test_a_narrow_terminal_gets_whole_cells_of_fewer_columns() -> None:
    runs = [outcome(variant, seed, 0.1) for seed in (0, 1) for variant in ("vanilla", "trb a=1")]
    rows = compare_methods(SPEC, runs)
    for width, columns in ((200, SHORT), (80, NARROW)):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(terminal_table(SPEC, rows, console))
        heading, *lines = console.export_text().splitlines()
        assert [column in heading for column in SHORT] == [column in columns for column in SHORT]
        assert len(lines) == len(rows)  # none is wrapped
    assert lines[1].startswith("trb a=1 *")  # of a sweep of one, its chosen setting


def test_the_figure_draws_each_difference_with_its_intervals(tmp_path: Path) -> None:
    runs = [outcome("vanilla", seed, 0.0) for seed in (0, 1)]
    runs += [outcome("trb", seed, shift) for seed, shift in ((0, 0.1), (1, 0.2))]
    rows = compare_methods(SPEC, runs)
    (panel,) = draw_differences(SPEC, rows[1:], ["final.pass@1"]).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["trb"]
    seeds, problems, zero = panel.lines
    assert (seeds.get_xdata(), problems.get_xdata()) == (pytest.approx([15]), pytest.approx([15]))
    assert zero.get_xdata() == [0, 0]
    whole = rows[1].difference["final.pass@1"]
    ends = panel.collections[0].get_segments()[0][:, 0]
    assert ends == pytest.approx([100 * (whole.low or 0), 100 * (whole.high or 0)])
    assert write_figure(tmp_path / "table.png", SPEC, rows)
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    assert not write_figure(tmp_path / "none.png", SPEC, rows[:1])
    assert not (tmp_path / "none.png").exists()


def test_methods_are_compared_at_the_cost_that_all_runs_reached() -> None:
    spec = SPEC.model_copy(update={"axis": "tokens", "decides": "equal.reverse_kl"})
    points = {("vanilla", 0): 100.0, ("vanilla", 1): 120.0, ("trb", 0): 200.0, ("trb", 1): 80.0}
    outcomes = [
        replace(
            outcome(variant, seed, 0.5),
            curves={"reverse_kl": [(0.0, 2.0), (cost, 1.0 if variant == "trb" else 1.5)]},
        )
        for (variant, seed), cost in points.items()
    ]
    rows = {row.variant: row for row in compare_methods(spec, outcomes)}
    assert rows["trb"].equal_cost == 80.0
    assert rows["trb"].values["equal.reverse_kl"] == pytest.approx([2 - 80 / 200, 1.0])
    assert rows["vanilla"].values["equal.reverse_kl"] == pytest.approx([2 - 40 / 100, 2 - 40 / 120])
    gap = rows["trb"].difference["equal.reverse_kl"].value
    assert gap == pytest.approx(np.mean([1.6 - 1.6, 1.0 - (2 - 40 / 120)]))
    assert "trb leads" in verdict(spec, [*rows.values()])
    assert any("at 80 response tokens" in note for note in notes(spec, [*rows.values()]))
    assert "reverse KL at equal tokens" in headings(spec)


def test_curves_over_cost_want_costs() -> None:
    lines = [{"step": 0, "eval/reverse_kl": 2.0}, {"step": 3, "eval/reverse_kl": 1.0}]
    folder = Path("runs/old")
    assert held_out_curves(lines, "steps", folder) == {"reverse_kl": [(0.0, 2.0), (3.0, 1.0)]}
    with pytest.raises(UserError, match=r"runs/old: its metrics have no cost/loss_tokens"):
        held_out_curves(lines, "tokens", folder)
    lines[1]["cost/loss_tokens"] = 70.0
    assert held_out_curves(lines, "tokens", folder)["reverse_kl"][1] == (70.0, 1.0)


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"axis": "cpu_seconds"})
    made = replace(outcome("trb", 0, 0.5), curves={"reverse_kl": [(0.0, 2.0), (9.0, 1.0)]})
    assert write_curves(tmp_path / "curves.png", spec, [made])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not write_curves(tmp_path / "none.png", spec, [outcome("trb", 0, 0.5)])
