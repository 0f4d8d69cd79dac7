"""Decoding and the law of speculative rollouts on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.backend import on_gpu, on_metal
from trb_mlx.config import BehaviorConfig, ModelConfig
from trb_mlx.doctor import reference
from trb_mlx.doctor.check import Finding
from trb_mlx.doctor.tiny import STOP, tiny_pair
from trb_mlx.models.pair import Pair, Scorer, load_pair
from trb_mlx.models.precision import bound
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.decoder import RowDecoder
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import sample_blended
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

BUNDLED = ("bundled:arithmetic-student", "bundled:arithmetic-teacher")
TEXTS = ("Compute 12+7.", "Compute (12+7-5)*3.", "12+7=19\n19-5=14\n", "Compute 3*3*3-20+1.")
# Blocks that rows read, and how many tokens of each row are then taken back.
BLOCKS = ((3, (0, 2, 1)), (5, (4, 0, 5)), (1, (0, 0, 1)))

VOCAB, LENGTH, BUDGET = 5, 4, 0.2
PROMPTS = ((1, 2, 3, 4, 1), (3,), (2, 2, 4))
# Of each prompt: about 36,000 tokens, enough to see every uniform of the drafts stretched by 6%.
COPIES = 4_000
# MLX's CUDA back end refuses a pass of 1,500 rows, as far as was tried (docs/log.md).
ROWS, ROWS_ON_CUDA = 2_000, 64


def batched_decoding() -> Sequence[Finding]:
    """Ragged rows, prefilled, trimmed and filtered, against each text read at once and alone.

    The figures are total variations of next-token distributions of the bundled pair.
    """
    pair = load_pair(*(ModelConfig(model=name, dtype="float32") for name in BUNDLED))
    return [
        Finding(f"{role}'s total variation", _decoding_gap(scorer), bound(1e-4, 5e-2))
        for role, scorer in (("student", pair.student), ("teacher", pair.teacher))
    ]


def _decoding_gap(scorer: Scorer) -> float:
    encode = scorer.model.tokenizer.encode
    prompts = [tuple(encode(text, add_special_tokens=False)) for text in TEXTS]
    decoder, rng = RowDecoder(scorer), np.random.default_rng(0)
    decoder.prefill(prompts[:3])
    texts = [list(prompt[:-1]) for prompt in prompts[:3]]
    gaps = []
    for count, unused in BLOCKS:
        gaps.append(_read(scorer, decoder, texts, count, rng))
        decoder.trim(np.array(unused))
        texts = [text[: len(text) - gone] for text, gone in zip(texts, unused, strict=True)]
    decoder.filter([0, 2])
    decoder.prefill(prompts[3:])
    texts = [texts[0], texts[2], list(prompts[3][:-1])]
    return max(*gaps, _read(scorer, decoder, texts, 4, rng))


def _read(
    scorer: Scorer,
    decoder: RowDecoder,
    texts: list[list[int]],
    count: int,
    rng: np.random.Generator,
) -> float:
    """Let every row read `count` tokens more; the largest distance from reading alone."""
    new = rng.integers(1, scorer.merge.size, size=(len(texts), count))
    batched = np.asarray(scorer.logits_of(decoder.hidden(mx.array(new))))
    gaps = []
    for row, text in enumerate(texts):
        text += new[row].tolist()
        alone = np.asarray(scorer.logits(mx.array([text])))[0, -count:]
        both = (np.exp(reference.normalize(logits)) for logits in (batched[row], alone))
        gaps.append(0.5 * np.abs(np.subtract(*both)).sum(-1).max())
    return float(max(gaps))


def law_of_rollouts() -> Sequence[Finding]:
    """Whole sequences of a tiny pair against their probabilities, for drafts of 1 and 4 tokens.

    One seed draws the same rollouts at either length, but where rounding depends on the length
    of a block and a uniform lies within it of a boundary.
    """
    pair = tiny_pair(VOCAB, 0.35)
    jobs = [
        Job(Prompt(place, "", prompt), RolloutKey(11, 0, place, copy))
        for copy in range(COPIES)
        for place, prompt in enumerate(PROMPTS)
    ]
    laws = [exact_law(pair, prompt) for prompt in PROMPTS]
    rollouts = {block: _draw(pair, jobs, block) for block in (1, 4)}
    fits = [
        Finding(f"p of drafts of {block}", _law_p(rollout, laws), reference.LEVEL, at_least=True)
        for block, rollout in rollouts.items()
    ]
    one, four = (_sequences(rollout) for rollout in rollouts.values())
    same = sum(a == b for a, b in zip(one, four, strict=True)) / len(jobs)
    per_round = float(rollouts[4].lengths.sum()) / rollouts[4].rounds
    return [
        *fits,
        Finding("equal rollouts", same, bound(0.999, 0.97), at_least=True),
        # Without it, drafts of 4 might silently have been drafts of 1.
        Finding("tokens a round", per_round, 1.2, at_least=True),
    ]


def _draw(pair: Pair, jobs: list[Job], block: int) -> Rollout:
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=BUDGET))
    rows = ROWS_ON_CUDA if on_gpu() and not on_metal() else ROWS
    sampling = Sampling(max_tokens=LENGTH, batch_size=rows)
    return sample_blended(pair, jobs, sampling, behavior, BUDGET, Fixed(block))


def _sequences(rollout: Rollout) -> list[tuple[int, ...]]:
    return [tuple(rollout.response(row)) for row in range(len(rollout.jobs))]


def _law_p(rollout: Rollout, laws: list[dict[tuple[int, ...], float]]) -> float:
    """The p of all prompts' sequences together."""
    drawn = _sequences(rollout)
    counts, probabilities = [], []
    for place, law in enumerate(laws):
        seen = Counter(drawn[place :: len(laws)])
        counts += [seen[sequence] for sequence in law]
        probabilities += [mass / len(laws) for mass in law.values()]
    return reference.chi_square_p(np.array(counts), np.array(probabilities))


def exact_law(pair: Pair, prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """Every sequence that a prompt can be followed by, with its probability under μ.

    Logits come from passes without a cache; weights and blends are found in float64.
    """
    law: dict[tuple[int, ...], float] = {}
    open_: dict[tuple[int, ...], float] = {(): 1.0}
    for place in range(LENGTH):
        texts = mx.array([[*prompt, *sequence] for sequence in open_])
        student, teacher = (
            reference.normalize(np.asarray(scorer.logits(texts)[:, -1]))
            for scorer in (pair.student, pair.teacher)
        )
        weight = reference.blend_weight(student, teacher, BUDGET)
        rows = np.exp(reference.blend(student, teacher, weight))
        grown: dict[tuple[int, ...], float] = {}
        for (sequence, mass), row in zip(open_.items(), rows, strict=True):
            for token in range(VOCAB):
                ends = token == STOP or place + 1 == LENGTH
                (law if ends else grown)[(*sequence, token)] = mass * float(row[token])
        open_ = grown
    return law
