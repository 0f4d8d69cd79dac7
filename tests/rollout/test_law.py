"""The law of whole sequences, known in full: what is emitted is the behavior policy's.

At least 200,000 tokens for each behavior policy and way of drawing, chi-square against every
sequence's exact probability, fixed seed. The bound is five standard deviations of the statistic.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.llama import Model, ModelArgs

from trb_mlx.config import BehaviorConfig
from trb_mlx.models.loading import LanguageModel
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.vocab import StopMerge
from trb_mlx.rollout.behavior import BEHAVIORS, make_behavior
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

VOCAB, STOP, LENGTH, BUDGET, TOP_K = 5, 0, 4, 0.2, 3
PROMPTS = ((1, 2, 3, 4, 1), (3,), (2, 2, 4))
COPIES = 24_000  # of each prompt: about 72,000 sequences of 3 tokens

Law = dict[tuple[int, ...], float]


@cache
def tiny_pair() -> Pair:
    """Two models of five tokens, as far apart as to reject a third of the drafts."""
    return Pair(_scorer(seed=1), _scorer(seed=5))


def _scorer(seed: int) -> Scorer:
    mx.random.seed(seed)
    module = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=16,
            num_attention_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=VOCAB,
            tie_word_embeddings=False,
        )
    )
    module.update({"lm_head": {"weight": 0.35 * mx.random.normal((VOCAB, 16))}})
    mx.eval(module.parameters())
    model = LanguageModel(f"tiny {seed}", module, None, {})  # type: ignore[arg-type]
    return Scorer(model, StopMerge(VOCAB, STOP, (STOP,), ()))


def exact_law(kind: str, prompt: tuple[int, ...]) -> Law:
    """Every sequence that a prompt can be followed by, with its probability under μ."""
    pair, behavior = (
        tiny_pair(),
        make_behavior(BehaviorConfig(kind=kind, budget=BUDGET, top_k=TOP_K)),
    )
    law: Law = {}
    open_ = {(): 1.0}
    for _ in range(LENGTH):
        texts = mx.array([[*prompt, *sequence] for sequence in open_])
        student, teacher = (
            softmax(scorer.logits(texts)[:, -1]) for scorer in (pair.student, pair.teacher)
        )
        rows = np.asarray(behavior.blend(student, teacher, mx.array(BUDGET)).probs)
        grown: Law = {}
        for (sequence, mass), row in zip(open_.items(), rows.astype(np.float64), strict=True):
            for token in range(VOCAB):
                ends = token == STOP or len(sequence) + 1 == LENGTH
                (law if ends else grown)[(*sequence, token)] = mass * row[token]
        open_ = grown
    return law


def chi_square(counts: Counter[tuple[int, ...]], law: Law) -> tuple[float, int]:
    """The statistic over the likelier sequences and one cell of the rest; its cells."""
    total = counts.total()
    cells = [(counts[s], p * total) for s, p in law.items() if p * total >= 10]
    cells.append((total - sum(f for f, _ in cells), total - sum(e for _, e in cells)))
    return sum((f - e) ** 2 / e for f, e in cells if e > 1e-6 * total), len(cells)


def draw(kind: str, block: int, jobs: list[Job]) -> Rollout:
    behavior = make_behavior(BehaviorConfig(kind=kind, budget=BUDGET, top_k=TOP_K))
    sampling = Sampling(max_tokens=LENGTH, batch_size=1_500)
    if behavior.needs_teacher(0):
        return sample_blended(tiny_pair(), jobs, sampling, behavior, BUDGET, Fixed(block))
    return sample(tiny_pair().student, jobs, sampling)


@pytest.mark.parametrize(("kind", "block"), [*((kind, 3) for kind in BEHAVIORS), ("trb", 1)])
def test_sequences_have_exactly_the_law_of_the_behavior(kind: str, block: int) -> None:
    """Ragged prompts, stops inside blocks, rows that reject at different places, rows that leave
    and others that come; the same sequences under the student's law must not fit."""
    jobs = [
        Job(Prompt(i, "", prompt), RolloutKey(11, 0, i, n))
        for n in range(COPIES)
        for i, prompt in enumerate(PROMPTS)
    ]
    rollout = draw(kind, block, jobs)
    assert rollout.lengths.sum() >= 200_000
    some = draw(kind, 4 - block, jobs[:3_000])  # token by token, and blocks: the very same
    np.testing.assert_array_equal(some.tokens, rollout.tokens[:3_000])
    tokens = rollout.tokens.tolist()
    blended = make_behavior(BehaviorConfig(kind=kind, budget=BUDGET, top_k=TOP_K)).needs_teacher(0)
    for i, prompt in enumerate(PROMPTS):
        counts = Counter(
            tuple(tokens[row][: rollout.lengths[row]]) for row in range(i, len(jobs), len(PROMPTS))
        )
        statistic, cells = chi_square(counts, exact_law(kind, prompt))
        assert cells > 80
        assert statistic < cells + 5 * np.sqrt(2 * cells)
        if blended:
            assert chi_square(counts, exact_law("vanilla", prompt))[0] > 5 * cells
