"""What is wrong with a config, in sentences that a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trb_mlx.config import Config, Section
from trb_mlx.errors import did_you_mean

Path = tuple[str | int, ...]

MOST_SHOWN = 10
# Keys of mlx-lm's LoRA configs, and what they are here; None has no counterpart.
MLX_LM_KEYS: Mapping[str, str | None] = {
    "model": "student.model",
    "data": "data.train.source",
    "hf_dataset": "data.train.source",
    "train": None,
    "test": None,
    "fine_tune_type": "lora.dora",
    "optimizer": None,
    "optimizer_config": "train.betas and train.weight_decay",
    "seed": "train.seed",
    "num_layers": "lora.num_layers",
    "lora_layers": "lora.num_layers",
    "lora_parameters": "lora",
    "batch_size": "train.prompts_per_step",
    "iters": "train.steps",
    "learning_rate": "train.learning_rate",
    "lr_schedule": "train.lr_warmup_steps",
    "val_batches": "eval.prompts",
    "test_batches": "eval.prompts",
    "steps_per_report": "run.report_every",
    "steps_per_eval": "eval.every",
    "save_every": "run.save_every",
    "adapter_path": "run.adapter_path",
    "resume_adapter_file": "student.adapter",
    "max_seq_length": "data.max_prompt_tokens and rollout.max_tokens",
    "grad_checkpoint": "train.grad_checkpoint",
    "grad_accumulation_steps": "train.micro_batch_size",
    "clear_cache_threshold": None,
    "mask_prompt": None,
    "report_to": "run.report_to",
    "project_name": "run.project_name",
    "wandb": "run.project_name",
    "trust_remote_code": "student.trust_remote_code",
    "config": None,
}
# pydantic's kind of error → what was expected; {…} is of the error's context.
EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "keys with values",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "keys with values",
    "model_type": "keys with values",
    "string_type": "text",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
    "tuple_type": "a list",
}


def describe_mistakes(
    error: ValidationError, section: type[Section], values: Any, origin: Callable[[Path], str]
) -> str:
    """A sentence for each mistake, one a line.

    Args:
        error: what pydantic found.
        section: the schema.
        values: what it was given.
        origin: the place of a key, such as `my.yaml:7`, which begins the sentence.
    """
    by_path: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_path(details, values), []).append(details)
    lines = [f"{origin(path)}: {_sentence(path, each, section)}" for path, each in by_path.items()]
    left = len(lines) - MOST_SHOWN
    return "\n".join(lines[:MOST_SHOWN] + ([f"{left} mistakes more."] if left > 0 else []))


def foreign_keys(values: Mapping[str, Any]) -> str | None:
    """What a config of mlx-lm's LoRA training has to say here, or None where it is none."""
    known = [key for key in values if key in MLX_LM_KEYS]
    strange = [key for key in known if key not in Config.model_fields]
    if len(strange) < 2:
        return None
    same = [f"{key} is {MLX_LM_KEYS[key]}" for key in known if MLX_LM_KEYS[key]]
    without = [key for key in known if not MLX_LM_KEYS[key]]
    rest = f", and nothing stands for {', '.join(without)}" if without else ""
    return (
        f"is a config of mlx-lm's LoRA training. Here {', '.join(same)}{rest}; teacher.model is "
        "needed besides."
    )


def takes_text(dotted: str) -> bool:
    """Whether a key of the config takes text."""
    section: Any = Config
    for name in dotted.split("."):
        fields = getattr(section, "model_fields", {})
        if name not in fields:
            return False
        section = fields[name].annotation
        options = [option for option in get_args(section) if option is not type(None)]
        if len(options) == 1:  # of `X | None`
            section = options[0]
    return section is str


def _path(error: ErrorDetails, values: Any) -> Path:
    """The keys that a mistake lies at, without the names that pydantic gives parts of a union."""
    location = error["loc"]
    if error["type"] == "missing":
        return location
    for depth, part in enumerate(location):
        try:
            values = values[part]
        except (LookupError, TypeError):
            return location[:depth]
    return location


def _sentence(path: Path, errors: list[ErrorDetails], section: type[Section]) -> str:
    """One sentence on one key."""
    name, first = ".".join(str(part) for part in path), errors[0]
    if first["type"] == "contradiction":  # between keys, so the sentence names them itself
        return first["msg"]
    if first["type"] == "extra_forbidden":
        return f"{name} is not a known key{_nearest_key(path, section)}"
    if first["type"] == "missing":
        # Of a config's sections only the two models have no default.
        whole_section = section is Config and len(path) == 1
        return f"{name}{'.model' if whole_section else ''} is required and was not given."
    value = first["input"]
    choices = [choice for error in errors for choice in _choices(error)]
    expected = " or ".join(dict.fromkeys(_expected(error) for error in errors))
    near = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"{name} is {_quoted(value)}, expected {expected}{near or '.'}"


def _expected(error: ErrorDetails) -> str:
    if choices := _choices(error):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    form = EXPECTED.get(error["type"])
    if form is None:
        return error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return form.format(**error.get("ctx", {})).replace("at least 1 values", "at least one value")


def _choices(error: ErrorDetails) -> list[str]:
    """The words or numbers that a key takes; pydantic lists them as `'a', 'b' or 'c'`."""
    if error["type"] != "literal_error":
        return []
    listed = str(error["ctx"]["expected"]).replace(" or ", ", ")
    return [choice.strip("'") for choice in listed.split(", ")]


def _quoted(value: Any) -> str:
    """A value as its writer knows it, and never more than a line of it."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:60]}…")
    if isinstance(value, int | float) or value in ([], {}):
        return str(value)
    return "keys with values" if isinstance(value, dict) else "a list"


def _nearest_key(path: Path, section: type[Section]) -> str:
    """The known key nearest to a wrong one: of the same section first, else of any section."""
    keys = set(_all_keys(section))
    *parents, leaf = (str(part) for part in path)
    prefix = ".".join(parents)
    siblings = {k for k in keys if k.rpartition(".")[0] == prefix} | {
        k.split(".")[0] for k in keys if not prefix
    }
    names = {key.rpartition(".")[2]: key for key in siblings}
    deepest_first = sorted(keys, key=lambda key: (key.count("."), key), reverse=True)
    elsewhere = {key.rpartition(".")[2]: key for key in deepest_first}
    for known, cutoff in ((names, 0.6), (elsewhere, 0.75)):
        if near := difflib.get_close_matches(leaf, known, n=1, cutoff=cutoff):
            return f"; did you mean {known[near[0]]}?"
    return f"; known here: {', '.join(sorted(names))}."


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        for inner in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _all_keys(inner, f"{path}.")
