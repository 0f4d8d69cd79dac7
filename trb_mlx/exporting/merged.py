"""A whole model as a folder that mlx-lm loads and, for dense weights, transformers too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.config import QuantizeConfig
from trb_mlx.errors import UserError
from trb_mlx.exporting.base import FAMILIES, model_file
from trb_mlx.files import json_text
from trb_mlx.models import mlxlm
from trb_mlx.models.loading import LanguageModel

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def quantize_config(bits: int | None, group_size: int | None) -> QuantizeConfig | None:
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


def write_model(
    folder: Path,
    model: LanguageModel,
    quantize: QuantizeConfig | None = None,
    revision: str | None = None,
) -> None:
    """Write weights, config.json and the tokenizer's files.

    Args:
        folder: where to.
        model: a plain model; a packed one is unpacked in place.
        quantize: quantizes for mlx-lm.
        revision: of a model on the Hub, for the files that are copied from there.
    """
    module = mlxlm.dequantize_model(model.module)
    config = dense_config(model.config, module)
    if quantize is not None:
        module, config = mlxlm.quantize_model(module, config, quantize.group_size, quantize.bits)
    mlxlm.save_model(folder, module)
    save_details(folder, model, config, revision)


def save_details(
    folder: Path, model: LanguageModel, config: dict[str, Any], revision: str | None
) -> None:
    """Write what stands beside a model's weights: a config.json, and files of its source."""
    mlxlm.save_config(config, folder / "config.json")
    _write_tokenizer(folder, model, revision)
    _copy(model.name, "generation_config.json", folder, revision)


def _write_tokenizer(folder: Path, model: LanguageModel, revision: str | None) -> None:
    """The source's own files where there are any, in words that transformers 4 knows too."""
    copied = [_copy(model.name, name, folder, revision) for name in TOKENIZER_FILES]
    if not any(copied):
        model.tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    details = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if details.get("tokenizer_class") != "TokenizersBackend":
        return
    details["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = details.get("extra_special_tokens")
    if isinstance(extra, list):  # a dict to transformers 4
        details["additional_special_tokens"] = details.pop("extra_special_tokens")
    path.write_text(json_text(details) + "\n", encoding="utf-8")


def _copy(model: str, name: str, folder: Path, revision: str | None) -> bool:
    """Copy one file that a model came with; whether there is one."""
    path = model_file(model, name, revision)
    if path is not None:
        shutil.copyfile(path, folder / name)
    return path is not None


def dense_config(config: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """A config.json for unquantized weights, with the type that they have."""
    dense = {key: value for key, value in config.items() if not key.startswith("quantization")}
    kind = str(dense.get("model_type"))
    if "architectures" not in dense and kind in FAMILIES:
        dense["architectures"] = [FAMILIES[kind]]
    weight = next(array for _, array in tree_flatten(module.parameters()))
    dense.pop("dtype", None)
    dense["torch_dtype"] = str(weight.dtype).rpartition(".")[2]
    return dense
