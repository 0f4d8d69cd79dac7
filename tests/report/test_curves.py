"""Runs read, grouped and turned into curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.synthetic import lines, make_run

from trb_mlx.errors import UserError
from trb_mlx.report.curves import curve, differing, group_runs, read_runs
from trb_mlx.report.theme import SLOTS, assign_slots, color_of, stroke_of


def test_seeds_become_one_method_with_a_band(tmp_path: Path) -> None:
    for seed, shift in ((0, 0.0), (1, 0.1)):
        make_run(tmp_path / f"trb-seed{seed}", lines(shift=shift), train__seed=seed)
    make_run(tmp_path / "plain", behavior__kind="vanilla")
    paths = [str(tmp_path / name) for name in ("trb-seed0", "trb-seed1", "plain")]
    methods = group_runs(read_runs(paths))
    assert [(m.label, len(m.runs)) for m in methods] == [("trb (2 seeds)", 2), ("plain", 1)]
    found = curve(methods[0], "eval/pass@1")
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    np.testing.assert_allclose(found.places, [0, 3, 6])
    np.testing.assert_allclose(found.values, [0.05, 0.35, 0.65])
    np.testing.assert_allclose(found.high - found.low, 0.1)
    assert differing(methods) == ["behavior.kind"]


def test_seeds_of_other_lengths_are_averaged_where_they_are(tmp_path: Path) -> None:
    make_run(tmp_path / "a", lines(6))
    make_run(tmp_path / "b", lines(4, shift=0.1), train__seed=1)
    (method,) = group_runs(read_runs([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert method.label == "trb (2 seeds)"  # their names share nothing
    found = curve(method, "reward/mean")
    assert found is not None
    np.testing.assert_allclose(found.values, [0.25, 0.45, 0.65, 0.85, 1.0, 1.0])


def test_one_run_has_an_interval_for_pass_at_1_where_it_is_known(tmp_path: Path) -> None:
    make_run(tmp_path / "once", eval__prompts=100)
    make_run(tmp_path / "often", eval__samples=4)
    for name, known in (("once", True), ("often", False)):
        (method,) = group_runs(read_runs([str(tmp_path / name)]))
        found, other = curve(method, "eval/pass@1"), curve(method, "eval/reverse_kl")
        assert found is not None
        assert other is not None
        assert (found.low is not None) == known
        assert other.low is None


def test_missing_values_leave_gaps(tmp_path: Path) -> None:
    metrics = lines()
    metrics[2]["reward/mean"] = None  # what a number that is not finite is written as
    make_run(tmp_path / "run", metrics)
    (method,) = group_runs(read_runs([str(tmp_path / "run")]))
    found = curve(method, "reward/mean")
    assert found is not None
    assert found.places.tolist() == [1, 3, 4, 5, 6]
    assert curve(method, "no/such") is None


@pytest.mark.parametrize(
    ("kind", "budget", "expected"),
    [("trb", 0.3, 3), ("fixed", 0.3, None), ("vanilla", 0.0, None)],
)
def test_the_warm_up_ends_with_the_budget(
    kind: str, budget: float, expected: int | None, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", lines(budget=budget), behavior__kind=kind)
    (run,) = read_runs([str(tmp_path / "run")])
    assert run.warmup() == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"behavior__kind": "temperature", "behavior__warmup_steps": 4}, 4),
        ({"behavior__kind": "temperature", "behavior__warmup_steps": 50}, 6),
        ({"target__kind": "veto", "target__warmup_steps": 2, "loss__mode": "exact"}, 2),
        ({"target__sft_steps": 5}, 5),
    ],
)
def test_other_methods_warm_up_too(
    changes: dict[str, object], expected: int, tmp_path: Path
) -> None:
    kind = {"behavior__kind": "vanilla"} | changes
    make_run(tmp_path / "run", lines(budget=0.0), **kind)
    (run,) = read_runs([str(tmp_path / "run")])
    assert run.warmup() == expected


def test_runs_of_one_name_get_paths(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / part / "small")) for part in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/small", "b/small"]


def test_labels_are_unique(tmp_path: Path) -> None:
    paths = [
        str(make_run(tmp_path / name, train__seed=seed, train__learning_rate=rate))
        for name, seed, rate in (
            ("run-1", 1, 0.1),
            ("run-2", 2, 0.1),
            ("run-3", 3, 0.2),
            ("run-4", 4, 0.2),
        )
    ]
    labels = [method.label for method in group_runs(read_runs(paths))]
    assert labels == ["run-1 … (2 seeds)", "run-3 … (2 seeds)"]


def test_methods_of_a_comparison_go_by_their_names_and_colours(tmp_path: Path) -> None:
    marks: dict[str, dict[str, Any]] = {
        "vanilla": {},
        "sft": {"target__sft_steps": 2},
        "veto": {"target__kind": "veto"},
    }
    paths = [
        str(
            make_run(
                tmp_path / f"{name}-s{seed}-0123abc{seed}",
                behavior__kind="vanilla",
                train__seed=seed,
                **mark,
            )
        )
        for name, mark in marks.items()
        for seed in (0, 1)
    ]
    methods = group_runs(read_runs(paths))
    assert [method.label for method in methods] == [f"{name} (2 seeds)" for name in marks]
    assert [method.slot for method in methods] == [SLOTS[name] for name in marks]


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "small")
    make_run(tmp_path / "empty", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "cut").mkdir()
    for paths, expected in (
        (["smal"], "smal does not exist; did you mean"),
        (["other"], "other is not a run folder"),
        (["empty"], "empty has no metrics yet"),
        (["small", "small/../small"], "is named twice"),
    ):
        with pytest.raises(UserError, match=expected):
            read_runs([str(tmp_path / path) for path in paths])


def test_a_run_folder_without_a_metrics_file_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no metrics yet; expected lines in metrics.jsonl"):
        read_runs([str(run)])


def test_colours_stay_with_their_methods() -> None:
    assert assign_slots(["vanilla", "trb"]) == [1, 0]
    assert assign_slots(["trb", "trb", "vanilla"]) == [0, 2, 1]
    many = assign_slots(["trb"] * 14)
    assert len(set(many)) == 14
    assert len({(color_of(slot), stroke_of(slot)) for slot in many}) == 14
