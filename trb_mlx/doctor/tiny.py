"""Pairs of a few thousand weights, the same on every machine, for checks of whole steps."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.models import mlxlm
from trb_mlx.models.head import split_model
from trb_mlx.models.loading import LanguageModel
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.vocab import StopMerge

STOP = 0


def tiny_pair(vocab: int, sharpness: float, dtype: mx.Dtype = mx.float32) -> Pair:
    """A student and a teacher over ids below `vocab`, of which 0 ends a text.

    `sharpness` is the standard deviation of the head's weights: with it grows the distance.
    """
    student, teacher = (_scorer(seed, vocab, sharpness, dtype) for seed in (1, 5))
    return Pair(student, replace(teacher, is_teacher=True))


def _scorer(seed: int, vocab: int, sharpness: float, dtype: mx.Dtype) -> Scorer:
    module = mlxlm.make_model(
        {
            "model_type": "llama",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "rms_norm_eps": 1e-5,
            "vocab_size": vocab,
            "tie_word_embeddings": False,
        }
    )
    rng = np.random.default_rng(seed)
    weights = {}
    for name, array in sorted(tree_flatten(module.parameters())):
        if array.ndim > 1:  # the norms stay at 1
            size = sharpness if name.startswith("lm_head") else 0.3
            drawn = (size * rng.normal(size=array.shape)).astype(np.float32)
            weights[name] = mx.array(drawn)
    module.update(tree_unflatten(list(weights.items())))
    module.set_dtype(dtype)
    module.eval()
    mx.eval(module.parameters())
    model = LanguageModel(f"tiny {seed}", module, None, {})
    return Scorer(model, StopMerge(vocab, STOP, (STOP,), ()), split_model(module))
