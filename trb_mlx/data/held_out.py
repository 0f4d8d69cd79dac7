"""Training and held-out prompts of a run, disjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trb_mlx.config import Config, PromptSource
from trb_mlx.data.prompts import load_prompts
from trb_mlx.data.sources import is_generated, split_files
from trb_mlx.data.teacher_prompts import make_teacher_prompts
from trb_mlx.errors import UserError
from trb_mlx.types import Prompt, Say

# Prompts read from a source that has no end, unless `limit` says otherwise (the paper's number).
ENDLESS_PROMPTS = 25_600


@dataclass(frozen=True)
class PromptSplit:
    """The prompts to train on, and to evaluate on."""

    train: Sequence[Prompt]
    eval: Sequence[Prompt]


def with_held_out(config: Config, kept: Config | None) -> Config:
    """The config with the `valid.jsonl` beside its training data as `data.eval`, where it has none.

    A resumed run, whose config is `kept`, keeps the held-out prompts that it began with.
    """
    if config.data.eval is not None:
        return config
    source = _valid_file(config) if kept is None else kept.data.eval
    return config.model_copy(update={"data": config.data.model_copy(update={"eval": source})})


def split_prompts(
    config: Config, tokenizer: object, say: Say, teachers: object = None
) -> PromptSplit:
    """Both sets of a run; how many they are, what was left out and what they share is said.

    With the teacher's tokenizer, `teachers`, they have the teacher's own prompts, if it has any.

    Raises:
        UserError: a source cannot be read, or nothing is left of it.
    """
    prompts = _split(config, tokenizer, say, teachers)
    say(f"{len(prompts.train)} prompts to train on, {len(prompts.eval)} held out")
    trained_on = {prompt.tokens for prompt in prompts.train}
    shared = sum(prompt.tokens in trained_on for prompt in prompts.eval)
    if shared:
        count = "all" if shared == len(prompts.eval) else f"{shared} of the {len(prompts.eval)}"
        say(f"warning: {count} held-out prompts are trained on too, so they measure no transfer")
    return prompts


def _split(config: Config, tokenizer: object, say: Say, teachers: object) -> PromptSplit:
    source, held_source = config.data.train, held_out_source(config)
    is_endless = source.streaming or is_generated(source)
    count = source.limit or (ENDLESS_PROMPTS if is_endless else None)
    if held_source is not None:
        train = _load(config, source, tokenizer, count, say, teachers)
        return PromptSplit(train, held_out_prompts(config, tokenizer, say, teachers))
    wanted = config.eval.prompts
    most = None if count is None else count + wanted
    every = _load(config, source, tokenizer, most, say, teachers)
    held = min(wanted, len(every) // 2)
    if not held:
        raise UserError(
            f"data.train.source {source.source} has one usable prompt; "
            "expected at least two, or data.eval for the evaluation."
        )
    if _valid_file(config) is not None:
        say(
            f"note: a new run would hold {source.source}/valid.jsonl out; this one keeps the last "
            f"{held} prompts of its training data, as it began"
        )
    return PromptSplit(every[:-held], every[-held:])


def held_out_prompts(
    config: Config, tokenizer: object, say: Say, teachers: object = None
) -> Sequence[Prompt]:
    """The evaluation's prompts alone, as `split_prompts` makes them.

    Raises:
        UserError: as `split_prompts`.
    """
    source = held_out_source(config)
    if source is None:
        return _split(config, tokenizer, say, teachers).eval
    count = source.limit or config.eval.prompts
    prompts = _load(config, source, tokenizer, count, say, teachers)
    return prompts[: config.eval.prompts]


def _valid_file(config: Config) -> PromptSource | None:
    """The `valid.jsonl` of an mlx-lm folder whose `train.jsonl` is trained on."""
    source = config.data.train
    folder = Path(source.source).expanduser()
    if source.split != "train" or not folder.is_dir():
        return None
    files = split_files(folder)
    if "train" not in files or "valid" not in files or not files["valid"].stat().st_size:
        return None
    return source.model_copy(update={"split": "valid", "limit": None})


def held_out_source(config: Config) -> PromptSource | None:
    """`data.eval`, a generated source's test split, or None: hold prompts of `data.train` out."""
    source = config.data.train
    if config.data.eval is None and is_generated(source):
        return PromptSource(source=source.source, split="test")
    return config.data.eval


def _load(
    config: Config,
    source: PromptSource,
    tokenizer: object,
    count: int | None,
    say: Say,
    teachers: object,
) -> Sequence[Prompt]:
    own = None if teachers is None else make_teacher_prompts(config, teachers)
    seed = config.train.seed
    loaded = load_prompts(source, config.data, config.prompt, tokenizer, seed, count, own)
    left_out = loaded.left_out(config.data.max_prompt_tokens)
    if left_out:
        say(f"{source.source} ({source.split}): left out {left_out}; {len(loaded.prompts)} remain")
    for note in loaded.notes:
        say(f"{source.source} ({source.split}): {note}")
    return loaded.prompts
