"""A config.json of transformers 4 or 5 in the words that mlx-lm's models read.

transformers 5 keeps what its rotary embeddings need in `rope_parameters`, in some families a set
for each kind of layer; transformers 4 wrote `rope_theta`, `rope_scaling` and their kin, and most of
mlx-lm reads those alone and takes a default of its own where they are missing. transformers' own
classes read both forms and know what a missing key means, so they are asked.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from trb_mlx.errors import UserError
from trb_mlx.models import mlxlm

FULL, SLIDING = "full_attention", "sliding_attention"
PATTERN = "sliding_window_pattern"
LONGROPE = {"longrope", "su"}
# Other names that mlx-lm has for the same quantity.
ALIASES = {
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
    "swa_rope_theta": "rope_local_base_freq",
}
LOCAL_BASES = ("rope_local_base_freq", "swa_rope_theta")
# What transformers holds fixed or writes under another name, and mlx-lm has to be given.
IMPLIED = {"apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True}}
RENAMED = {"block_dim": "hidden_size", "n_ctx": "n_positions"}


def complete_config(config: dict[str, Any], has_head: bool) -> dict[str, Any]:
    """A config.json with every key that mlx-lm and either transformers read; none is lost.

    Args:
        config: as it was found; a wrapper's `text_config` is completed too.
        has_head: whether the weights hold a head of their own, which decides
            `tie_word_embeddings` where the config says nothing.
    """
    read = read_config(config)
    levels, complete = [config], _completed(config, read)
    completed = [complete]
    if (text := text_config(config)) is not None:
        inner = read.get("text_config") or {}
        named = {"model_type": inner["model_type"]} if "model_type" in inner else {}
        complete["text_config"] = _completed(named | text, inner)
        levels, completed = [config, text], [complete, complete["text_config"]]
    if all(level.get("tie_word_embeddings") is None for level in levels):
        for level in completed:
            level["tie_word_embeddings"] = not has_head
    return complete


def text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The language model's part of a multimodal wrapper's config; None where it is no wrapper."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else None


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config as the installed transformers reads it, with its defaults; {} if it does not."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return {}
    # `num_labels` becomes a dict of that size, and no language model has any.
    given = copy.deepcopy({key: value for key, value in config.items() if key != "num_labels"})
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            read = CONFIG_MAPPING[kind].from_dict(given)
            values = read.to_dict()
    except Exception:  # remote code uses a known name for other keys; mlx-lm may still read them
        return {}
    finally:
        transformers_logging.set_verbosity(verbosity)
    # A key that the class does not know is only carried along, and means nothing to it.
    known = {field.name for field in dataclasses.fields(read)}
    aliases = {name: values[key] for name, key in read.attribute_map.items() if key in values}
    return aliases | {key: value for key, value in values.items() if key in known}


def _completed(config: dict[str, Any], read: dict[str, Any]) -> dict[str, Any]:
    complete = dict(config)
    known = read | IMPLIED.get(str(config.get("model_type")), {}) | _full_layers(config)
    fields = mlxlm.config_fields(read | config)
    for name, required in fields.items():
        key = name if name in known else RENAMED.get(name, name)
        if complete.get(name) is None and key in known and (required or known[key] is not None):
            complete[name] = known[key]
    keys = rotary_keys(read.get("rope_parameters") or config.get("rope_parameters"), complete)
    keys = {key: value for key, value in keys.items() if key not in ALIASES or key in fields}
    if not config.get("rope_parameters"):
        # transformers 5 gives some sliding layers a default of its own where version 4, which
        # wrote this, has one base for all.
        keys = {key: value for key, value in keys.items() if key not in LOCAL_BASES}
    if config.get("rope_scaling"):  # and reads best what it wrote
        keys.pop("rope_scaling", None)
    elif keys.get("rope_scaling") and config.get("model_type") == "phi3":
        # Its version 4 refuses any other key.
        others = ("rope_type", "original_max_position_embeddings")
        scaling = keys["rope_scaling"].items()
        keys["rope_scaling"] = {key: value for key, value in scaling if key not in others}
    return complete | keys


def _full_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 4's sizes of layers of full attention, which transformers 5 keeps layer by layer."""
    layers, kinds = config.get("per_layer_config"), config.get("layer_types")
    if not isinstance(layers, dict) or not isinstance(kinds, list) or FULL not in kinds:
        return {}
    own = layers.get(str(kinds.index(FULL)))
    names = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    return {new: own[key] for key, new in names.items() if isinstance(own, dict) and key in own}


