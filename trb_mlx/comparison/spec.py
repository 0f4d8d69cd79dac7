"""What a comparison is: one typed YAML file or mapping, and the runs that it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from trb_mlx.config import Config, Count, Place, PositiveInt, Section
from trb_mlx.config_file import find_config, load_config, parse_section
from trb_mlx.data.held_out import with_held_out
from trb_mlx.data.sources import is_generated
from trb_mlx.errors import UserError, did_you_mean
from trb_mlx.files import json_digest
from trb_mlx.runs.metrics import Axis
from trb_mlx.yaml_file import Document, read_yaml

# A YAML file or a shipped comparison's name, or a mapping of its keys.
SpecLike = str | Path | Mapping[str, Any]

# The sections of a method's file that make the method; what else it holds is not read here.
METHOD_SECTIONS = ("behavior", "target", "loss")
METHOD_KEYS = ("rollout.horizon",)
# What all methods must share for a paired comparison: prompts, their order, problems, length.
SHARED = (
    "teacher",
    "student",
    "data",
    "prompt",
    "eval",
    "run",
    "train.seed",
    "train.steps",
    "train.max_response_tokens",
    "train.max_minutes",
    "train.prompts_per_step",
    "rollout.rollouts_per_prompt",
)
CHECKPOINT_METRICS = (
    "pass@1",
    "reverse_kl",
    "forward_kl",
    "topk_overlap",
    "entropy_gap",
    "mean_length",
    "truncated_fraction",
)
# Every metric of a run by which a comparison may be decided.
METRICS = (
    *(f"{point}.{name}" for point in ("final", "best") for name in CHECKPOINT_METRICS),
    "early.area",
    "early.reverse_kl",
    "equal.pass@1",
    "equal.reverse_kl",
    "cost.seconds",
    "cost.tokens",
)
HIGHER_IS_BETTER = ("pass@1", "topk_overlap", "early.area")


class MethodSpec(Section):
    """One method: a file's behavior, target, loss and horizon, then `set`, then each of `sweep`.

    `file` is a path or a shipped config; without it the method's name is looked for under
    configs/methods, unless `set` gives a `behavior.kind`.
    """

    file: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)


class CompareSpec(Section):
    """A comparison. `problems` held-out problems are reported on; `decides` names the metric.

    `early_steps` bounds the area under the early learning curve. With an `axis` of cost, methods
    are compared at equal cost too: equal.pass@1 and equal.reverse_kl, by the held-out curves.
    `set` changes the base for all. Its folder is DIR/NAME, after its file where it has no name.
    Each finished run is kept under `record` too, and what is there is not run again.
    """

    name: str | None = None
    base: str
    set: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, MethodSpec] = Field(min_length=1)
    reference: str = "vanilla"
    seeds: list[Count] = Field(min_length=1)
    problems: PositiveInt = 1000
    samples: PositiveInt = 1
    early_steps: PositiveInt
    decides: str = "final.pass@1"
    axis: Axis = "steps"
    dir: Place = "compare"
    record: Place | None = None
    share_teacher: bool = False

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str | None) -> str | None:
        if name is not None and (name in ("", "..") or Path(name).name != name):
            raise PydanticCustomError("folder_name", "the name of a folder, without a slash")
        return name

    @field_validator("methods", mode="before")
    @classmethod
    def _bare_names(cls, methods: Any) -> Any:
        """`vanilla:` alone is a method without settings."""
        if isinstance(methods, dict):
            return {name: {} if value is None else value for name, value in methods.items()}
        return methods


@dataclass(frozen=True)
class PlannedRun:
    """One run: a method's variant (one point of its sweep) at one seed."""

    name: str
    method: str
    variant: str
    seed: int
    config: Config


def load_spec(source: SpecLike) -> tuple[CompareSpec, Path]:
    """A comparison, and its folder (DIR/NAME).

    Raises:
        UserError: unreadable or mistyped, repeated seeds, an unknown metric or reference.
    """
    name = spec_name(source)
    if isinstance(source, Mapping):
        stem, document = "comparison", Document(dict(source), {})
    else:
        path = _find(name)
        stem, document = path.stem, read_yaml(path)
    spec = parse_section(CompareSpec, document.values, name, lambda key: document.place(name, key))
    repeated = [seed for seed in spec.seeds if spec.seeds.count(seed) > 1]
    if repeated:
        raise UserError(f"{name}: seeds holds {repeated[0]} twice, expected different seeds.")
    if spec.decides not in METRICS:
        raise UserError(
            f"{name}: decides is {spec.decides!r}, expected one of {', '.join(METRICS)}"
            f"{did_you_mean(spec.decides, METRICS)}"
        )
    if spec.decides.startswith("equal.") and spec.axis == "steps":
        raise UserError(
            f"{name}: decides is {spec.decides}, at equal cost, and axis is steps; expected axis: "
            "tokens or cpu_seconds."
        )
    reference = spec.methods.get(spec.reference)
    if reference is None or reference.sweep:
        raise UserError(
            f"{name}: reference {spec.reference} is not a method without a sweep"
            f"{did_you_mean(spec.reference, spec.methods)} (methods: {', '.join(spec.methods)})."
        )
    return spec, Path(spec.dir) / (spec.name or stem)


