"""A merged model in its source's own weight files, in which only the adapted layers change.

mlx-lm restacks experts as it loads them, turns convolutions and leaves vision and multi-token
prediction out, so that what it holds of such a model cannot be written for transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.adapters.peft import unwrapped
from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.exporting.base import EXPERT_FAMILIES, HYBRID_FAMILIES, check_family
from trb_mlx.exporting.merged import save_details
from trb_mlx.models import mlxlm
from trb_mlx.models.arrays import overwrite_arrays
from trb_mlx.models.checkpoint_files import stored_arrays, stored_shapes, weight_files
from trb_mlx.models.loading import LanguageModel, resolve

INDEX = "model.safetensors.index.json"


def keeps_files(model: LanguageModel) -> bool:
    """Whether a model is of a family that mlx-lm lays out otherwise, but for its linear layers."""
    return model.config.get("model_type") in (*EXPERT_FAMILIES, *HYBRID_FAMILIES)


def take_stored_weights(
    model: LanguageModel, student: ModelConfig, modules: Sequence[str]
) -> tuple[Path, list[str]]:
    """Give the layers to be adapted their weights in the type and values of the source's files.

    Args:
        model: as it was loaded for `student`, still without adapters.
        student: the source.
        modules: the names of the adapted modules.

    Returns:
        The source's folder, and what the export's reader has to know.

    Raises:
        UserError: the source is rounded or in mlx-lm's own layout, or the weights of a module are
            not what its files hold under that name.
    """
    folder = mlxlm.download(resolve(student.model), student.revision)
    stored = {unwrapped(name): array for name, array in stored_arrays(folder).items()}
    packed = any(key.startswith("quantization") for key in model.config)
    parameters = tree_flatten(model.module.parameters())
    # Experts under one name, or a convolution already turned.
    converted = any(
        array.ndim == 3 and name in stored and stored[name].shape == array.shape
        for name, array in ((unwrapped(name), array) for name, array in parameters)
    )
    if packed or converted or student.quantize is not None:
        check_family(model.config, model.name)  # which refuses what mlx-lm lays out otherwise
    layers, notes = dict(model.module.named_modules()), []
    for name in modules:
        layer, array = layers.get(name), stored.get(f"{unwrapped(name)}.weight")
        if array is None or not isinstance(layer, nn.Linear) or not _is_same(layer.weight, array):
            raise UserError(
                f"{model.name}: mlx-lm keeps {name} otherwise than transformers; expected "
                "adapters on linear layers that both keep alike, as in attention "
                "(`--to mlx-lm` works for all, and `--to merged --quantize BITS`)."
            )
        if layer.weight.dtype != array.dtype:
            kinds = [str(kind).rpartition(".")[2] for kind in (array.dtype, layer.weight.dtype)]
            notes = [
                f"The weights have their source's type, {kinds[0]}, and the student was trained in "
                f"{kinds[1]}: logits differ from the trained student's by that rounding."
            ]
        layer.weight = array
    return folder, notes


def _is_same(weight: mx.array, stored: mx.array) -> bool:
    """Whether a loaded weight is a stored one, but for a cast."""
    return weight.shape == stored.shape and bool((weight == stored.astype(weight.dtype)).all())


def write_source_model(
    folder: Path,
    model: LanguageModel,
    source: Path,
    modules: Sequence[str],
    revision: str | None,
) -> None:
    """Write a source's weight files with merged weights in them, config.json and the tokenizer.

    Args:
        folder: where to.
        model: merged.
        source: the folder that it was loaded from.
        modules: the names of the merged modules.
        revision: of a model on the Hub, for the files that are copied from there.
    """
    layers = dict(model.module.named_modules())
    weights = {f"{unwrapped(name)}.weight": layers[name].weight for name in modules}
    names = stored_shapes(source)
    merged = {name: weights[unwrapped(name)] for name in names if unwrapped(name) in weights}
    for file in weight_files(source):
        shutil.copyfile(file, folder / file.name)
        overwrite_arrays(folder / file.name, merged)
    if (source / INDEX).is_file():
        shutil.copyfile(source / INDEX, folder / INDEX)
    config = dict(model.config)
    dtype = config.pop("dtype", None) or config.get("torch_dtype")  # transformers 5, and 4
    save_details(folder, model, config | ({"torch_dtype": dtype} if dtype else {}), revision)
