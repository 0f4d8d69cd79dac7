"""A comparison's file: the runs it asks for, what they share, and mistakes in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trb_mlx.comparison.spec import SHARED, PlannedRun, load_spec, plan_runs
from trb_mlx.config_file import flatten
from trb_mlx.errors import UserError

SPEC: dict[str, Any] = {
    "base": "small",
    "methods": {
        "vanilla": None,
        "trb": {"sweep": {"behavior.budget": [0.1, 0.3], "behavior.warmup_steps": [5, 15]}},
    },
    "seeds": [3, 5],
    "early_steps": 10,
}
SHIPPED = sorted((Path(__file__).parents[2] / "configs/compare").glob("*.yaml"))


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Plan the runs of `SPEC` with changes."""

    def planned(**changes: Any) -> list[PlannedRun]:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(SPEC | changes, sort_keys=False))
        spec, folder = load_spec(str(path))
        assert folder == Path("compare/mine")
        return plan_runs(spec, folder, "mine.yaml")

    return planned


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_comparison_plans_its_runs(path: Path) -> None:
    spec, folder = load_spec(path.stem)
    runs = plan_runs(spec, folder, path.stem)
    assert {run.seed for run in runs} == set(spec.seeds)
    assert {run.method for run in runs} == set(spec.methods)
    assert all(run.config.behavior.budget != 0.02 for run in runs if run.method == "trb")


def test_a_mapping_is_a_specification_too() -> None:
    spec, folder = load_spec(SPEC)
    assert folder == Path("compare/comparison")
    assert plan_runs(spec, folder, "")[0].config.run.dir == "compare/comparison/runs"
    assert load_spec({**SPEC, "name": "named"})[1] == Path("compare/named")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a"])
def test_a_name_that_is_no_folders_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=f"^the comparison: name is {name!r}, expected the name"):
        load_spec({**SPEC, "name": name})


def test_the_main_comparison_is_the_papers() -> None:
    spec, _ = load_spec("main")
    assert set(spec.methods) == {
        "vanilla",
        "trb",
        "fixed",
        "skd",
        "veto",
        "temperature",
        "sft",
    }
    assert (len(spec.seeds), spec.problems) == (5, 1000)


def test_a_sweep_is_every_combination_at_every_seed(plan: Any) -> None:
    runs = plan()
    assert len(runs) == 2 * (1 + 4)
    assert [run.seed for run in runs] == [3] * 5 + [5] * 5
    assert [run.variant for run in runs[:3]] == [
        "vanilla",
        "trb budget=0.1 warmup_steps=5",
        "trb budget=0.1 warmup_steps=15",
    ]
    assert runs[1].config.behavior.budget == 0.1
    assert runs[0].config.behavior.kind == "vanilla"


def test_runs_are_named_by_what_they_do(plan: Any) -> None:
    names = [run.name for run in plan()]
    assert names[1].startswith("trb-budget0.1-warmup_steps5-s3-")
    assert len(set(names)) == len(names)
    assert names == [run.name for run in plan(problems=7)]
    longer = plan(set={"train.steps": 40})
    assert not {run.name for run in longer} & set(names)


def test_methods_of_one_seed_differ_in_the_method_alone(plan: Any) -> None:
    flat = [flatten(run.config) for run in plan() if run.seed == 3]
    for key in flat[0]:
        if key.startswith(SHARED) and key != "run.name":
            assert all(other.get(key) == flat[0][key] for other in flat), key


def test_a_method_may_be_a_file_or_inline(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("behavior: {kind: fixed, budget: 0.7}\ntrain: {steps: 1}\n")
    methods = {
        "vanilla": {"set": {"behavior.kind": "vanilla"}},
        "mine": {"file": str(tmp_path / "own.yaml"), "set": {"train.learning_rate": 0.1}},
    }
    vanilla, mine = plan(methods=methods, seeds=[0])
    assert vanilla.config.behavior.kind == "vanilla"
    assert (mine.config.behavior.budget, mine.config.train.learning_rate) == (0.7, 0.1)
    assert mine.config.train.steps == 30  # a method's file gives the method alone


def test_the_valid_file_of_a_training_folder_holds_the_problems(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "t"}\n')
    changes = {"set": {"data.train.source": str(tmp_path)}}
    with pytest.raises(UserError, match=r"or a valid.jsonl beside its train.jsonl"):
        plan(**changes)
    (tmp_path / "valid.jsonl").write_text('{"prompt": "v"}\n')
    for run in plan(**changes):
        held_out = run.config.data.eval
        assert held_out is not None
        assert (held_out.source, held_out.split) == (str(tmp_path), "valid")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"methods": {"vanilla": None, "trbb": None}}, "methods.trbb: config methods/trbb does"),
        (
            {"methods": {"vanilla": None, "trb": {"sweep": {"behavior.budget": []}}}},
            "methods.trb.sweep.behavior.budget is [], expected at least one value",
        ),
        (
            {"methods": {"vanilla": None, "trb": {"sweep": {"behavior.budgte": [1.0]}}}},
            "did you mean behavior.budget?",
        ),
        (
            {"methods": {"vanilla": None, "trb": {"set": {"behavior.budget": "much"}}}},
            "methods.trb: small: behavior.budget is 'much', expected a number",
        ),
        ({"methods": {"vanilla": None, "trb": {"swep": {}}}}, "methods.trb.swep is not a known"),
        ({"methods": {}}, "methods is {}, expected at least one value"),
        (
            {"methods": {"vanilla": None, "trb": {"set": {"eval.prompts": 9}}}},
            "methods.trb changes eval.prompts, which all methods share",
        ),
        (
            {"methods": {"vanilla": None, "trb": {"sweep": {"behavior.budget": [0.1, 0.1]}}}},
            "trb budget=0.1 is asked for twice",
        ),
        ({"seeds": [1, 2, 1]}, "seeds holds 1 twice"),
        ({"seeds": []}, "seeds is [], expected at least one value"),
        ({"decides": "final.pass"}, "did you mean final.pass@1?"),
        ({"reference": "vanila"}, "did you mean vanilla?"),
        ({"reference": "trb"}, "reference trb is not a method without a sweep"),
        ({"early_steps": 7}, "early_steps is 7, expected a multiple of eval.every (10)"),
        ({"early_steps": 40}, "up to train.steps (30)"),
        ({"base": "smal"}, "did you mean small?"),
        ({"sedes": [1]}, "did you mean seeds?"),
        ({"set": {"data.train.source": "mine.jsonl"}}, "expected data.eval"),
    ],
)
def test_a_mistake_is_one_sentence(plan: Any, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(**changes)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