def spec_name(source: SpecLike) -> str:
    """What errors call a comparison."""
    return "the comparison" if isinstance(source, Mapping) else str(source)


def _find(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else find_config(f"compare/{name}")
    except UserError as error:
        raise UserError(
            f"comparison {name} does not exist; expected a YAML file or a shipped comparison's "
            "name, such as small or main."
        ) from error


def plan_runs(spec: CompareSpec, folder: Path, where: str) -> list[PlannedRun]:
    """Every run, seed by seed: an unfinished comparison then has all methods of its first seeds.

    A run is named by what it does: its variant, its seed, and a digest of its whole config.

    Raises:
        UserError: an unknown method, a key that all methods must share, or a config that does
            not hold together.
    """
    base = with_held_out(load_config(spec.base, _dotted(spec.set).items(), spec.base), None)
    _check_base(spec, base, where)
    variants = [
        (method, variant, changes)
        for method, chosen in spec.methods.items()
        for variant, changes in _variants(method, chosen, where)
    ]
    runs = [
        _planned(spec, folder, method, variant, changes, seed, where)
        for seed in spec.seeds
        for method, variant, changes in variants
    ]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise UserError(f"{where}: {run.variant} is asked for twice, expected it once.")
    return runs


def _check_base(spec: CompareSpec, base: Config, where: str) -> None:
    every = base.eval.every
    if not every or spec.early_steps % every or spec.early_steps > base.train.steps:
        raise UserError(
            f"{where}: early_steps is {spec.early_steps}, expected a multiple of eval.every "
            f"({every}) up to train.steps ({base.train.steps})."
        )
    if base.data.eval is None and not is_generated(base.data.train):
        raise UserError(
            f"{where}: {spec.base} holds its problems out of data.train; expected data.eval, or a "
            "valid.jsonl beside its train.jsonl, so that training does not depend on how many "
            "problems are reported on."
        )


def _variants(name: str, method: MethodSpec, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, dotted changes) of each point of a method's sweep."""
    chosen = _dotted(method.set)
    for key in (*chosen, *method.sweep):
        if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED):
            raise UserError(
                f"{where}: methods.{name} changes {key}, which all methods share; "
                "expected it under the comparison's own `set`."
            )
    fixed = {**_file_sections(name, method, where), **chosen}
    for point in itertools.product(*method.sweep.values()):
        changes = dict(zip(method.sweep, point, strict=True))
        label = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
        yield f"{name} {label}".strip(), {**fixed, **changes}


def _dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of keys that may be nested, so that a section keeps its other keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": each for inner, each in _dotted(value).items()}
        else:
            flat[key] = value
    return flat


def _file_sections(name: str, method: MethodSpec, where: str) -> dict[str, Any]:
    if method.file is None and "behavior.kind" in _dotted(method.set):
        return {}
    try:
        values = read_yaml(find_config(method.file or f"methods/{name}")).values
    except UserError as error:
        raise UserError(f"{where}: methods.{name}: {error}") from error
    sections = {section: values[section] for section in METHOD_SECTIONS if section in values}
    keys = {}
    for dotted in METHOD_KEYS:
        section, _, key = dotted.partition(".")
        if key in (values.get(section) or {}):
            keys[dotted] = values[section][key]
    return sections | keys


def _planned(
    spec: CompareSpec,
    folder: Path,
    method: str,
    variant: str,
    changes: Mapping[str, Any],
    seed: int,
    where: str,
) -> PlannedRun:
    pairs = [*_dotted(spec.set).items(), *changes.items(), ("train.seed", seed)]
    try:
        config = with_held_out(load_config(spec.base, pairs, spec.base), None)
    except UserError as error:
        raise UserError(f"{where}: methods.{method}: {error}") from error
    # Without defaults, so that a key that a later version adds leaves the names as they are; a
    # default that changes is found out by the check of a resumed run.
    content = config.model_dump(mode="json", exclude={"run"}, exclude_defaults=True)
    name = f"{variant.replace(' ', '-').replace('=', '')}-s{seed}-{json_digest(content)}"
    place = {"dir": str(folder / "runs"), "name": name, "adapter_path": None}
    run = config.run.model_copy(update=place)
    return PlannedRun(name, method, variant, seed, config.model_copy(update={"run": run}))
