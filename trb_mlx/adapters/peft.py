"""PEFT's adapter format, both ways: transposed matrices, and alpha = scale · rank."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from trb_mlx.adapters.adapter import (
    CONFIG,
    MAX_RANK,
    Adapter,
    checked,
    module_names,
    read_arrays,
    read_json,
)
from trb_mlx.adapters.peft_keys import check_keys, is_on, positive
from trb_mlx.errors import UserError

PEFT_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_TENSOR = re.compile(
    re.escape(_PREFIX) + r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?"
)
_PEFT_LEAF = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_MLX_LEAF = {leaf.removesuffix(".weight"): name for name, leaf in _PEFT_LEAF.items()}


def unwrapped(name: str) -> str:
    """A module's or weight's name in the text model alone.

    A multimodal model's are language_model.model.… in mlx-lm and model.language_model.… in
    transformers' files, and model.… where transformers loads it for causal language modelling.
    """
    return name.replace("language_model.", "", 1)


def peft_arrays(adapter: Adapter) -> dict[str, mx.array]:
    """The tensors of `adapter_model.safetensors`: A `[r, in]`, B `[out, r]`, m `[out]`.

    Raises:
        UserError: the adapter is on stacked experts or embeddings, which PEFT lays out
            otherwise.
    """
    arrays = {}
    for name, array in adapter.arrays.items():
        module, _, leaf = unwrapped(name).rpartition(".")
        if array.ndim > 2 or not (_BLOCK.fullmatch(module) or module == "lm_head"):
            raise UserError(
                f"the adapter on {module} has no equal in PEFT; expected linear layers of blocks "
                "(`--to mlx-lm` and `--to merged` hold it)."
            )
        arrays[f"{_PREFIX}{module}.{_PEFT_LEAF[leaf]}"] = mx.contiguous(array.T)
    return arrays


def peft_config(adapter: Adapter, base: str, revision: str | None, blocks: int) -> dict[str, Any]:
    """`adapter_config.json` in PEFT's own field names.

    Args:
        adapter: the adapter.
        base: what `base_model_name_or_path` says.
        revision: the base's revision.
        blocks: how many blocks the base has.
    """
    alpha = adapter.scale * adapter.rank
    # Suffixes where the same modules of each block are adapted, else every full name.
    modules = [unwrapped(name) for name in adapter.modules]
    layers, targets = shared_suffixes(modules) or (None, modules)
    if layers == list(range(blocks)):
        layers = None
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": targets,
        "layers_to_transform": layers,
        "layers_pattern": None if layers is None else "layers",
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": adapter.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "rank_pattern": {},
        "revision": revision,
        "task_type": "CAUSAL_LM",
        "use_dora": adapter.dora,
        "use_rslora": False,
    }


def shared_suffixes(names: Iterable[str]) -> tuple[list[int], list[str]] | None:
    """The blocks and the modules in each of them; None where blocks differ or there are none."""
    by_block: dict[int, set[str]] = {}
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match is None:
            return None
        by_block.setdefault(int(match[1]), set()).add(match[2])
    suffixes = next(iter(by_block.values()), None)
    if suffixes is None or any(other != suffixes for other in by_block.values()):
        return None
    return sorted(by_block), sorted(suffixes)


def read_peft_adapter(folder: Path) -> Adapter:
    """An adapter folder as PEFT writes it.

    Raises:
        UserError: a file is missing or damaged, or the adapter is of a kind that mlx-lm's
            layers cannot hold.
    """
    config = read_json(folder / CONFIG)
    check_keys(folder, config)
    arrays = {}
    for name, array in read_arrays(folder / PEFT_WEIGHTS).items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UserError(
                f"adapter {folder}: {name} is no LoRA matrix of a linear layer; no other can be "
                "used."
            )
        arrays[f"{match[1]}.{_MLX_LEAF[match[2]]}"] = mx.contiguous(array.T).astype(mx.float32)
    rank = config.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank < MAX_RANK:
        raise UserError(f"adapter {folder}: r is {rank!r:.60}, expected a positive whole number.")
    by_root = is_on(folder, config, "use_rslora")
    return checked(
        Adapter(
            source=str(folder),
            rank=rank,
            scale=positive(folder, config, "lora_alpha") / (math.sqrt(rank) if by_root else rank),
            dropout=config.get("lora_dropout") or 0.0,
            dora=is_on(folder, config, "use_dora"),
            keys=_keys(module_names(arrays), config),
            num_layers=-1,
            arrays=arrays,
        )
    )


def _keys(modules: list[str], config: Mapping[str, Any]) -> tuple[str, ...]:
    """mlx-lm's keys: suffixes where the config names modules of every block, else full names."""
    targets = config.get("target_modules")
    everywhere = (
        isinstance(targets, list)
        and not any("layers." in str(target) for target in targets)
        and config.get("layers_to_transform") is None
        and not config.get("exclude_modules")
    )
    shared = shared_suffixes(modules) if everywhere else None
    if shared is not None and shared[0] == list(range(len(shared[0]))):
        return tuple(shared[1])
    return tuple(modules)
