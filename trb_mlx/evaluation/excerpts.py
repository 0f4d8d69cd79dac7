"""A rollout as text, token by token, with what the two models think of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trb_mlx.evaluation.diagnostics import Excerpt
from trb_mlx.models.pair import Scorer
from trb_mlx.types import Rollout

LONGEST = 200  # tokens shown of a rollout


def excerpt(scorer: Scorer, rollout: Rollout, row: int, reward: float | None) -> Excerpt:
    """One row of a rollout with records; the stop token is shown as `⟨stop⟩`."""
    records = rollout.records
    assert records is not None
    ids = rollout.response(row)
    ratios = (records.teacher_logprob - records.student_logprob)[row, : len(ids)].tolist()
    pieces = token_texts(scorer.model.tokenizer, ids[:LONGEST])
    if len(ids) <= LONGEST and ids[-1] == scorer.merge.stop_id:
        pieces[-1] = "⟨stop⟩"
    return Excerpt(
        pieces=pieces,
        scores=[round(float(ratio), 3) for ratio in ratios[:LONGEST]],
        score=round(sum(ratios) / len(ratios), 4),
        length=len(ids),
        stopped=bool(rollout.stopped[row]),
        reward=reward,
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; bytes of an unfinished character come with its last."""
    texts, told = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(list(ids[:end]))
        if whole.endswith("\ufffd") or not whole.startswith(told):
            texts.append("")
            continue
        texts.append(whole[len(told) :])
        told = whole
    return texts
