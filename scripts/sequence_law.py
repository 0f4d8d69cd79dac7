"""The law of whole sequences, known in full: what is emitted is the behavior policy's.

    python scripts/sequence_law.py

Chi-square against every sequence's exact probability under models of five tokens, in blocks: ragged
prompts, stops inside blocks, rows that reject at different places, rows that leave and others that
come. Here for pairs of recurrent families; `tests/rollout/test_law.py` has llama, every behavior
policy, and these pairs with fewer tokens.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import click
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.config import BehaviorConfig
from trb_mlx.models.loading import LanguageModel
from trb_mlx.models.mlxlm import make_model
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.vocab import StopMerge
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

VOCAB, STOP, LENGTH, BUDGET, TOP_K = 5, 0, 4, 0.2, 3
PROMPTS = ((1, 2, 3, 4, 1), (3,), (2, 2, 4))
# What a teacher with prompts of its own reads: longer, shorter, and with another last token.
OWN = ((2, 1), (4, 4, 1, 2, 3, 2), (2, 2, 1))
BATCH = 1_500
DEVIATIONS = 5  # of the statistic above its cells that pass

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
    "rope_theta": 1e4,
    "max_position_embeddings": 64,
}
DELTA = {
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "head_dim": 8,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "partial_rotary_factor": 0.5,
}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 8,
    "mlp_only_layers": [],
    "moe_intermediate_size": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 1},
    "qwen3_5": {"text_config": SIZES | DELTA},
    "qwen3_next": DELTA | EXPERTS,
    "lfm2": {
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 16,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "mamba2": {
        "num_hidden_layers": 1,
        "num_heads": 2,
        "head_dim": 16,
        "state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": 2,
        "layer_norm_epsilon": 1e-5,
    },
}
HYBRIDS = tuple(family for family in FAMILIES if family != "llama")
HEADS = ("lm_head.weight", "embed_tokens.weight")  # where a family has no head of its own

Sequence = tuple[int, ...]
Law = dict[Sequence, float]


@cache
def tiny_pair(student: str = "llama", teacher: str = "llama") -> Pair:
    """Two models of five tokens, as far apart as to reject a third of the drafts."""
    return Pair(_scorer(student, seed=1), replace(_scorer(teacher, seed=5), is_teacher=True))


def _scorer(family: str, seed: int) -> Scorer:
    mx.random.seed(seed)
    module = make_model({"model_type": family} | SIZES | FAMILIES[family])
    arrays = dict(tree_flatten(module.parameters()))
    head = next(name for end in HEADS for name in arrays if name.endswith(end))
    weight = 0.35 * mx.random.normal((VOCAB, SIZES["hidden_size"]))
    if family != "llama":  # what was read long ago moves the next token as much as the last one
        arrays = {name: _remembering(name, array) for name, array in arrays.items()}
    module.update(tree_unflatten([*(arrays | {head: weight}).items()]))
    module.eval()
    mx.eval(module.parameters())
    model = LanguageModel(f"tiny {family} {seed}", module, None, {})
    return Scorer(model, StopMerge(VOCAB, STOP, (STOP,), ()))


def _remembering(name: str, array: mx.array) -> mx.array:
    if name.endswith("A_log"):  # states that decay slowly
        return mx.full(array.shape, -2.0)
    return array * 3 if array.ndim > 1 and "embed" not in name else array


def exact_law(pair: Pair, kind: str, prompt: Sequence, own: Sequence | None = None) -> Law:
    """Every sequence that a prompt can be followed by, with its probability under μ.

    The teacher reads `own` instead, where it is given.
    """
    behavior = make_behavior(BehaviorConfig(kind=kind, budget=BUDGET, top_k=TOP_K))
    law: Law = {}
    open_: Law = {(): 1.0}
    for _ in range(LENGTH):
        student, teacher = (
            softmax(scorer.logits(mx.array([[*read, *sequence] for sequence in open_]))[:, -1])
            for scorer, read in ((pair.student, prompt), (pair.teacher, own or prompt))
        )
        rows = np.asarray(behavior.blend(student, teacher, mx.array(BUDGET)).probs)
        grown: Law = {}
        for (sequence, mass), row in zip(open_.items(), rows.astype(np.float64), strict=True):
            for token in range(VOCAB):
                ends = token == STOP or len(sequence) + 1 == LENGTH
                (law if ends else grown)[(*sequence, token)] = mass * row[token]
        open_ = grown
    return law


class Fit(NamedTuple):
    """A chi-square statistic over so many cells."""

    statistic: float
    cells: int

    @property
    def deviations(self) -> float:
        """By how many of its standard deviations the statistic is above what it expects."""
        return (self.statistic - self.cells) / (2 * self.cells) ** 0.5


def chi_square(counts: Counter[Sequence], law: Law) -> Fit:
    """The statistic over the likelier sequences and one cell of the rest."""
    total = counts.total()
    cells = [(counts[s], p * total) for s, p in law.items() if p * total >= 10]
    cells.append((total - sum(f for f, _ in cells), total - sum(e for _, e in cells)))
    return Fit(sum((f - e) ** 2 / e for f, e in cells if e > 1e-6 * total), len(cells))


def fits(pair: Pair, kind: str, rollout: Rollout, owns: bool = False) -> list[Fit]:
    """How the rollouts of each prompt fit a behavior policy's law."""
    tokens, found = rollout.tokens.tolist(), []
    for i, prompt in enumerate(PROMPTS):
        rows = range(i, len(tokens), len(PROMPTS))
        counts = Counter(tuple(tokens[row][: rollout.lengths[row]]) for row in rows)
        own = OWN[i] if owns else None
        found.append(chi_square(counts, exact_law(pair, kind, prompt, own)))
    return found


