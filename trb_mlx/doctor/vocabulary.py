"""What is chosen of the widest vocabulary, by numpy's sorts beside."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.doctor import reference
from trb_mlx.doctor.check import Finding
from trb_mlx.doctor.solving import WIDE, language_rows
from trb_mlx.ops.distribution import top_k
from trb_mlx.ops.sampling import nucleus

ROWS, SUPPORT, POSSIBLE, TOP_P = 3, 16, 5, 0.9


def wide_choices() -> Sequence[Finding]:
    """The likeliest ids of a row, in one row of which few are possible; and a row's nucleus."""
    rng = np.random.default_rng(6)
    logits = language_rows(rng, ROWS, WIDE)
    logits[0, rng.permutation(WIDE)[POSSIBLE:]] = -np.inf
    order = np.argsort(-logits, axis=-1, kind="stable")
    likeliest = order[:, :SUPPORT].tolist()
    likeliest[0] = likeliest[0][:POSSIBLE]  # any others are as good as the rest
    chosen = np.asarray(top_k(mx.array(logits), SUPPORT))
    missed = sum(len(set(ids) - set(row)) for ids, row in zip(likeliest, chosen, strict=True))
    twice = sum(SUPPORT - len(set(row)) for row in chosen.tolist())
    logprobs = np.stack([reference.normalize(row) for row in logits[1:]])
    kept = np.asarray(nucleus(mx.array(logprobs.astype(np.float32)), TOP_P)) > -np.inf
    falling = -np.sort(-np.exp(logprobs), axis=-1)
    sizes = 1 + (np.cumsum(falling, axis=-1) < TOP_P).sum(-1)
    least = falling[np.arange(len(sizes)), sizes - 1]
    # The float32 sum may reach the nucleus's mass a token early or late.
    wrong = (kept != (np.exp(logprobs) >= least[:, None])).sum(-1)
    return (
        Finding("likeliest ids missed or twice", float(missed + twice), 0.0),
        Finding("nucleus differs by a share of its tokens", float((wrong / sizes).max()), 1e-3),
    )
