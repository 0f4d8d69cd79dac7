"""The text of rollouts."""

from __future__ import annotations

import numpy as np

from trb_mlx.models.pair import Pair
from trb_mlx.rollout.text import response_texts, token_texts
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey


def test_tokens_of_one_character_are_shown_once(pair: Pair) -> None:
    tokenizer = pair.student.model.tokenizer
    text = "aé数\n😀b"
    pieces = token_texts(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    assert pieces[:4] == ["a", "", "é", ""]


def test_a_response_ends_before_its_stop_token_and_its_padding(pair: Pair) -> None:
    ids = pair.student.model.tokenizer.encode("ab", add_special_tokens=False)
    tokens = np.array([[*ids, pair.stop_id, 1]], np.int32)
    jobs = [Job(Prompt(0, "", (1,)), RolloutKey(0, 0, 0, 0))]
    rollout = Rollout(jobs, tokens, np.array([len(ids) + 1]), np.array([True]))
    assert response_texts(pair.student, rollout) == ["ab"]