def make_jobs(copies: int, owns: bool = False) -> list[Job]:
    """So many rollouts of each prompt, where `owns` with the teacher's own."""
    return [
        Job(Prompt(i, "", prompt, teacher_tokens=OWN[i] if owns else None), RolloutKey(11, 0, i, n))
        for n in range(copies)
        for i, prompt in enumerate(PROMPTS)
    ]


def draw(pair: Pair, kind: str, block: int, jobs: list[Job], batch: int = BATCH) -> Rollout:
    """Rollouts of a behavior policy in blocks of one length."""
    behavior = make_behavior(BehaviorConfig(kind=kind, budget=BUDGET, top_k=TOP_K))
    sampling = Sampling(max_tokens=LENGTH, batch_size=batch)
    if behavior.needs_teacher(0):
        return sample_blended(pair, jobs, sampling, behavior, BUDGET, Fixed(block))
    return sample(pair.student, jobs, sampling)


@click.command()
@click.option(
    "--family", "families", type=click.Choice(HYBRIDS), multiple=True, help="Default: all."
)
@click.option("--copies", default=26_000, show_default=True, help="Rollouts of each prompt.")
def main(families: tuple[str, ...], copies: int) -> None:
    """Print each pair's largest deviation, and that from the student's own law."""
    for family in families or HYBRIDS:
        for student, teacher in ((family, family), (family, "llama"), ("llama", family)):
            begun, pair = time.perf_counter(), tiny_pair(student, teacher)
            rollout = draw(pair, "trb", 3, make_jobs(copies))
            worst = max(fit.deviations for fit in fits(pair, "trb", rollout))
            other = min(fit.deviations for fit in fits(pair, "vanilla", rollout))
            click.echo(
                f"{student} ← {teacher}: {rollout.lengths.sum():,} tokens in blocks of 3, "
                f"{worst:+.1f} deviations from the behavior's law, "
                f"{other:+.1f} from the student's, "
                f"{time.perf_counter() - begun:.0f} s"
            )
            if worst > DEVIATIONS:
                raise SystemExit(f"{student} ← {teacher} does not have the behavior's law")


if __name__ == "__main__":
    main()
