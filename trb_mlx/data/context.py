"""Prompts that leave room for an answer within the models' context, in training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trb_mlx.config import Config
from trb_mlx.data.held_out import PromptSplit
from trb_mlx.errors import UserError
from trb_mlx.types import Prompt, Say


def shortest_context(contexts: Iterable[int | None]) -> int | None:
    """The context that all models have, in tokens; None where none says how long its own is."""
    return min((context for context in contexts if context is not None), default=None)


def longest_prompt(context: int, max_tokens: int, max_prompt_tokens: int) -> int:
    """The longest prompt that is used, in tokens, for answers of up to `max_tokens`.

    A prompt may take what the longest answer leaves of the context. Where that is little, it may
    take up to a quarter of the context all the same, and answers end earlier.
    """
    return max(context - max_tokens, min(max_prompt_tokens, context // 4))


def longest_read(prompt: Prompt) -> int:
    """The tokens of the longer of what the student and the teacher read."""
    return max(len(prompt.tokens), len(prompt.teacher_tokens or ()))


def fit_context(
    prompts: Sequence[Prompt],
    context: int | None,
    max_tokens: int,
    max_prompt_tokens: int,
    what: str,
    say: Say,
) -> tuple[Sequence[Prompt], int]:
    """The prompts within the context, and how long answers to them may be, in tokens.

    One long prompt among many is left out: it never shortens the answers to all others.

    Raises:
        UserError: none is left.
    """
    if context is None:
        return prompts, max_tokens
    longest = longest_prompt(context, max_tokens, max_prompt_tokens)
    kept = [prompt for prompt in prompts if longest_read(prompt) <= longest]
    left_out = f"over {longest} tokens: the context is {context}, and answers take {max_tokens}"
    if not kept:
        raise UserError(
            f"no {what} prompt is left: all {len(prompts)} are {left_out}; "
            "expected shorter prompts or answers."
        )
    if len(kept) < len(prompts):
        say(f"left out {len(prompts) - len(kept)} of {len(prompts)} {what} prompts {left_out}")
    limit = min(max_tokens, context - max(longest_read(prompt) for prompt in kept))
    if limit < max_tokens:
        say(f"answers end after {limit} tokens, not {max_tokens}: the context is {context} tokens")
    return kept, limit


def fit_split(
    config: Config, prompts: PromptSplit, contexts: Iterable[int | None], say: Say
) -> tuple[Config, PromptSplit]:
    """A run's prompts within the models' context, and its config with answers that are too.

    Raises:
        UserError: no prompt is left to train on, or to evaluate on.
    """
    context, longest = shortest_context(contexts), config.data.max_prompt_tokens
    drawn = config.rollout.max_tokens
    train, rollout_tokens = fit_context(prompts.train, context, drawn, longest, "training", say)
    wanted = config.eval.max_tokens or drawn
    held, eval_tokens = fit_context(prompts.eval, context, wanted, longest, "held-out", say)
    changes = {
        "rollout": config.rollout.model_copy(update={"max_tokens": rollout_tokens}),
        "eval": config.eval.model_copy(update={"max_tokens": eval_tokens}),
    }
    return config.model_copy(update=changes), PromptSplit(train, held)
