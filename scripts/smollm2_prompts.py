"""Prompts that a small chat model can answer, for `configs/compare/smollm2.yaml`.

Copying, sums and rewriting, which code can grade (`smollm2_measures.py`), beside plain questions
and one-sentence tasks, and one in eight a short question of GSM8K. No text is in both files, and
the seed fixes every row. `kind` and `gold` are for the grader: training reads the prompt alone::

    python scripts/smollm2_prompts.py --gsm8k gsm8k/train.jsonl --out data/smollm2
"""

from __future__ import annotations

import itertools
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click

from trb_mlx.files import read_lines

TRAIN, VALID = 1000, 116
VALID_SHARE = 8  # one text in eight may only be held out
GSM8K_EVERY = 8
GSM8K_CHARACTERS = 140  # longer questions are left out

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack")
ANIMALS = ("cat", "dog", "horse", "bird", "fox", "cow", "rabbit", "bear", "duck", "mouse")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple")
PLACES = ("house", "river", "garden", "school", "bridge", "forest", "market", "station")
VERBS = {
    "walks": "walked", "sleeps": "slept", "waits": "waited", "sings": "sang", "plays": "played",
    "stands": "stood", "rests": "rested", "hides": "hid",
}  # fmt: skip
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Canada": "Ottawa", "Greece": "Athens",
    "Norway": "Oslo", "Poland": "Warsaw", "Mexico": "Mexico City", "Peru": "Lima",
    "Kenya": "Nairobi", "Portugal": "Lisbon", "Sweden": "Stockholm", "Austria": "Vienna",
    "Ireland": "Dublin", "Russia": "Moscow", "Cuba": "Havana",
}  # fmt: skip
THINGS = (
    "a clock", "a bicycle", "the sun", "a library", "a bee", "rain", "a teacher", "a map",
    "the moon", "a ship", "winter", "a tree", "music", "a doctor", "a window", "the sea",
    "a train", "a farmer", "salt", "a volcano",
)  # fmt: skip
TASKS = (
    "Why do people like {}? Answer briefly.",
    "Name two facts about {}.",
    "Explain {} to a child.",
    "Describe {} in a few words.",
)
COUNTRY_TASKS = (
    "Name a famous food from {}.",
    "Which continent is {} in?",
    "What language do people speak in {}?",
    "Name one animal that lives in {}.",
)

Row = dict[str, str]
Maker = Callable[[random.Random], Row]


def _sentence(draw: random.Random) -> tuple[str, str]:
    """A sentence, and its verb in the past tense."""
    subject = draw.choice(
        (draw.choice(NAMES), f"The {draw.choice(COLOURS)} {draw.choice(ANIMALS)}")
    )
    verb = draw.choice(list(VERBS))
    return f"{subject} {verb} near the {draw.choice(PLACES)}.", VERBS[verb]


def _copy(draw: random.Random) -> Row:
    text, _ = _sentence(draw)
    return {"prompt": f"Repeat this sentence: {text}", "kind": "copy", "gold": text}


def _sum(draw: random.Random) -> Row:
    left, right = draw.randint(9, 20), draw.randint(1, 9)
    sign, value = draw.choice((("+", left + right), ("-", left - right)))
    return {"prompt": f"What is {left} {sign} {right}?", "kind": "sum", "gold": str(value)}


def _past(draw: random.Random) -> Row:
    text, verb = _sentence(draw)
    prompt = f"Rewrite this sentence in the past tense: {text}"
    return {"prompt": prompt, "kind": "past", "gold": verb}


def _question(draw: random.Random) -> Row:
    text, _ = _sentence(draw)
    return {"prompt": f"Turn this sentence into a question: {text}", "kind": "question"}


def _capital(draw: random.Random) -> Row:
    country = draw.choice(list(CAPITALS))
    form = draw.choice(("What is the capital of {}?", "Name the capital of {}."))
    return {"prompt": form.format(country), "kind": "capital", "gold": CAPITALS[country]}


def _sentence_about(draw: random.Random) -> Row:
    form = draw.choice(("Write one sentence about {}.", "What is {}? Answer in one sentence."))
    return {"prompt": form.format(draw.choice(THINGS)), "kind": "sentence"}


def _open(draw: random.Random) -> Row:
    return {"prompt": draw.choice(TASKS).format(draw.choice(THINGS)), "kind": "open"}


def _country(draw: random.Random) -> Row:
    form = draw.choice(COUNTRY_TASKS)
    return {"prompt": form.format(draw.choice(list(CAPITALS))), "kind": "open"}


MAKERS: tuple[Maker, ...] = (
    _copy, _sum, _past, _question, _capital, _sentence_about, _open, _country,
)  # fmt: skip


def is_held_out(text: str) -> bool:
    """Whether a text may be held out only; crc32 is the same in every process, hash() is not."""
    return zlib.crc32(text.encode()) % VALID_SHARE == 0


def make_rows(held_out: bool, count: int, seed: int, questions: list[str]) -> list[Row]:
    """`count` different rows, an eighth of them from `questions`; the kinds take turns."""
    draw = random.Random(f"smollm2 {held_out} {seed}")
    own = [text for text in questions if is_held_out(text) == held_out]
    draw.shuffle(own)
    rows: dict[str, Row] = {}
    kinds = itertools.cycle(MAKERS)
    while len(rows) < count:
        if own and len(rows) % GSM8K_EVERY == GSM8K_EVERY - 1:
            text = own.pop()
            rows[text] = {"prompt": text, "kind": "gsm8k"}
            continue
        make = next(kinds)
        for _ in range(200):  # a kind may have no text left for this file: then the next one
            row = make(draw)
            if is_held_out(row["prompt"]) == held_out and row["prompt"] not in rows:
                rows[row["prompt"]] = row
                break
    shuffled = list(rows.values())
    draw.shuffle(shuffled)
    return shuffled


def short_questions(path: Path | None) -> list[str]:
    """GSM8K's questions of at most `GSM8K_CHARACTERS`."""
    if path is None:
        return []
    questions = [row["question"] for row in read_lines(path)]
    return [text for text in questions if len(text) <= GSM8K_CHARACTERS]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("data/smollm2"))
@click.option("--gsm8k", type=click.Path(exists=True, path_type=Path), help="its train.jsonl")
@click.option("--seed", default=0)
def main(out: Path, gsm8k: Path | None, seed: int) -> None:
    """Write OUT/train.jsonl and OUT/valid.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    questions = short_questions(gsm8k)
    for name, held_out, count in (("train", False, TRAIN), ("valid", True, VALID)):
        rows = make_rows(held_out, count, seed, questions)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        kinds = Counter(row["kind"] for row in rows)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        click.echo(f"{out / name}.jsonl: {len(rows)} prompts ({told})")


if __name__ == "__main__":
    main()
