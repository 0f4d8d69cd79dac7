"""Reading and writing configs: YAML files, `a.b=c` overrides, and errors a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trb_mlx.config import READ_WITH, Config, Section
from trb_mlx.errors import UserError

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's numbers and booleans: 1e-5 is a number, and `on` and `off` are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def find_config(name: str) -> Path:
    """The file of a path, or of a shipped config's name (`small`, `methods/skd`).

    Raises:
        UserError: if neither exists; names the nearest shipped config.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = _shipped_folder()
    shipped = {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in sorted(folder.rglob("*.yaml"))
    }
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise UserError(f"config {name} is a folder, and a YAML file was expected.")
    raise UserError(
        f"config {name} does not exist; expected a YAML file or the name of a shipped config"
        f"{_nearest_shipped(path, shipped)} (shipped: {', '.join(shipped) or 'none'})."
    )


def _nearest_shipped(path: Path, shipped: Iterable[str]) -> str:
    """`; did you mean X?` by the file's own name, whatever folder it is looked for in."""
    stems = {name.rpartition("/")[2]: name for name in shipped}
    found = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.5)
    return f"; did you mean {stems[found[0]]}?" if found else ""


def _shipped_folder() -> Path:
    """In a wheel the configs lie inside the package, in a checkout beside it."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_config(name: str | None, overrides: Iterable[tuple[str, Any]] = ()) -> Config:
    """The validated config of a file (or of nothing) with dotted overrides on top.

    Args:
        name: a path, a shipped config's name, or None for overrides alone.
        overrides: pairs of a dotted key and its value; the last one wins.

    Raises:
        UserError: unreadable file, unknown or mistyped key, value out of range.
    """
    where = "the command line" if name is None else str(name)
    values = {} if name is None else read_yaml(find_config(name))
    for key, value in overrides:
        _assign(values, key, value)
    return parse_config(values, where)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds (an empty file is an empty mapping)."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} cannot be read: {_reason(error)}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "bad syntax"
        raise UserError(f"config {path} is not valid YAML{at}: {problem}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config {path} holds a {type(values).__name__}, expected keys and values.")
    return values


def parse_config(values: dict[str, Any], where: str) -> Config:
    """The typed config of a mapping; `where` names its origin in errors."""
    return parse_section(Config, values, where)


def parse_section(section: type[S], values: dict[str, Any], where: str) -> S:
    """A typed section of a mapping, as `parse_config`.

    Raises:
        UserError: an unknown, missing or mistyped key, or a value out of range.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(error.errors()[0], section)}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` as a dotted key and a YAML value.

    Raises:
        UserError: if there is no `=` or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: expected key=value, such as train.steps=40.")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not valid YAML.") from error


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every key written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key → value, for comparing two configs."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat


def unread_keys(config: Config) -> list[str]:
    """One sentence for each key that was changed but that the chosen methods do not read."""
    given, defaults = flatten(config), _defaults()
    return [
        f"{key} is {given[key]!r}, but {decider} {given[decider]} does not use it."
        for key, (decider, values) in READ_WITH.items()
        if given[decider] not in values and given[key] != defaults[key]
    ]


def _defaults() -> dict[str, Any]:
    models = {"teacher": {"model": ""}, "student": {"model": ""}}
    return flatten(Config.model_validate(models))


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no choice is near."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for depth, name in enumerate(parents):
        inner = values.setdefault(name, {})
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            path = ".".join(parents[: depth + 1])
            raise UserError(f"--set {dotted}: {path} holds a value, not keys.")
        values = inner
    values[leaf] = value


def _sentence(error: ErrorDetails, section: type[Section]) -> str:
    """One sentence of pydantic's first complaint, with the key's full path."""
    path = ".".join(str(part) for part in error["loc"])
    kind = error["type"]
    if kind == "contradiction":  # between keys, so the sentence names them itself
        return error["msg"]
    if kind == "extra_forbidden":
        return f"{path} is not a known key{_nearest_key(error['loc'], section)}"
    if kind == "missing":
        # Of a config's sections only the two models have no default.
        whole_section = section is Config and len(error["loc"]) == 1
        return f"{path}{'.model' if whole_section else ''} is required and was not given."
    found = error["input"]
    if kind == "too_short":
        return f"{path} is {found!r}, expected at least one value."
    if kind == "literal_error" and isinstance(found, str):
        choices = re.findall(r"'([^']+)'", error["msg"])
        return (
            f"{path} is {found!r}, expected one of {', '.join(choices)}{nearest(found, choices)}."
        )
    shown = "an empty value" if found is None else f"{found!r} ({type(found).__name__})"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{path} is {shown}, expected {message}."


def _nearest_key(location: tuple[int | str, ...], section: type[Section]) -> str:
    """The known key nearest to a wrong one: of the same section first, else of any section."""
    keys = set(_all_keys(section))
    *parents, leaf = (str(part) for part in location)
    prefix = ".".join(parents)
    siblings = {k for k in keys if k.rpartition(".")[0] == prefix} | {
        k.split(".")[0] for k in keys if not prefix
    }
    names = {key.rpartition(".")[2]: key for key in siblings}
    found = difflib.get_close_matches(leaf, names, n=1, cutoff=0.6)
    if found:
        return f"; did you mean {names[found[0]]}?"
    elsewhere = {key.rpartition(".")[2]: key for key in sorted(keys, reverse=True)}
    found = difflib.get_close_matches(leaf, elsewhere, n=1, cutoff=0.75)
    if found:
        return f"; did you mean {elsewhere[found[0]]}?"
    return f"; known here: {', '.join(sorted(names))}."


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        for inner in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _all_keys(inner, f"{path}.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
