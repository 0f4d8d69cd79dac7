"""A whole model as a folder that mlx-lm loads and, for dense weights, transformers too."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.config import QuantizeConfig
from trb_mlx.errors import UserError
from trb_mlx.export.base import FAMILIES, model_file
from trb_mlx.models import mlxlm
from trb_mlx.models.loading import LanguageModel, resolve


def rounding(bits: int | None, group_size: int | None) -> QuantizeConfig | None:
    """What `--quantize` and `--group-size` ask for.

    Raises:
        UserError: a size that MLX does not know, or a group size alone.
    """
    if bits is None:
        if group_size is not None:
            raise UserError("--group-size needs --quantize BITS.")
        return None
    try:
        return QuantizeConfig.model_validate({"bits": bits, "group_size": group_size or 64})
    except ValueError as error:
        raise UserError(
            f"--quantize {bits} --group-size {group_size or 64}: expected 2, 3, 4, 5, 6 or 8 "
            "bits in groups of 32, 64 or 128."
        ) from error


def merge(module: nn.Module) -> None:
    """Add every adapter to the weights under it, in place; quantized layers are unpacked first.

    Each sum is made in float32 and rounded to the weights' own type once.
    """
    mlxlm.dequantize_model(module)
    merged = []
    for name, layer in module.named_modules():
        if "lora_a" in layer:
            plain = layer.embedding if "embedding" in layer else layer.linear
            dtype = plain.weight.dtype
            layer.set_dtype(mx.float32)
            whole = layer.fuse()
            whole.set_dtype(dtype)
            mx.eval(whole.parameters())
            merged.append((name, whole))
    module.update_modules(tree_unflatten(merged))


def write_model(folder: Path, model: LanguageModel, rounding: QuantizeConfig | None = None) -> None:
    """Write weights, config.json and the tokenizer's files; `rounding` quantizes for mlx-lm."""
    module = mlxlm.dequantize_model(model.module)
    details = dense_config(model.config, module)
    if rounding is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints its bits per weight
            module, details = mlxlm.quantize_model(
                module, details, rounding.group_size, rounding.bits
            )
    mlxlm.save_model(folder, module)
    mlxlm.save_config(details, folder / "config.json")
    model.tokenizer.save_pretrained(str(folder))
    defaults = generation_config(model.name)
    if defaults is not None:
        shutil.copyfile(defaults, folder / "generation_config.json")


def dense_config(config: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """A config.json for unquantized weights, with the type that they have."""
    details = {key: value for key, value in config.items() if not key.startswith("quantization")}
    kind = str(details.get("model_type"))
    if "architectures" not in details and kind in FAMILIES:
        details["architectures"] = [FAMILIES[kind]]
    weight = next(array for _, array in tree_flatten(module.parameters()))
    details.pop("dtype", None)
    details["torch_dtype"] = str(weight.dtype).rpartition(".")[2]
    return details


def generation_config(model: str) -> Path | None:
    """The generation defaults that a model came with."""
    place = resolve(model)
    return None if Path(place).is_file() else model_file(place, "generation_config.json")


def module_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of an unquantized module's parameters by name."""
    return {name: array.shape for name, array in tree_flatten(module.parameters())}
