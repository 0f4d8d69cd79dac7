"""mlx-lm's distilled weight quantization (DWQ), made quick enough for a CPU.

DWQ trains the scales and biases of a quantized model on given texts, so that its logits follow the
teacher's. `mlx_lm.quant.dwq.dwq_quantize` runs here as it is; only the layers differ: on a CPU
MLX's quantized product takes time linear in the rows (1.7 s for 64 rows of SmolLM2's head), so
these unpack w = scale · code + bias and multiply densely, which gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_unflatten
from mlx_lm.quant.dwq import dwq_quantize

from trb_mlx.models.loading import LanguageModel

VALIDATION_BATCHES = 1  # mlx-lm measures before and after on these


@dataclass(frozen=True)
class Recipe:
    """DWQ's settings; mlx-lm's defaults are a batch of 4, temperature 2 and a rate of 1e-6."""

    learning_rate: float
    tokens: int
    batch_size: int = 4
    longest: int = 257


class DenseCodes(nn.Module):
    """A quantized matrix `[rows, columns]` that is unpacked and then multiplied densely."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.bits, self.group_size, self.mode = layer.bits, layer.group_size, layer.mode
        self.weight = layer.weight  # mlx-lm counts parameters by it
        self.scales, self.biases = layer.scales, layer.biases
        one, zero = mx.ones_like(layer.scales), mx.zeros_like(layer.scales)
        self.codes = mx.dequantize(layer.weight, one, zero, layer.group_size, layer.bits)
        self.freeze()

    def matrix(self) -> mx.array:
        """The float matrix that scales, biases and codes stand for."""
        return self._unpack(self.codes, self.scales, self.biases)

    def _unpack(self, codes: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        grouped = codes.reshape(*scales.shape, self.group_size)
        return (grouped * scales[..., None] + biases[..., None]).reshape(codes.shape)


class DenseCodesLinear(DenseCodes):
    """In place of `nn.QuantizedLinear`."""

    def __call__(self, x: mx.array) -> mx.array:
        """x `[..., columns]` → `[..., rows]`."""
        return x @ self.matrix().T


class DenseCodesEmbedding(DenseCodes):
    """In place of `nn.QuantizedEmbedding`."""

    def __call__(self, ids: mx.array) -> mx.array:
        """The rows of some ids."""
        return self._unpack(self.codes[ids], self.scales[ids], self.biases[ids])

    def as_linear(self, x: mx.array) -> mx.array:
        """x `[..., columns]` → `[..., rows]`, for tied embeddings."""
        return x @ self.matrix().T


def distil_weights(
    student: LanguageModel,
    teacher: LanguageModel,
    texts: list[list[int]],
    recipe: Recipe,
    seed: int,
) -> int:
    """Train a packed student's scales and biases by DWQ, then store its layers dense, in place.

    Args:
        student: a model with packed layers.
        teacher: whose logits are followed.
        texts: token ids; as many are used as hold `recipe.tokens`.
        recipe: the settings.
        seed: of the order of the batches.

    Returns:
        The tokens trained on.
    """
    held_out = recipe.batch_size * VALIDATION_BATCHES
    valid = [(text[: recipe.longest], 0) for text in texts[:held_out]]
    train: list[tuple[list[int], int]] = []
    tokens = 0
    for text in texts[held_out:]:
        if tokens >= recipe.tokens and len(train) % recipe.batch_size == 0:
            break
        train.append((text[: recipe.longest], 0))
        tokens += len(train[-1][0])
    _replace(student.module, {nn.QuantizedLinear: DenseCodesLinear})
    _replace(student.module, {nn.QuantizedEmbedding: DenseCodesEmbedding})
    dwq_quantize(
        student.module,
        lambda batch, _, split: teacher.module(batch),
        optimizers.Adam(learning_rate=recipe.learning_rate, bias_correction=True),
        train,
        valid,
        recipe.batch_size,
        recipe.longest,
        seed,
        dtype=mx.float32,
    )
    _store_dense(student.module)
    return tokens


def _replace(module: nn.Module, kinds: dict[type, type]) -> None:
    found = [(name, kinds[type(m)](m)) for name, m in module.named_modules() if type(m) in kinds]
    module.update_modules(tree_unflatten(found))


def _store_dense(module: nn.Module) -> None:
    """Trained codes as plain layers, evaluated."""
    plain = []
    for name, layer in module.named_modules():
        if isinstance(layer, DenseCodes):
            rows, columns = layer.codes.shape
            linear = isinstance(layer, DenseCodesLinear)
            stored = nn.Linear(columns, rows, bias=False) if linear else nn.Embedding(rows, columns)
            stored.weight = layer.matrix()
            plain.append((name, stored))
    module.update_modules(tree_unflatten(plain))
    module.eval()
    mx.eval(module.parameters())
