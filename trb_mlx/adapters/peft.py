"""PEFT's adapter format, both ways: transposed matrices, and alpha = scale · rank."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from trb_mlx.adapters.adapter import MOST_RANK, Adapter, checked, read_arrays, read_json
from trb_mlx.adapters.mlx_lm import CONFIG
from trb_mlx.adapters.peft_keys import check_keys, is_on, positive
from trb_mlx.errors import UserError

PEFT_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_TENSOR = re.compile(
    re.escape(_PREFIX) + r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?"
)
# mlx-lm's leaf → PEFT's
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_OURS = {theirs.removesuffix(".weight"): leaf for leaf, theirs in _LEAVES.items()}


def peft_arrays(adapter: Adapter) -> dict[str, mx.array]:
    """The tensors of `adapter_model.safetensors`: A `[r, in]`, B `[out, r]`, m `[out]`.

    Raises:
        UserError: the adapter is on stacked experts or embeddings, which PEFT lays out
            otherwise.
    """
    arrays = {}
    for name, array in adapter.arrays.items():
        module, _, leaf = name.rpartition(".")
        if array.ndim > 2 or not (_BLOCK.fullmatch(module) or module == "lm_head"):
            raise UserError(
                f"the adapter on {module} has no equal in PEFT; expected linear layers of blocks "
                "(`--to mlx-lm` and `--to merged` hold it)."
            )
        arrays[f"{_PREFIX}{module}.{_LEAVES[leaf]}"] = mx.contiguous(array.T)
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
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        **_targets(adapter.modules, blocks),
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


def _targets(modules: Iterable[str], blocks: int) -> dict[str, Any]:
    """Suffixes where the same modules of each block are adapted, else every full name."""
    names = sorted(modules)
    shared = shared_suffixes(names)
    if shared is None:
        return {"target_modules": names, "layers_to_transform": None, "layers_pattern": None}
    layers, suffixes = shared
    if layers == list(range(blocks)):
        return {"target_modules": suffixes, "layers_to_transform": None, "layers_pattern": None}
    return {"target_modules": suffixes, "layers_to_transform": layers, "layers_pattern": "layers"}


def shared_suffixes(names: Iterable[str]) -> tuple[list[int], list[str]] | None:
    """The blocks and the modules in each of them, or None where they differ from block to block."""
    by_block: dict[int, set[str]] = {}
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match is None:
            return None
        by_block.setdefault(int(match[1]), set()).add(match[2])
    first, *others = by_block.values()
    if any(other != first for other in others):
        return None
    return sorted(by_block), sorted(first)


def read_peft_adapter(folder: Path) -> Adapter:
    """An adapter folder as PEFT writes it.

    Raises:
        UserError: a file is missing or damaged, or the adapter is of a kind that mlx-lm's
            layers cannot hold.
    """
    details = read_json(folder / CONFIG)
    check_keys(folder, details)
    arrays = dict(_mlx_array(folder, *item) for item in read_arrays(folder / PEFT_WEIGHTS).items())
    modules = sorted({name.rpartition(".")[0] for name in arrays})
    rank = details.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank < MOST_RANK:
        raise UserError(f"adapter {folder}: r is {rank!r:.60}, expected a positive whole number.")
    by_root = is_on(folder, details, "use_rslora")
    return checked(
        Adapter(
            source=str(folder),
            rank=rank,
            scale=positive(folder, details, "lora_alpha") / (math.sqrt(rank) if by_root else rank),
            dropout=details.get("lora_dropout") or 0.0,
            dora=is_on(folder, details, "use_dora"),
            keys=_keys(modules, details),
            num_layers=-1,
            arrays=arrays,
        )
    )


def _keys(modules: list[str], details: Mapping[str, Any]) -> tuple[str, ...]:
    """mlx-lm's keys: suffixes where the config names modules of every block, else full names."""
    targets = details.get("target_modules")
    everywhere = (
        isinstance(targets, list)
        and not any("layers." in str(target) for target in targets)
        and details.get("layers_to_transform") is None
        and not details.get("exclude_modules")
    )
    shared = shared_suffixes(modules) if modules and everywhere else None
    if shared is not None and shared[0] == list(range(len(shared[0]))):
        return tuple(shared[1])
    return tuple(modules)


def _mlx_array(folder: Path, name: str, array: mx.array) -> tuple[str, mx.array]:
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise UserError(
            f"adapter {folder}: {name} is no LoRA matrix of a linear layer; no other can be used."
        )
    return f"{match[1]}.{_OURS[match[2]]}", mx.contiguous(array.T).astype(mx.float32)
