"""How an example becomes the text and ids that a model is given: chat template or plain format."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from trb_mlx.config import PromptConfig
from trb_mlx.data.examples import Example, Message
from trb_mlx.errors import UserError

Formatter = Callable[[Example], tuple[str, tuple[int, ...]]]


def make_formatter(config: PromptConfig, tokenizer: Any) -> Formatter:
    """The function from an example to its prompt's text and ids.

    Args:
        config: `auto` takes a chat template where there is one, else the plain format.
        tokenizer: mlx-lm's TokenizerWrapper.

    Raises:
        UserError: a chat format without a template, or a plain one without `{prompt}`.
    """
    template = _template_text(config.chat_template)
    has_template = template is not None or bool(tokenizer.has_chat_template)
    if config.format == "plain" or (config.format == "auto" and not has_template):
        return _plain_formatter(config, tokenizer)
    if not has_template:
        raise UserError(
            "prompt.format is chat, but the model has no chat template; "
            "expected prompt.chat_template, or prompt.format: plain."
        )
    return _chat_formatter(config, tokenizer, template)


def _template_text(template: str | None) -> str | None:
    """A template is its own text if it has Jinja in it, else the path of a file that holds it."""
    if template is None or "{{" in template or "{%" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompt.chat_template {template} is neither a readable text file nor a Jinja "
            "template, expected one of them."
        ) from error


def _chat_formatter(config: PromptConfig, tokenizer: Any, template: str | None) -> Formatter:
    options: dict[str, Any] = {
        "add_generation_prompt": True,
        "enable_thinking": config.enable_thinking,
    }
    if template is not None:
        options["chat_template"] = template

    def format_example(example: Example) -> tuple[str, tuple[int, ...]]:
        messages = _with_system(example, config.system)
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            tokens = tokenizer.apply_chat_template(messages, tokenize=True, **options)
        except TemplateError as error:
            raise UserError(f"the chat template refused a prompt: {error}.") from error
        return text, tuple(int(token) for token in tokens)

    return format_example


def _with_system(example: Example, system: str | None) -> list[Message]:
    """The messages, behind the system prompt unless they bring one of their own."""
    if not system or example.system is not None:
        return list(example.turns)
    return [{"role": "system", "content": system}, *example.turns]


def _plain_formatter(config: PromptConfig, tokenizer: Any) -> Formatter:
    if "{prompt}" not in config.plain:
        raise UserError(f"prompt.plain is {config.plain!r}, expected a text with {{prompt}} in it.")

    def format_example(example: Example) -> tuple[str, tuple[int, ...]]:
        text = fill_plain(config.plain, example.text, example.system or config.system or "")
        return text, encode_prompt(tokenizer, text)

    return format_example


def fill_plain(plain: str, prompt: str, system: str) -> str:
    """`plain` with {prompt} and {system} filled in; any other brace stays as it is.

    A system text goes in front of the prompt where the format has no place for it.
    """
    if system and "{system}" not in plain:
        prompt = f"{system}\n\n{prompt}"
    values = {"prompt": prompt, "system": system}
    # One pass: a prompt that itself says {system} is left alone.
    return re.sub(r"\{(prompt|system)\}", lambda match: values[match[1]], plain)


def encode_prompt(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text with the BOS its model expects, once, and never an EOS added behind."""
    bare = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token
    if bos and text.startswith(bos):
        return tuple(bare)
    full = tokenizer.encode(text)
    if full and full[-1] in tokenizer.eos_token_ids and bare[-1:] != full[-1:]:
        full = full[:-1]
    return tuple(full)
