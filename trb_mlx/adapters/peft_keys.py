"""Which settings of PEFT's `adapter_config.json` plain LoRA or DoRA layers can follow.

PEFT grows a key for every variant of LoRA, so that the rule is turned round: a key has to be known
here to be anything but its default. Read off LoraConfig of PEFT 0.21; tests/parity holds the
table against the PEFT that is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trb_mlx.errors import UserError

# Read by `adapters.peft`, or of no effect on what the adapter computes: any value is taken.
FREE = frozenset(
    {
        # which layers and how they are scaled
        "peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        # where it comes from
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "runtime_config",
        # settings of something that another key turns on
        "eva_config", "corda_config", "lora_ga_config", "loftq_config", "qalora_group_size",
        "megatron_core",
    }
)  # fmt: skip
# Every other key has to be at its default: this value, or null, false or empty.
DEFAULTS: Mapping[str, Any] = {"bias": "none"}
# Initialisations that leave the base's weights as they are. The others (pissa, olora, corda,
# loftq, lora_ga) take something off them, which the adapter's file does not hold.
KEEPING_THE_BASE = ("gaussian", "orthogonal", "eva", "mica")


def check_keys(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse an adapter that does more than add scaled low-rank matrices to linear layers.

    Raises:
        UserError: names the key that says so.
    """
    kind = str(config.get("peft_type", "")).rpartition(".")[2]
    if kind != "LORA":
        raise UserError(
            f"adapter {folder} is of PEFT's type {kind[:60] or 'unknown'}, expected LORA."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in KEEPING_THE_BASE:
        raise UserError(
            f"adapter {folder} has init_lora_weights = {_brief(start)}, which changes the weights "
            f"of the base itself; expected true, false, {', '.join(KEEPING_THE_BASE)} (PEFT's "
            "save_pretrained converts it with path_initial_model_for_weight_conversion)."
        )
    for key, value in config.items():
        if key in FREE or key == "init_lora_weights" or not value or value == DEFAULTS.get(key):
            continue
        default = repr(DEFAULTS[key]) if key in DEFAULTS else "null, false or empty"
        raise UserError(
            f"adapter {folder} has {_brief(key, quoted=False)} = {_brief(value)}, which mlx-lm's "
            f"layers cannot hold; expected PEFT's default, {default}."
        )


def is_on(folder: Path, config: Mapping[str, Any], key: str) -> bool:
    """A switch of the config; off where it is absent.

    Raises:
        UserError: it is neither true nor false.
    """
    value = config.get(key)
    if value not in (True, False, None):
        raise UserError(f"adapter {folder}: {key} is {_brief(value)}, expected true or false.")
    return bool(value)


def positive(folder: Path, config: Mapping[str, Any], key: str) -> float:
    """A number above 0 of the config.

    Raises:
        UserError: it is missing or something else.
    """
    value = config.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not is_number or not 0 < value <= sys.float_info.max:
        raise UserError(f"adapter {folder}: {key} is {_brief(value)}, expected a positive number.")
    return float(value)


def _brief(value: Any, quoted: bool = True) -> str:
    """A value of the file, short and on one line."""
    text = repr(value) if quoted else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:60]}…"