def rotary_keys(parameters: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4 and mlx-lm for the `rope_parameters` of transformers 5.

    Args:
        parameters: flat, or a dict for each kind of layer; nothing comes of anything else.
        config: the rest of the config.json.
    """
    if not isinstance(parameters, dict) or not parameters:
        return {}
    sets = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    whole = sets.get(FULL) or next(iter(sets.values()), parameters)
    keys = {
        "rope_theta": whole.get("rope_theta"),
        "partial_rotary_factor": whole.get("partial_rotary_factor"),
        "rope_local_base_freq": sets.get(SLIDING, {}).get("rope_theta"),
    }
    keys |= {alias: keys[name] for alias, name in ALIASES.items()}
    scaling = {key: value for key, value in whole.items() if key not in keys}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    original = scaling.get("original_max_position_embeddings")
    if config.get("original_max_position_embeddings") is None and kind == "longrope":
        keys["original_max_position_embeddings"] = original
    keys = {key: value for key, value in keys.items() if value is not None}
    if "mrope_section" in scaling:  # the same as plain positions while there is only text
        return keys
    plain = kind == "default"
    return keys | {"rope_scaling": None if plain else scaling | {"type": kind, "rope_type": kind}}


def build_config(config: dict[str, Any]) -> dict[str, Any]:
    """A complete config as mlx-lm has to get it to build what transformers computes.

    Within `context_length`, longrope turns by its short factors, where mlx-lm would take the long
    ones, and dynamic scaling does not scale yet.

    Raises:
        UserError: the kinds of layers follow no pattern that this architecture can have.
    """
    read = read_config(config)
    keys = rotary_keys(read.get("rope_parameters") or config.get("rope_parameters"), config)
    scaling = keys.get("rope_scaling", config.get("rope_scaling"))
    changes: dict[str, Any] = {"rope_scaling": _within_context(scaling)}
    if "rope_parameters" in config:
        changes["rope_parameters"] = _within_context(config["rope_parameters"])
    layers = config.get("layer_types")
    if isinstance(layers, list) and SLIDING in layers:
        if PATTERN in mlxlm.config_fields(config) and set(layers) <= {FULL, SLIDING}:
            changes[PATTERN] = _pattern(config, [kind == FULL for kind in layers])
        if FULL not in layers:  # mlx-lm asks where the first such layer is; see `windows`
            changes["layer_types"] = [FULL] * len(layers)
    if (text := text_config(config)) is not None:
        changes["text_config"] = build_config(text)
    return copy.deepcopy(config | changes)  # some of mlx-lm's ModelArgs take keys out of it


def _within_context(rotary: Any) -> Any:
    if not isinstance(rotary, dict):
        return rotary
    kind = rotary.get("rope_type") or rotary.get("type")
    if kind in LONGROPE and "short_factor" in rotary:
        return rotary | {"long_factor": rotary["short_factor"]}
    if kind == "dynamic":
        return rotary | {"type": "default", "rope_type": "default"}
    return rotary


def _pattern(config: dict[str, Any], full: list[bool]) -> int | str:
    """`sliding_window_pattern`: every how many layers one sees everything, or a letter a layer."""
    if config.get("model_type") == "exaone4":
        return "".join("G" if sees_all else "L" for sees_all in full)
    period = full.index(True) + 1 if True in full else len(full) + 1
    if full != [(index + 1) % period == 0 for index in range(len(full))] or period > len(full):
        raise UserError(
            f"layer_types of this {config.get('model_type')} follow no pattern that mlx-lm can "
            "build (one layer of full attention after each fixed number of sliding ones)."
        )
    return period


def context_length(config: dict[str, Any]) -> int | None:
    """The longest sequence that is computed as transformers does, where the config says so.

    Longrope's long factors, which replace the short ones at every position once a sequence is
    longer than the original context, are not used: a cache could not follow.
    """
    text = text_config(config) or {}
    level = text if "max_position_embeddings" in text else config
    scaling = level.get("rope_scaling")
    limits = [level.get("max_position_embeddings")]
    if isinstance(scaling, dict) and {scaling.get("rope_type"), scaling.get("type")} & LONGROPE:
        limits += [each.get("original_max_position_embeddings") for each in (scaling, level)]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit >= 1]
    return min(known, default=None)


def attention_heads(config: dict[str, Any]) -> int | None:
    """How many heads of queries all layers have; None where the config does not say one number."""
    heads = (text_config(config) or config).get("num_attention_heads")
    return heads if isinstance(heads, int) and heads > 0 else None


def attention_windows(config: dict[str, Any]) -> list[int | None]:
    """How many positions transformers lets each layer see, itself included; None for all.

    Empty where no window is shorter than the context, and for architectures that it does not have.
    """
    text = text_config(config)
    read = read_config(config if text is None else text)
    window, context = read.get("sliding_window"), context_length(config)
    if not window or read.get("use_sliding_window") is False or (context and window >= context):
        return []
    count = read["num_hidden_layers"]
    kinds = read.get("layer_types") or [SLIDING] * count
    return [int(window) if kind == SLIDING else None for kind in kinds]
