"""Which prompts a run trains on, which it holds out, and what it says about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.context import fit_context, fit_split, longest_prompt, shortest_context
from trb_mlx.data.held_out import PromptSplit, held_out_prompts, split_prompts, with_held_out
from trb_mlx.errors import UserError
from trb_mlx.types import Prompt


def write(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def config_of(source: object, *changes: tuple[str, Any]) -> Config:
    models = [("teacher.model", "t"), ("student.model", "s"), ("prompt.plain", "{prompt}")]
    return load_config(None, [*models, ("data.train.source", str(source)), *changes])


def texts(prompts: Any) -> list[str]:
    return [prompt.text for prompt in prompts]


def split(config: Config, tokenizer: Any) -> tuple[PromptSplit, list[str]]:
    said: list[str] = []
    return split_prompts(config, tokenizer, said.append), said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """mlx-lm's: four prompts to train on, two of validation."""
    write(tmp_path / "train.jsonl", "a", "b", "c", "d")
    write(tmp_path / "valid.jsonl", "v", "w")
    return tmp_path


# The held-out set


def test_the_tail_is_held_out_and_the_numbers_are_said(tmp_path: Path, base: Any) -> None:
    config = config_of(write(tmp_path / "p.jsonl", *"abcde"), ("eval.prompts", 2))
    prompts, said = split(config, base)
    assert (texts(prompts.train), texts(prompts.eval)) == (["a", "b", "c"], ["d", "e"])
    assert said == ["3 prompts to train on, 2 held out"]


def test_an_mlx_lm_folder_holds_its_valid_file_out(folder: Path, base: Any) -> None:
    config = with_held_out(config_of(folder), None)
    prompts, said = split(config, base)
    assert (texts(prompts.train), texts(prompts.eval)) == (["a", "b", "c", "d"], ["v", "w"])
    assert said == ["4 prompts to train on, 2 held out"]
    assert texts(held_out_prompts(config, base, said.append)) == ["v", "w"]


def test_data_eval_goes_before_the_valid_file(folder: Path, base: Any) -> None:
    other = write(folder / "other.jsonl", "o")
    config = with_held_out(config_of(folder, ("data.eval.source", other)), None)
    assert texts(split(config, base)[0].eval) == ["o"]


@pytest.mark.parametrize("what", ["no valid", "empty valid", "another split"])
def test_without_a_valid_file_beside_it_training_data_is_held_out(folder: Path, what: str) -> None:
    changes = []
    if what == "no valid":
        (folder / "valid.jsonl").unlink()
    elif what == "empty valid":
        (folder / "valid.jsonl").write_text("")
    else:
        changes = [("data.train.split", "valid")]
    assert with_held_out(config_of(folder, *changes), None).data.eval is None


def test_a_run_goes_on_with_the_held_out_set_it_began_with(folder: Path, base: Any) -> None:
    given = config_of(folder)
    new = with_held_out(given, None)
    assert with_held_out(given, new) == new
    old = given  # of version 0.2.0, which knew no valid.jsonl
    resumed = with_held_out(given, old)
    prompts, said = split(resumed, base)
    assert (texts(prompts.train), texts(prompts.eval)) == (["a", "b"], ["c", "d"])
    assert any("a new run would hold" in line and "last 2 prompts" in line for line in said)
    assert texts(held_out_prompts(old, base, said.append)) == ["c", "d"]


def test_held_out_prompts_that_are_trained_on_are_said(tmp_path: Path, base: Any) -> None:
    source = write(tmp_path / "p.jsonl", "a", "b", "c")
    same = split(config_of(source, ("data.eval.source", source)), base)[1]
    assert same[-1].startswith("warning: all held-out prompts are trained on too")
    copy = write(tmp_path / "copy.jsonl", "b", "x")
    some = split(config_of(source, ("data.eval.source", copy)), base)[1]
    assert some[-1].startswith("warning: 1 of the 2 held-out prompts are trained on too")


def test_bad_rows_are_said_with_the_first_of_them(tmp_path: Path, base: Any) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n{"prompt": "b"}\n')
    said = split(config_of(path), base)[1]
    assert said[0] == (
        f"{path} (train): left out 1 row that cannot be used (the first: {path}:2 has nothing in "
        "its column prompt, expected a prompt); 2 remain"
    )


# The context


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(index, "", (0,) * length) for index, length in enumerate(lengths)]


def fitted(lengths: list[int], context: int | None, max_tokens: int) -> tuple[list[int], int, str]:
    said: list[str] = []
    kept, limit = fit_context(prompts(*lengths), context, max_tokens, 1024, "held-out", said.append)
    return [len(prompt.tokens) for prompt in kept], limit, "; ".join(said)


def test_one_long_prompt_is_left_out_and_shortens_no_answer() -> None:
    kept, limit, said = fitted([10, 504, 20], 512, 40)
    assert (kept, limit) == ([10, 20], 40)
    assert said.startswith("left out 1 of 3 held-out prompts over 472 tokens: the context is 512")


def test_what_fits_is_left_as_it_is() -> None:
    assert fitted([10, 472], 512, 40) == ([10, 472], 40, "")
    assert fitted([10, 5000], None, 40) == ([10, 5000], 40, "")


def test_answers_as_long_as_the_context_end_earlier() -> None:
    kept, limit, said = fitted([10, 100, 300], 512, 512)
    assert (kept, limit) == ([10, 100], 412)
    assert "answers end after 412 tokens, not 512" in said


@pytest.mark.parametrize("context", [1, 3, 64, 4096])
@pytest.mark.parametrize("max_tokens", [1, 50, 4096, 8192])
def test_prompt_and_answer_never_exceed_the_context(context: int, max_tokens: int) -> None:
    longest = longest_prompt(context, max_tokens, 1024)
    kept, limit, _ = fitted([0, longest], context, max_tokens)
    assert max(kept) + limit <= context
    assert 1 <= limit <= max_tokens
    assert limit >= min(max_tokens, context * 3 // 4)


def test_no_prompt_within_the_context_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no held-out prompt is left: all 2 are over 472 tokens"):
        fitted([600, 612], 512, 40)


def test_a_runs_prompts_and_answers_keep_to_the_shorter_context() -> None:
    config = config_of("x", ("rollout.max_tokens", 40), ("eval.max_tokens", 90))
    given = PromptSplit(prompts(10, 61), prompts(20, 30))
    contexts = [None, 4096, 100]
    assert shortest_context(contexts) == 100
    said: list[str] = []
    fitted, split = fit_split(config, given, contexts, said.append)
    assert [len(prompt.tokens) for prompt in split.train] == [10]
    assert [len(prompt.tokens) for prompt in split.eval] == [20]
    assert (fitted.rollout.max_tokens, fitted.eval.max_tokens) == (40, 80)
    assert len(said) == 3
