"""Which model an exported adapter belongs to, and whether it has to be written beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download, metadata_load

from trb_mlx.adapters.adapter import Adapter, read_json
from trb_mlx.adapters.peft import unwrapped
from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.models.checkpoint_files import has_head, stored_shapes
from trb_mlx.models.loading import resolve
from trb_mlx.models.mlx_lm_note import mlx_lm_note

# model_type → architecture: dense families whose weights mlx-lm keeps under transformers' names
# and in its layout; tests/parity holds each of them to transformers' logits.
FAMILIES = {
    "ernie4_5": "Ernie4_5ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
# Mixtures of experts: mlx-lm stacks the experts, but keeps the attention as transformers has it.
EXPERT_FAMILIES = ("granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next")
# Hybrids: mlx-lm turns their convolutions and leaves parts out, but keeps all linear layers.
HYBRID_FAMILIES = ("qwen3_5",)


@dataclass(frozen=True)
class Base:
    """The model under an adapter: a Hub id or folder, or None where it has to be written.

    `config` is its config.json; `note` is what the export's reader has to know about it.
    """

    model: str | None
    revision: str | None
    config: dict[str, Any]
    note: str | None = None


def is_portable(model: str) -> bool:
    """Whether others' tools find a model under its name: a folder or a Hub id, not a GGUF file."""
    if model.startswith(("bundled:", "pypi:")):
        return False
    return not Path(resolve(model)).is_file()


def find_base(student: ModelConfig, named: str | None) -> Base:
    """The unquantized base of a run's student.

    Args:
        student: the run's student.
        named: `--base`, which wins.

    Raises:
        UserError: the base is quantized and its card names no original, or cannot be read.
    """
    model, revision = (named, None) if named else (student.model, student.revision)
    if not is_portable(model):
        return Base(None, None, {}, _rounding_note(student))
    config = base_config(model, revision)
    if "quantization" not in config and "quantization_config" not in config:
        return Base(model, revision, config, _rounding_note(student))
    if named:
        raise UserError(f"--base {named} is quantized, expected the original.")
    original = card_metadata(model, revision).get("base_model")
    if isinstance(original, list):
        original = original[0] if original else None
    if not isinstance(original, str) or not original:
        raise UserError(
            f"student {model} is quantized and its card names no base_model; name the original "
            "with --base."
        )
    note = (
        f"The student was trained on {model}, a quantized copy of the base: on the base itself, "
        "logits differ from the trained student's by the rounding."
    )
    return Base(original, None, base_config(original, None), note)


def _rounding_note(student: ModelConfig) -> str | None:
    if student.quantize is None:
        return None
    return (
        f"The student was trained on the base rounded to {student.quantize.bits} bits in groups of "
        f"{student.quantize.group_size}: on the base itself, logits differ from the trained "
        "student's by that rounding."
    )


def base_config(model: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a folder or Hub id.

    Raises:
        UserError: it is not there, or the Hub cannot be reached.
    """
    path = model_file(model, "config.json", revision)
    if path is None:
        raise UserError(
            f"base {model} has no config.json that can be read; expected a folder or a Hub id."
        )
    return read_json(path)


def base_notes(model: str) -> list[str]:
    """What mlx-lm itself computes otherwise of a folder or Hub id; nothing for one out of reach."""
    path, shapes = model_file(model, "config.json"), folder_shapes(model)
    note = mlx_lm_note(read_json(path), has_head(shapes) if shapes else None) if path else None
    return [note] if note else []


def card_metadata(model: str, revision: str | None = None) -> dict[str, Any]:
    """The front matter of a model's card; empty where there is none that can be read."""
    try:
        path = model_file(model, "README.md", revision)
        return metadata_load(path) or {} if path else {}
    except Exception:  # anybody's card, perhaps gone: what cannot be read says nothing
        return {}


def license_of(model: str) -> str | None:
    """What the card of a model names as its license."""
    license = card_metadata(model).get("license")
    return license if isinstance(license, str) else None


def model_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """The local path of one file of a model folder or Hub id, or None where it has none."""
    place = Path(resolve(model))
    if place.exists():  # a GGUF file has no other files
        return place / name if (place / name).is_file() else None
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except (OSError, ValueError, hub_errors.HfHubHTTPError):
        return None


def check_family(config: dict[str, Any], model: str, modules: Sequence[str] = ()) -> None:
    """Refuse weights that need not lie as transformers expects them.

    Args:
        config: the base's config.json.
        model: its name.
        modules: the adapted ones, where only an adapter is written.

    Raises:
        UserError: names the families that are known.
    """
    kind = config.get("model_type")
    if kind in FAMILIES:
        return
    if kind in HYBRID_FAMILIES and modules:
        return
    if kind in EXPERT_FAMILIES and modules:
        alike = (".self_attn.", ".linear_attn.")
        others = [name for name in modules if not any(part in name for part in alike)]
        if not others:
            return
        raise UserError(
            f"{model} is a mixture of experts, and mlx-lm keeps {others[0]} otherwise than "
            "transformers; expected an adapter on attention alone (`--to mlx-lm` works for all)."
        )
    raise UserError(
        f"{model} is of model_type {kind}, whose weights need not be laid out as in "
        f"transformers; known: {', '.join(FAMILIES)} (`--to mlx-lm` works for all)."
    )


def check_shapes(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Refuse an adapter that does not fit a base.

    Args:
        adapter: on linear layers only.
        shapes: of the base's weights by name; empty where they are not at hand.
        model: the base's name.

    Raises:
        UserError: names the first module that is missing or of another shape.
    """
    found = {unwrapped(name): shape for name, shape in shapes.items()}
    for module in adapter.modules if shapes else ():
        lora_a, lora_b = (adapter.arrays[f"{module}.{leaf}"] for leaf in ("lora_a", "lora_b"))
        expected = (lora_b.shape[-1], lora_a.shape[0])
        shape = found.get(f"{unwrapped(module)}.weight")
        if shape != expected:
            raise UserError(
                f"the adapter is of another base than {model}: {module} takes a weight of shape "
                f"{expected}, found {shape or 'none'}."
            )


def folder_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a folder's weights; empty for a Hub id, which is not fetched for it."""
    return stored_shapes(Path(resolve(model)))
