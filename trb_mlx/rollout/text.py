"""The text of rollouts: whole responses, and what each token adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trb_mlx.models.pair import Scorer
from trb_mlx.types import Rollout


def response_texts(scorer: Scorer, rollout: Rollout) -> list[str]:
    """The text of each rollout, without its stop token."""
    stop = scorer.merge.stop_id
    decode = scorer.model.tokenizer.decode
    return [
        decode([token for token in rollout.response(row) if token != stop])
        for row in range(len(rollout.jobs))
    ]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; bytes of an unfinished character come with its last."""
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(list(ids[:end]))
        if whole.endswith("\ufffd") or not whole.startswith(before):
            texts.append("")
            continue
        texts.append(whole[len(before) :])
        before = whole
    return texts
