"""How near a damaged student is to its teacher: reverse KL, agreement, perplexity, answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from trb_mlx.config import Config, EvalConfig
from trb_mlx.evaluation.distances import mean_reverse_kl
from trb_mlx.evaluation.evaluator import held_out_rollouts
from trb_mlx.evaluation.run import generate
from trb_mlx.evaluation.target import Target
from trb_mlx.files import read_lines
from trb_mlx.models.pair import Pair
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.types import Prompt

ROWS = 4  # scored at once: a row of 200 tokens has 40 MB of logits
QUESTIONS = (
    "What is the capital of France?",
    "Name three things that a bee needs.",
    "Tom has 3 apples and buys 4 more. How many apples has he?",
)
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class HeldOut:
    """What every model is measured on: prompts to answer and texts to read."""

    prompts: Sequence[Prompt]
    texts: Sequence[Sequence[int]]
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Measures:
    """`reverse_kl` in nats a token, on own rollouts; the rest on held-out texts."""

    reverse_kl: float
    top1_agreement: float
    perplexity: float
    answers: dict[str, str]


def gsm8k_texts(path: Path, count: int) -> list[tuple[str, str]]:
    """Questions and worked answers, without the calculator's marks."""
    rows = read_lines(path)[:count]
    return [(row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in rows]


def measure(pair: Pair, held_out: HeldOut, config: Config) -> Measures:
    """Everything about the student of a pair; rollouts at temperature 1, answers greedy."""
    settings = EvalConfig(max_tokens=held_out.max_tokens)
    rollout = held_out_rollouts(
        pair.student, held_out.prompts, settings, held_out.seed, config.rollout.batch_size
    )
    reverse_kl = mean_reverse_kl(pair, rollout, ROWS)
    agreement, perplexity = read_texts(pair, held_out.texts)
    target = Target("student", pair.student, config)
    answers = {q: generate(target, q, max_tokens=ANSWER_TOKENS) for q in QUESTIONS}
    return Measures(reverse_kl, agreement, perplexity, answers)


def read_texts(pair: Pair, texts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """How often both models' likeliest next token is one, and the student's perplexity."""
    agreed, surprise, count = 0, 0.0, 0
    for start in range(0, len(texts), ROWS):
        rows = texts[start : start + ROWS]
        longest = max(map(len, rows))
        ids = mx.array([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = np.arange(longest - 1)[None] < np.array([len(row) - 1 for row in rows])[:, None]
        student, teacher = (s.logits(ids)[:, :-1] for s in (pair.student, pair.teacher))
        chosen = mx.take_along_axis(log_softmax(student), ids[:, 1:, None], axis=-1)[..., 0]
        same = mx.argmax(student, axis=-1) == mx.argmax(teacher, axis=-1)
        mx.eval(chosen, same)
        agreed += int(np.asarray(same)[mask].sum())
        surprise -= float(np.asarray(chosen)[mask].sum(dtype=np.float64))
        count += int(mask.sum())
    return agreed / count, float(np.exp(surprise / count))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: one line a model, then everybody's answers."""
    lines = [
        "| model | reverse KL | top-1 agreement | perplexity | tokens | CPU time | time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results.items():
        spent = ["", "", ""]
        if row["tokens"]:
            minutes = (row["cpu_seconds"] / 60, row["seconds"] / 60)
            spent = [f"{row['tokens']:,}", *(f"{value:.1f} min" for value in minutes)]
        figures = [f"{row['reverse_kl']:.3f}", f"{row['top1_agreement']:.3f}"]
        cells = [name, *figures, f"{row['perplexity']:.2f}", *spent]
        lines.append(f"| {' | '.join(cells)} |")
    for question in QUESTIONS:
        lines += ["", f"**{question}**", ""]
        lines += [f"- {name}: {row['answers'][question]!r}" for name, row in results.items()]
    return "\n".join(lines)
