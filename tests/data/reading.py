"""Reading a source in one call, whole or up to its complaint."""

from __future__ import annotations

from typing import Any

import pytest

from trb_mlx.config import PromptSource
from trb_mlx.data.examples import Example
from trb_mlx.data.sources import read_examples
from trb_mlx.errors import UserError

GSM8K = {"question": "How many?", "answer": "3 * 400 = <<3*400=1200>>1,200\n#### 1,200"}


def read(source: str, count: int | None = None, **keys: Any) -> list[Example]:
    return list(read_examples(PromptSource(source=source, **keys), count, seed=0))


def complaint(source: str, count: int | None = None, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(source, count, **keys)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence
