"""Named benchmarks: what is asked of the Hub, and a column that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.benchmarks import BENCHMARKS, evaluation_changes
from trb_mlx.data.held_out import held_out_prompts
from trb_mlx.data.rewards import Verifier
from trb_mlx.errors import UserError
from trb_mlx.types import Prompt, say_nothing

ROWS = {
    "gsm8k": ({"question": "Q", "answer": "2 * 600\n#### 1,200"}, "1200"),
    "math500": ({"problem": "Q", "solution": "S", "answer": "\\frac{1}{2}"}, "\\frac{1}{2}"),
    "aime24": ({"problem": "Q", "solution": "S", "answer": "073"}, "073"),
    "aime25": ({"problem": "Q", "answer": "70"}, "70"),
    "amc23": ({"question": "Q", "answer": 27.0}, "27.0"),
    "olympiadbench": ({"question": "Q", "final_answer": ["$x=1$", "2"]}, "x=1, 2"),
}


def config_for(data: str, *more: tuple[str, Any]) -> Config:
    models = [("teacher.model", "t"), ("student.model", "s")]
    return load_config(None, [*models, *evaluation_changes(data, None), *more])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What load_dataset was asked for, and the rows it gives."""
    state: dict[str, Any] = {"rows": []}

    def load_dataset(path: str, **keys: Any) -> Any:
        state.update(path=path, **keys)
        return datasets.Dataset.from_list(state["rows"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def read(config: Config, base: Any) -> list[Prompt]:
    return list(held_out_prompts(config, base, say_nothing))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_read_whole_with_its_own_columns(
    name: str, asked: dict[str, Any], base: Any
) -> None:
    row, answer = ROWS[name]
    asked["rows"] = [row, row]  # a repeated problem counts twice
    prompts = read(config_for(name), base)
    assert [prompt.answer for prompt in prompts] == [answer, answer]
    assert "Q" in prompts[0].text
    benchmark = BENCHMARKS[name]
    assert (asked["path"], asked["name"], asked["split"]) == (
        benchmark.source,
        benchmark.subset,
        benchmark.split,
    )


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_column_is_one_sentence(name: str, asked: dict[str, Any], base: Any) -> None:
    row = dict(ROWS[name][0])
    column = BENCHMARKS[name].answer_column
    asked["rows"] = [{**{k: v for k, v in row.items() if k != column}, "solutions": "x"}]
    with pytest.raises(UserError) as caught:
        read(config_for(name), base)
    assert f"has no column {column}, which answer_column names" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_papers_settings_come_with_a_name_and_give_way() -> None:
    samples = {name: config_for(name).eval.samples for name in BENCHMARKS}
    assert samples == {
        "gsm8k": 32,
        "math500": 64,
        "aime24": 512,
        "aime25": 512,
        "amc23": 512,
        "olympiadbench": 64,
    }
    evaluation = config_for("gsm8k", ("eval.samples", 2), ("eval.prompts", 5)).eval
    assert (evaluation.samples, evaluation.prompts, evaluation.max_tokens) == (2, 5, 8192)
    assert (evaluation.temperature, evaluation.top_p) == (1.0, 1.0)


def test_any_file_is_read_whole(tmp_path: Path, base: Any) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"problem": f"{i}?", "answer": str(i)} for i in range(200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert len(read(config_for(str(path)), base)) == 200
    assert len(read(config_for("arithmetic"), base)) == 128


def test_a_list_of_answers_is_a_set() -> None:
    with Verifier() as verifier:
        assert verifier.score("\\boxed{2, 1}", "1, 2") == 1.0
        assert verifier.score("\\boxed{1}", "1, 2") == 0.0
