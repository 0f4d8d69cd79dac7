"""The bundled pair on disk: small, readable by plain mlx-lm, one tokenizer, two stop tokens."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from tokenizers import Tokenizer

import trb_mlx
from trb_mlx.data.arithmetic import problems

BUNDLED = Path(trb_mlx.__file__).parent / "bundled"
FOLDERS = {"teacher": BUNDLED / "arithmetic-teacher", "student": BUNDLED / "arithmetic-student"}
EOS = {"teacher": "<|im_end|>", "student": "<|endoftext|>"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDERS["student"] / "tokenizer.json"))


@pytest.mark.parametrize("role", FOLDERS)
def test_mlx_lm_loads_the_folder_and_its_own_stop_token(role: str) -> None:
    model, wrapper = mlx_lm.load(str(FOLDERS[role]))
    settings = json.loads((FOLDERS[role] / "config.json").read_text())
    stop = wrapper.convert_tokens_to_ids(EOS[role])
    assert wrapper.eos_token_ids == {stop}
    assert settings["eos_token_id"] == stop
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, settings["vocab_size"])


@pytest.mark.parametrize("role", FOLDERS)
def test_mlx_lm_tokenizer_agrees_with_the_file(role: str, tokenizer: Tokenizer) -> None:
    _, wrapper = mlx_lm.load(str(FOLDERS[role]), lazy=True)
    for text in ["Compute (12+7)*3.\n19*3=57\nAnswer: 57", "The moon, naïve: 東京 12 \n\n x\t"]:
        assert wrapper.encode(text, add_special_tokens=False) == tokenizer.encode(text).ids
        assert wrapper.encode(text) == tokenizer.encode(text).ids
        assert wrapper.decode(tokenizer.encode(text).ids) == text


def test_stop_tokens_differ_and_both_are_in_the_one_tokenizer(tokenizer: Tokenizer) -> None:
    ids = {
        json.loads((folder / "config.json").read_text())["eos_token_id"]
        for folder in FOLDERS.values()
    }
    assert ids == {tokenizer.token_to_id(token) for token in EOS.values()}
    assert len(ids) == 2
    texts = {(folder / "tokenizer.json").read_bytes() for folder in FOLDERS.values()}
    assert len(texts) == 1


def test_embedding_rows_are_padded_beyond_the_tokenizer(tokenizer: Tokenizer) -> None:
    for folder in FOLDERS.values():
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        assert rows % 64 == 0
        assert rows > tokenizer.get_vocab_size()


def test_both_folders_stay_under_ten_megabytes() -> None:
    size = sum(file.stat().st_size for folder in FOLDERS.values() for file in folder.iterdir())
    assert size <= 10 * 2**20


def test_prompt_and_solution_meet_at_a_token_boundary(tokenizer: Tokenizer) -> None:
    for problem in problems("test", 500, 11):
        prompt = problem.question + "\n"
        separate = tokenizer.encode(prompt).ids + tokenizer.encode(problem.solution).ids
        assert tokenizer.encode(prompt + problem.solution).ids == separate


def test_solutions_with_their_stop_token_fit_48_tokens(tokenizer: Tokenizer) -> None:
    solutions = [problem.solution for problem in problems("test", 500, 12)]
    assert max(len(encoding.ids) + 1 for encoding in tokenizer.encode_batch(solutions)) <= 48


@pytest.mark.parametrize("text", ["12345", "a b  c\n\n", "Ünïcödé 東京 🦊", "<x>|y|", ""])
def test_any_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("123+45=168").tokens
    assert tokens == list("123+45=168")


@pytest.mark.parametrize("role", FOLDERS)
def test_model_card_states_how_it_was_made(role: str) -> None:
    card = (FOLDERS[role] / "README.md").read_text()
    for words in ["scripts/make_bundled_pair.py", "--seed", "pass@1", "greedy", "apache-2.0"]:
        assert words in card, words
