"""reasoning-gym's families: disjoint sets, and scorers that see the final answer alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise

import pytest
from data.reading import complaint, read

pytest.importorskip("reasoning_gym")

from trb_mlx.data.gym import SPACING, gym_examples
from trb_mlx.data.rewards import Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(timeout_s=30.0) as verifier:
        yield verifier


def test_splits_and_seeds_share_no_item() -> None:
    """reasoning-gym's own seeds 42 and 43 share 99 of 100 items."""
    firsts = []
    for split in ("train", "test"):
        for seed in (0, 1, 42, 43):
            (example,) = gym_examples("chain_sum", split, 1, seed)
            assert example.grader is not None
            firsts.append(int(example.grader.split("/")[1]))
    firsts.sort()
    assert all(later - earlier >= SPACING for earlier, later in pairwise(firsts))
    questions = [
        example.text for seed in (42, 43) for example in gym_examples("chain_sum", "test", 50, seed)
    ]
    assert len(set(questions)) == 100


def test_the_same_seed_gives_the_same_problems() -> None:
    first = read("generated:gym/gsm_symbolic", count=5, split="test")
    assert first == read("generated:gym/gsm_symbolic", count=5, split="test")
    assert [example.text for example in first[:3]] == [
        example.text for example in islice(gym_examples("gsm_symbolic", "test", 9, 0), 3)
    ]


@pytest.mark.parametrize("family", ["gsm_symbolic", "basic_arithmetic", "chain_sum"])
def test_numbers_are_right_or_wrong_with_their_sign(family: str, verifier: Verifier) -> None:
    for example in gym_examples(family, "test", 10, 3):
        assert example.answer is not None
        answer = example.answer

        def score(response: str, example=example) -> float:
            return verifier.score(response, example.answer, example.grader)

        assert score(f"First 17 and 4.\nAnswer: {answer}") == 1.0
        assert score(f"so \\boxed{{{answer}}}") == 1.0
        assert score(answer) == 1.0
        assert score(f"Answer: {answer}1") == 0.0
        flipped = answer.removeprefix("-") if answer.startswith("-") else f"-{answer}"
        if float(answer):
            assert score(f"Answer: {flipped}") == 0.0
            assert score(f"Answer: {flipped} apples") == 0.0
        assert score(f"{answer} is not it.\nAnswer: 123456789") == 0.0


def test_the_familys_own_scorer_accepts_other_right_answers(verifier: Verifier) -> None:
    """Countdown asks for an expression: one in brackets is another text of the same value."""
    (example,) = gym_examples("countdown", "test", 1, 0)
    assert example.answer
    for response, expected in ((f"Answer: ({example.answer})", 1.0), ("Answer: 1 + 1", 0.0)):
        assert verifier.score(response, example.answer, example.grader) == expected


def test_families_without_a_gold_text_have_a_scorer_alone(verifier: Verifier) -> None:
    (example,) = gym_examples("graph_color", "test", 1, 0)
    assert example.answer == ""
    assert verifier.score("Answer: {}", example.answer, example.grader) == 0.0


def test_a_scorer_that_raises_is_a_wrong_answer(verifier: Verifier) -> None:
    (example,) = gym_examples("prime_factorization", "test", 1, 0)
    assert verifier.score("Answer: many primes", example.answer or "", example.grader) == 0.0


@pytest.mark.parametrize(
    ("source", "keys", "expected"),
    [
        ("generated:gym/gsm_symbolik", {}, "did you mean gsm_symbolic?"),
        ("generated:gym/chain_sum", {"split": "valid"}, "no split valid (splits: train, test)"),
        ("generated:gym/composite", {}, "cannot be made: Must specify at least one dataset"),
        ("generated:algebra", {}, "(generators: arithmetic, gym/NAME)"),
    ],
)
def test_mistakes_are_one_sentence(source: str, keys: dict, expected: str) -> None:
    assert expected in complaint(source, count=3, **keys)
