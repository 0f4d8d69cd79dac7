"""Pre-training of the bundled pair in MLX, and its measurement on held-out problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from bundled_corpus import IGNORED, prompt_text
from mlx_lm.models import qwen3
from mlx_lm.models.cache import BatchKVCache
from tokenizers import Tokenizer

from trb_mlx.data.arithmetic import Problem

ANSWER_TOKENS = 48
# Sampling is batched by this many prompts; it bounds memory, not results.
SAMPLING_ROWS = 256


@dataclass(frozen=True)
class Phase:
    """One stretch of pre-training, on clean or on drifting documents."""

    drifts: bool
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Recipe:
    """One model of the pair."""

    role: str
    eos: str
    hidden: int
    layers: int
    feed_forward: int
    heads: int
    key_value_heads: int
    phases: tuple[Phase, ...]
    batch_size: int = 32


class Scores(NamedTuple):
    """Held-out figures: the share of right answers, and of right steps among steps written."""

    pass_rate: float
    step_accuracy: float


def build_model(settings: dict[str, object], seed: int) -> qwen3.Model:
    """Build a qwen3 model from its config.json dictionary, freshly initialised."""
    mx.random.seed(seed)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(settings))
    mx.eval(model.parameters())
    return model


def continuation_loss(model: qwen3.Model, tokens: mx.array, targets: mx.array) -> mx.array:
    """Average cross-entropy in nats over the targets that count.

    Args:
        model: the model in training.
        tokens: [B, T] ids.
        targets: [B, T] ids to predict, or `IGNORED`.
    """
    counted = targets != IGNORED
    losses = nn.losses.cross_entropy(model(tokens), mx.maximum(targets, 0))
    return (losses * counted).sum() / counted.sum()


def pretrain(
    model: qwen3.Model,
    data: Iterator[tuple[np.ndarray, np.ndarray]],
    steps: int,
    learning_rate: float,
    label: str,
) -> None:
    """Train in place with AdamW: a short warm-up, then a cosine down to 1% of the peak rate."""
    warm_up = max(steps // 20, 1)
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0.0, learning_rate, warm_up),
            optim.cosine_decay(learning_rate, steps - warm_up, learning_rate / 100),
        ],
        [warm_up],
    )
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.99], weight_decay=0.01, bias_correction=True)
    loss_and_grad = nn.value_and_grad(model, continuation_loss)
    for step, (tokens, targets) in enumerate(data, start=1):
        loss, gradients = loss_and_grad(model, mx.array(tokens), mx.array(targets))
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
        if step % 100 == 0 or step == steps:
            print(f"{label}: step {step} of {steps}, loss {loss.item():.4f} nats", flush=True)


def sample(
    model: qwen3.Model, tokenizer: Tokenizer, prompts: list[str], stop: int, temperature: float
) -> list[str]:
    """Continue each prompt by at most `ANSWER_TOKENS` tokens; temperature 0 is greedy."""
    texts: list[str] = []
    for start in range(0, len(prompts), SAMPLING_ROWS):
        ids = [e.ids for e in tokenizer.encode_batch(prompts[start : start + SAMPLING_ROWS])]
        rows = _sample_rows(model, ids, stop, temperature)
        texts += [tokenizer.decode(_until(row, stop)) for row in rows]
    return texts


def _sample_rows(
    model: qwen3.Model, prompts: list[list[int]], stop: int, temperature: float
) -> list[list[int]]:
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    padded = [[0] * gap + prompt for gap, prompt in zip(padding, prompts, strict=True)]
    cache = [BatchKVCache(padding) for _ in model.layers]
    tokens, drawn, finished = mx.array(padded), [], mx.zeros(len(prompts), mx.bool_)
    for _ in range(ANSWER_TOKENS):
        logits = model(tokens, cache=cache)[:, -1]
        is_greedy = temperature == 0
        token = logits.argmax(-1) if is_greedy else mx.random.categorical(logits / temperature)
        drawn.append(token)
        tokens, finished = token[:, None], finished | (token == stop)
        if finished.all().item():
            break
    rows: Any = mx.stack(drawn, axis=1).tolist()
    return list(rows)


def _until(row: list[int], stop: int) -> list[int]:
    return row[: row.index(stop)] if stop in row else row


def is_right(text: str, problem: Problem) -> bool:
    """Tell whether the text's first answer line states the problem's answer."""
    found = re.search(r"^Answer: (\d+)$", text, re.MULTILINE)
    return found is not None and found[1] == problem.answer


def measure(
    model: qwen3.Model,
    tokenizer: Tokenizer,
    held_out: list[Problem],
    stop: int,
    temperature: float,
    seed: int,
) -> Scores:
    """Score one continuation of each held-out problem.

    A step counts as written where a line of digits and signs stands, and as right where it is
    the solution's line at that place; after a mistake no further step counts. So step accuracy
    is that of a step whose predecessors were right, given that the model did not drift.
    """
    mx.random.seed(seed)
    texts = sample(model, tokenizer, [prompt_text(p) for p in held_out], stop, temperature)
    pairs = list(zip(texts, held_out, strict=True))
    steps = [_count_steps(text, problem) for text, problem in pairs]
    right, written = (sum(counts) for counts in zip(*steps, strict=True))
    passed = sum(is_right(text, problem) for text, problem in pairs)
    return Scores(passed / len(pairs), right / max(written, 1))


def _count_steps(text: str, problem: Problem) -> tuple[int, int]:
    """Count right and written steps up to the first drift or mistake."""
    right = written = 0
    for line, step in zip(text.split("\n"), problem.solution.split("\n")[:-1], strict=False):
        if not re.fullmatch(r"\d+[-+*]\d+=\d+", line):
            break
        written += 1
        if line != step:
            break
        right += 1
    return right, written
