"""A method in words says what its kind reads, and nothing that it does not."""

from __future__ import annotations

from typing import get_args

import pytest

from trb_mlx.config import BehaviorKind
from trb_mlx.config_file import load_config
from trb_mlx.method import READ_WITH, describe_behavior, describe_method, method_name

PAIR = [("student.model", "a"), ("teacher.model", "b")]
OTHER = {
    "budget": 0.7,
    "warmup_steps": 7,
    "top_k": 7,
    "teacher_temperature": 0.7,
    "start_temperature": 0.7,
}
KINDS = get_args(BehaviorKind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", OTHER)
def test_the_words_change_with_the_keys_that_a_kind_reads_alone(kind: str, key: str) -> None:
    pair = [*PAIR, ("behavior.kind", kind)]
    plain = describe_behavior(load_config(None, pair))
    changed = describe_behavior(load_config(None, [*pair, (f"behavior.{key}", OTHER[key])]))
    assert (changed != plain) == (kind in READ_WITH[f"behavior.{key}"][1])


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ([], "trb", "TRB, ε 0.02 annealed to 0 over 50 steps"),
        ([("behavior.kind", "vanilla")], "vanilla", "vanilla, the student alone"),
        ([("target.sft_steps", 3)], "sft", "after 3 steps of SFT"),
        ([("target.kind", "veto")], "veto", "Veto's bridge from 0.4 over 50 steps"),
        ([("target.corrections", "top_token")], "saki", "towards the teacher's top token"),
        ([("loss.divergence", "forward_kl")], "gkd", "forward KL"),
    ],
)
def test_a_method_has_its_name_and_says_what_differs(
    changes: list[tuple[str, object]], name: str, words: str
) -> None:
    config = load_config(None, [*PAIR, *changes])
    assert method_name(config) == name
    assert words in describe_method(config)
