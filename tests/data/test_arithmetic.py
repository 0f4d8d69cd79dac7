"""The generated problems: right by an independent evaluation, seeded, and split apart."""

from __future__ import annotations

import ast
import operator
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trb_mlx.data.arithmetic import LARGEST_COUNT, Problem, problems

SEEDS = st.integers(min_value=0, max_value=2**63)
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def expression_of(problem: Problem) -> str:
    match = re.fullmatch(r"Compute ([-+*()0-9]+)\.", problem.question)
    assert match, problem.question
    return match[1]


def evaluated(expression: str) -> int:
    """Evaluate by Python's own precedence, without running the text."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return node.value
        assert isinstance(node, ast.BinOp)
        return OPERATIONS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(expression, mode="eval").body)


@given(train_seed=SEEDS, test_seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_splits_are_disjoint_whatever_the_seeds(train_seed: int, test_seed: int) -> None:
    train = {p.question for p in problems("train", 200, train_seed)}
    test = {p.question for p in problems("test", 40, test_seed)}
    assert not train & test


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_no_question_comes_twice_in_one_call(seed: int) -> None:
    drawn = problems("test", 100, seed)
    assert len({p.question for p in drawn}) == len(drawn) == 100


def test_a_seed_gives_its_list_and_another_seed_another() -> None:
    assert problems("train", 50, 3) == problems("train", 50, 3)
    assert problems("train", 50, 3) != problems("train", 50, 4)


def test_a_longer_list_begins_with_the_shorter() -> None:
    assert problems("test", 50, 3)[:20] == problems("test", 20, 3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_answer_is_the_value_of_the_question(split: str) -> None:
    for problem in problems(split, 500, 1):
        assert int(problem.answer) == evaluated(expression_of(problem))


def test_each_step_is_true_and_takes_up_the_value_before_it() -> None:
    for problem in problems("train", 500, 2):
        *lines, last = problem.solution.split("\n")
        assert last == f"Answer: {problem.answer}"
        carried = re.findall(r"\d+", problem.question)[0]
        for line in lines:
            left, right = line.split("=")
            assert re.match(r"\d+", left)[0] == carried
            assert evaluated(left) == int(right)
            assert 0 <= int(right) <= 99
            carried = right
        assert carried == problem.answer


def test_steps_follow_the_question_from_left_to_right() -> None:
    for problem in problems("train", 200, 5):
        question = re.sub("[()]", "", expression_of(problem))
        operations = [re.search(r"[-+*]\d+", line)[0] for line in problem.solution.split("\n")[:-1]]
        assert re.match(r"\d+", question)[0] + "".join(operations) == question
        assert len(operations) in (3, 4)


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split is 'dev', expected 'train' or 'test'"):
        problems("dev", 1, 0)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("excess", [True, False])
def test_count_out_of_range_is_named(split: str, excess: bool) -> None:
    count = LARGEST_COUNT[split] + 1 if excess else -1
    with pytest.raises(ValueError, match=f"count is {count}, expected 0 to"):
        problems(split, count, 0)


def test_count_zero_is_an_empty_list() -> None:
    assert problems("train", 0, 0) == []
