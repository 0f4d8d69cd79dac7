"""What a run and an evaluation say of their data, through the console script."""

from __future__ import annotations

import json
from pathlib import Path

from cli.conftest import Run

PAIR = "--model=bundled:arithmetic-student --teacher=bundled:arithmetic-teacher".split()
ONE_STEP = "--iters=1 --batch-size=2 --set rollout.max_tokens=8 --set eval.prompts=3".split()
TALK = "x " * 250  # 507 tokens with the question: hardly any are left of the context of 512


def write(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(*ends: str) -> list[dict[str, object]]:
    return [
        {"question": f"Compute {number}+2.{end}", "answer": number + 2}
        for number, end in enumerate(ends)
    ]


def test_a_run_says_what_it_trains_on_and_what_it_leaves_out(trb: Run, tmp_path: Path) -> None:
    rows = [*questions("", TALK, ""), {"question": None}, *questions("?", "?", "?", TALK)]
    source = write(tmp_path / "mine.jsonl", *rows)
    done = trb("train", *PAIR, "--data", source, "--name=a", *ONE_STEP)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "left out 1 row that cannot be used (the first:" in said
    assert "mine.jsonl:4 has nothing in its column question" in said
    assert "4 prompts to train on, 3 held out" in said
    assert "left out 1 of 4 training prompts over 504 tokens: the context is 512" in said
    assert "left out 1 of 3 held-out prompts over 504 tokens" in said


def test_one_long_problem_shortens_no_answer_of_an_evaluation(trb: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", *questions("", "", TALK))
    done = trb("eval", PAIR[0].partition("=")[2], "--data", source, "-m", "40", "--json")
    assert done.returncode == 0, done.stderr
    assert "left out 1 of 3 held-out prompts over 472 tokens" in done.stderr
    found = json.loads(done.stdout)
    assert (found["problems"], found["max_tokens"]) == (2, 40)


def test_a_comparison_says_beforehand_which_problems_are_too_long(trb: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", *questions("", ""))
    held = write(tmp_path / "held.jsonl", *questions("", TALK))
    data = f"data.train.source: {source}, data.eval.source: {held}"
    settings = f"{{{data}, eval.prompts: 1, eval.every: 5, rollout.max_tokens: 8}}"
    methods = "{vanilla: {}, trb: {}}"
    (tmp_path / "spec.yaml").write_text(
        f"base: small\nset: {settings}\nmethods: {methods}\nseeds: [0]\nproblems: 1\n"
        "reference: vanilla\nearly_steps: 5\ndecides: final.pass@1\n"
    )
    done = trb("compare", "spec.yaml")
    assert done.returncode == 2, done.stderr
    assert "1 of the 2 held-out problems leave no room for an answer of 8 tokens" in done.stderr
    assert "expected data.max_prompt_tokens up to 504" in done.stderr
