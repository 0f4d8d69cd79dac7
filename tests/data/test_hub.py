"""Hub data sets: what is asked for, what is downloaded, and failures in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from data.reading import GSM8K, complaint, read
from datasets.exceptions import DatasetNotFoundError

from trb_mlx.config import PromptSource
from trb_mlx.data.examples import Example
from trb_mlx.data.sources import read_examples


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the Hub: `rows` is what load_dataset returns, `asked` what it was asked."""
    state: dict[str, Any] = {"rows": [], "asked": None}

    def load_dataset(path: str, **keys: Any) -> Any:
        state["asked"] = {"path": path, **keys}
        if isinstance(state["rows"], Exception):
            raise state["rows"]
        return state["rows"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


# The Hub, through a stand-in for load_dataset


def test_the_hub_is_asked_for_the_subset_and_split(hub: dict[str, Any]) -> None:
    hub["rows"] = [GSM8K]
    assert read("openai/gsm8k", subset="main", split="test") == [Example("How many?", "1200")]
    asked = {"path": "openai/gsm8k", "name": "main", "split": "test", "streaming": False}
    assert hub["asked"] == asked


def test_a_stream_is_read_no_further_than_asked(hub: dict[str, Any]) -> None:
    taken = []

    def endless() -> Iterator[dict[str, Any]]:
        for number in range(10**9):
            taken.append(number)
            yield {"conversations": [{"from": "human", "value": str(number)}]}

    hub["rows"] = endless()
    examples = read_examples(PromptSource(source="open/thoughts", streaming=True), None, seed=0)
    assert [example.text for example in islice(examples, 3)] == ["0", "1", "2"]
    assert len(taken) == 3
    assert hub["asked"]["streaming"] is True


def test_unread_columns_are_never_decoded(hub: dict[str, Any]) -> None:
    rows = datasets.Dataset.from_list([{"problem": "P", "answer": 1, "picture": "big"}])
    seen = []

    def watched(row: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(row))
        return row

    hub["rows"] = rows.with_transform(watched)
    assert read("some/set") == [Example("P", "1")]
    assert seen == [{"problem", "answer"}]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"),
            "is not on the Hub, or is",
        ),
        (
            ConnectionError("Couldn't reach 'a/b' on the Hub"),
            "the Hub could not be reached; connect",
        ),
        (
            ValueError("Unknown split \"tset\". Should be one of ['train', 'test']."),
            "data set a/b has no split tset; did you mean test? (splits: train, test).",
        ),
        (
            ValueError("Bad split: tset. Available splits: ['train', 'test']"),
            "data set a/b has no split tset; did you mean test? (splits: train, test).",
        ),
        (
            ValueError("BuilderConfig 'mian' not found. Available: ['main', 'socratic']"),
            "data set a/b has no subset mian; did you mean main? (subsets: main, socratic).",
        ),
        (OSError("disk\nis full"), "data set a/b could not be read: disk is full"),
    ],
)
def test_a_hub_failure_is_one_sentence(
    hub: dict[str, Any], error: Exception, expected: str
) -> None:
    hub["rows"] = error
    said = complaint("a/b", split="tset", subset="mian")
    assert said.startswith("data set a/b ")
    assert expected in said


def test_a_missing_subset_lists_the_choices(hub: dict[str, Any]) -> None:
    hub["rows"] = ValueError(
        "Config name is missing.\nPlease pick one among the available configs: "
        "['main', 'socratic']\nExample of usage:\n\t`load_dataset('a/b', 'main')`"
    )
    said = complaint("a/b")
    assert said.endswith("has several subsets, expected one to be named (subsets: main, socratic).")


def test_a_connection_lost_on_the_way_is_one_sentence_too(hub: dict[str, Any]) -> None:
    def cut() -> Iterator[dict[str, Any]]:
        yield {"prompt": "a"}
        raise ConnectionError("reset by peer")

    hub["rows"] = cut()
    assert "the Hub could not be reached" in complaint("a/b")


def test_a_missing_column_of_the_hub_lists_them_all(hub: dict[str, Any]) -> None:
    hub["rows"] = datasets.Dataset.from_list([{"problem": "P", "anwser": 1, "level": 2}])
    said = complaint("a/b", answer_column="answer")
    assert said.endswith("did you mean anwser? (columns: problem, anwser, level).")


# A real data set through `datasets`, without a network


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("set")
    rows = [{"problem": f"p{number}", "answer": number, "other": [1]} for number in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_parquet_is_read_by_datasets(
    parquet_folder: str, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    examples = read(parquet_folder, 2, split="test", streaming=streaming)
    assert examples == [Example("p0", "0"), Example("p1", "1")]
    assert "has no split train (splits: test)." in complaint(parquet_folder, streaming=streaming)
