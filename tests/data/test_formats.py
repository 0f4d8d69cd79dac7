"""Prompts as the model expects them: the chat template's own ids, or the plain format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.config import PromptConfig
from trb_mlx.data.examples import Example
from trb_mlx.data.formats import encode_prompt, fill_plain, make_formatter
from trb_mlx.errors import UserError

NO_THINKING = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


# The chat format


def test_chat_ids_are_the_templates_own(chat: Any) -> None:
    text, tokens = make_formatter(PromptConfig(), chat)(Example("2+2?"))
    assert text == f"<|im_start|>user\n2+2?<|im_end|>\n{NO_THINKING}"
    assert list(tokens) == chat.encode(text, add_special_tokens=False)
    assert chat.decode(list(tokens)) == text
    assert all(type(token) is int for token in tokens)


def test_thinking_is_asked_for_by_the_template(chat: Any) -> None:
    text, _ = make_formatter(PromptConfig(enable_thinking=True), chat)(Example("2+2?"))
    assert text.endswith("<|im_start|>assistant\n")


def test_a_system_prompt_goes_in_front_unless_the_example_has_one(chat: Any) -> None:
    format_example = make_formatter(PromptConfig(system="Box it."), chat)
    assert format_example(Example("Q"))[0].startswith("<|im_start|>system\nBox it.<|im_end|>\n")
    own = ({"role": "system", "content": "Mine."}, {"role": "user", "content": "Q"})
    text, _ = format_example(Example(own))
    assert text.startswith("<|im_start|>system\nMine.<|im_end|>\n")
    assert "Box it." not in text


@pytest.mark.parametrize("as_file", [False, True])
def test_a_template_of_the_config_wins(chat: Any, base: Any, as_file: bool, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    if as_file:
        (tmp_path / "mine.jinja").write_text(template)
        template = str(tmp_path / "mine.jinja")
    for tokenizer in (chat, base):
        text, tokens = make_formatter(PromptConfig(chat_template=template), tokenizer)(Example("Q"))
        assert text == "[Q]"
        assert list(tokens) == tokenizer.encode("[Q]", add_special_tokens=False)


def test_the_chat_format_needs_a_template(base: Any) -> None:
    with pytest.raises(UserError, match=r"prompt\.format is chat, but .*prompt\.chat_template"):
        make_formatter(PromptConfig(format="chat"), base)


def test_a_template_that_is_no_file_is_refused(base: Any) -> None:
    with pytest.raises(UserError, match=r"prompt\.chat_template none\.jinja is neither"):
        make_formatter(PromptConfig(chat_template="none.jinja"), base)


def test_a_template_that_refuses_is_one_sentence(base: Any) -> None:
    config = PromptConfig(chat_template="{{ raise_exception('no system role') }}")
    with pytest.raises(UserError, match="the chat template refused a prompt: no system role"):
        make_formatter(config, base)(Example("Q"))


def test_a_broken_template_is_one_sentence(base: Any) -> None:
    with pytest.raises(UserError, match="the chat template refused a prompt"):
        make_formatter(PromptConfig(chat_template="{% for %}"), base)(Example("Q"))


# The plain format


def test_auto_is_plain_without_a_template(base: Any) -> None:
    text, tokens = make_formatter(PromptConfig(), base)(Example("Compute 1+1."))
    assert text == "Compute 1+1.\n"
    assert tokens[0] == 0, "the BOS that the model expects"
    assert 1 not in tokens, "an EOS would end the answer before it begins"
    assert base.decode(list(tokens[1:])) == text


def test_plain_may_be_asked_for_despite_a_template(chat: Any) -> None:
    assert make_formatter(PromptConfig(format="plain"), chat)(Example("Q"))[0] == "Q\n"


def test_a_written_bos_is_not_doubled_and_a_written_eos_stays(base: Any) -> None:
    assert encode_prompt(base, "<s>a")[:2] == (0, *base.encode("a", add_special_tokens=False))
    assert encode_prompt(base, "a</s>")[-1] == 1


@given(prompt=st.text(max_size=20), system=st.text(min_size=1, max_size=20))
def test_plain_keeps_every_other_brace(prompt: str, system: str) -> None:
    assert (
        fill_plain("{s} {{x}} {system}|{prompt}", prompt, system)
        == f"{{s}} {{{{x}}}} {system}|{prompt}"
    )


def test_a_prompt_that_looks_like_a_format_is_left_alone() -> None:
    assert (
        fill_plain("{system}: {prompt}", "{system} {prompt} {0}", "S") == "S: {system} {prompt} {0}"
    )


def test_a_system_text_without_a_place_goes_in_front() -> None:
    assert fill_plain("Q: {prompt}\n", "1+1", "Be brief.") == "Q: Be brief.\n\n1+1\n"


def test_plain_needs_the_prompt(base: Any) -> None:
    with pytest.raises(UserError, match=r"prompt\.plain is 'Q: \{promt\}', expected .*\{prompt\}"):
        make_formatter(PromptConfig(plain="Q: {promt}"), base)
