"""A look at what both models are given and say first, before a run spends hours on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.numerics import kl_divergence
from trb_mlx.types import Prompt

SHOWN = 160  # characters of a prompt
RARE = 1e-4  # a first token that the student gives less is far outside what it says
ENDS = 0.5  # of the mass on the stop event, before anything is said
TAIL = 3  # tokens at a prompt's end among which an end of turn is no generation prompt


class _First(NamedTuple):
    """What a model gives to the first token of a response."""

    logprobs: mx.array  # [1, V]
    stop_mass: float


def preflight(pair: Pair, prompt: Prompt) -> Iterator[str]:
    """What both models read of an example, how they begin to answer it, and what looks wrong.

    The KL is KL(π_S‖π_T) of the first token, in nats.
    """
    texts = {"student": prompt.text, "teacher": prompt.text_for(teacher=True)}
    if texts["student"] == texts["teacher"]:
        yield f"preflight: both models read {shown(prompt.text)}"
    else:
        yield from (f"preflight: the {role} reads {shown(text)}" for role, text in texts.items())
    student, teacher = (_first(each, prompt) for each in (pair.student, pair.teacher))
    distance = _number(kl_divergence(student.logprobs, teacher.logprobs))
    yield (
        f"preflight: first token: KL(student‖teacher) {distance:.3f} nats, mass on the stop event "
        f"{student.stop_mass:.2g} (student) and {teacher.stop_mass:.2g} (teacher)"
    )
    for role, scorer, first in (
        ("student", pair.student, student),
        ("teacher", pair.teacher, teacher),
    ):
        for what in _suspicions(scorer, prompt, first):
            yield f"warning: the {role}'s {what}"
    top = int(_number(mx.argmax(teacher.logprobs, axis=-1)))
    likely, rare = (_number(mx.exp(each.logprobs[0, top])) for each in (teacher, student))
    if rare < RARE < likely and likely > 0.5:
        token = pair.student.model.tokenizer.decode([top])
        yield (
            f"warning: the teacher begins with {token!r} ({likely:.0%}), to which the student "
            f"gives {rare:.1g}; do both read the same kind of prompt?"
        )


def shown(text: str) -> str:
    """A prompt in quotes, its middle left out where it is long."""
    half = SHOWN // 2
    return repr(text if len(text) <= SHOWN else f"{text[:half]} … {text[-half:]}")


def _number(value: mx.array) -> float:
    return float(np.asarray(value).item())


def _first(scorer: Scorer, prompt: Prompt) -> _First:
    ids = mx.array([prompt.tokens_for(scorer.is_teacher)])
    first = softmax(scorer.logits(ids)[:, -1])
    return _First(first.logprobs, _number(mx.exp(first.logprobs[0, scorer.merge.stop_id])))


def _suspicions(scorer: Scorer, prompt: Prompt, first: _First) -> Iterator[str]:
    """What looks wrong about a prompt, in words that follow whose it is."""
    tokens = prompt.tokens_for(scorer.is_teacher)
    bos = scorer.model.tokenizer.bos_token_id
    if bos is not None and tokens[:2] == (bos, bos):
        yield "prompt begins with BOS twice: the template writes it, and so does the tokenizer"
    if set(tokens[-TAIL:]) & {*scorer.model.stop_ids}:
        yield "prompt ends with an end of turn: its template has no generation prompt"
    if prompt.text_for(scorer.is_teacher).rstrip().endswith("<think>"):
        yield "prompt leaves <think> open: it answers inside its thoughts"
    if first.stop_mass > ENDS:
        yield f"mass on the stop event before any answer is {first.stop_mass:.0%}"
