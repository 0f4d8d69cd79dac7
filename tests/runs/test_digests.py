"""Changed data is noticed: prompts have digests, which a run keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.held_out import PromptSplit
from trb_mlx.errors import UserError
from trb_mlx.runs.digests import check_digests, digest_prompts, write_digests
from trb_mlx.runs.folder import RunFolder
from trb_mlx.types import Prompt

PROMPTS = [Prompt(place, f"p{place}", (place, 7), "1") for place in range(5)]
SPLIT = PromptSplit(PROMPTS[:3], PROMPTS[3:])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, tmp_path / "adapters")


@pytest.fixture
def config() -> Config:
    models = [("teacher.model", "t"), ("student.model", "s")]
    return load_config(None, [*models, ("data.train.source", "data.jsonl")])


def checked(folder: RunFolder, config: Config, split: PromptSplit) -> list[str]:
    said: list[str] = []
    check_digests(folder, config, vars(split), said.append)
    return said


def test_the_same_prompts_pass_wherever_they_lie(folder: RunFolder, config: Config) -> None:
    write_digests(folder, config, SPLIT)
    mended = [replace(prompt, text="x", answer="2") for prompt in SPLIT.train]
    assert checked(folder, config, PromptSplit(mended, SPLIT.eval)) == []


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (PromptSplit(PROMPTS[:2], PROMPTS[3:]), r"training prompts .* \(3 then, 2 now\)"),
        (PromptSplit(PROMPTS[:3][::-1], PROMPTS[3:]), r"training prompts .* \(3 of them\)"),
        (PromptSplit(PROMPTS[:3], PROMPTS[2:4]), "held-out prompts of data.jsonl are not those"),
    ],
)
def test_other_prompts_are_refused(
    folder: RunFolder, config: Config, split: PromptSplit, sentence: str
) -> None:
    write_digests(folder, config, SPLIT)
    with pytest.raises(UserError, match=sentence):
        checked(folder, config, split)


def test_a_digest_does_not_mix_prompts_up() -> None:
    two = [Prompt(0, "", (1, 2)), Prompt(1, "", (3,))]
    one = [Prompt(0, "", (1,)), Prompt(1, "", (2, 3))]
    assert digest_prompts(two) != digest_prompts(one)


def test_a_run_without_digests_is_taken_as_it_is(folder: RunFolder, config: Config) -> None:
    (said,) = checked(folder, config, SPLIT)
    assert "keeps no digest of its data" in said


@pytest.mark.parametrize("text", ["", "[]", '{"train": 1}', '{"train": {"prompts": 1}}'])
def test_a_damaged_digest_is_one_sentence(folder: RunFolder, config: Config, text: str) -> None:
    folder.data.write_text(text)
    with pytest.raises(UserError, match="data.json cannot be read") as caught:
        checked(folder, config, SPLIT)
    assert "\n" not in str(caught.value)
