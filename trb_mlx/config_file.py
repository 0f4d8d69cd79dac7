"""Reading and writing configs: YAML files, `a.b=c` overrides, and errors a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trb_mlx.config import Config, Section
from trb_mlx.config_mistakes import describe_mistakes, foreign_keys, takes_text
from trb_mlx.errors import UserError
from trb_mlx.yaml_file import Document, dump_yaml, parse_yaml, read_yaml

S = TypeVar("S", bound=Section)
# A YAML file or a shipped config's name, a mapping of nested or dotted keys, or a config.
ConfigLike = str | Path | Mapping[str, Any] | Config


def find_config(name: str) -> Path:
    """The file of a path, or of a shipped config's name (`small`, `methods/skd`).

    Raises:
        UserError: if neither exists; names the nearest shipped config.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    package = Path(__file__).parent
    inside = package / "configs"  # in a wheel; in a checkout the configs lie beside the package
    folder = inside if inside.is_dir() else package.parent / "configs"
    shipped = {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in sorted(folder.rglob("*.yaml"))
    }
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise UserError(f"config {name} is a folder, and a YAML file was expected.")
    # By the file's own name, whatever folder it was looked for in.
    stems = {name.rpartition("/")[2]: name for name in shipped}
    near = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.5)
    meant = f"; did you mean {stems[near[0]]}?" if near else ""
    raise UserError(
        f"config {name} does not exist; expected a YAML file or the name of a shipped config"
        f"{meant} (shipped: {', '.join(shipped) or 'none'})."
    )


def load_config(
    source: ConfigLike | None,
    overrides: Iterable[tuple[str, Any]] = (),
    overrides_of: str = "the command line",
) -> Config:
    """The validated config of a source (or of nothing) with dotted overrides on top.

    >>> load_config("small", [("train.steps", 3)]).train.steps
    3
    >>> load_config({"teacher.model": "a/b", "student": {"model": "c/d"}}).teacher.model
    'a/b'

    Args:
        source: a path, a shipped config's name, a mapping, a config, or None for overrides alone.
        overrides: pairs of a dotted key and its value; the last one wins.
        overrides_of: where they stand, for errors.

    Raises:
        UserError: unreadable file, unknown or mistyped keys, values out of range.
    """
    overrides = list(overrides)
    if isinstance(source, Config) and not overrides:
        return source
    document = _document(source)
    for key, value in overrides:
        _assign(document.values, key, value)
    given = [tuple(key.split(".")) for key, _ in overrides]
    name = str(source) if isinstance(source, str | Path) else "the config"

    def origin(path: tuple[str | int, ...]) -> str:
        if source is None or any(path[: len(key)] == key for key in given):
            return overrides_of
        return document.place(name, path)

    where = overrides_of if source is None else name
    return parse_section(Config, document.values, where, origin)


def _document(source: ConfigLike | None) -> Document:
    if isinstance(source, str | Path):
        return read_yaml(find_config(str(source)))
    if isinstance(source, Config):
        # Without defaults: whether a key was given may decide (`lora` beside an adapter).
        return Document(source.model_dump(mode="json", exclude_unset=True), {})
    values: dict[str, Any] = {}
    for key, value in sorted((source or {}).items(), key=lambda item: "." in item[0]):
        _assign(values, key, deepcopy(value))  # dotted keys go into sections, so sections first
    return Document(values, {})


def parse_section(
    section: type[S],
    values: dict[str, Any],
    where: str,
    origin: Callable[[tuple[str | int, ...]], str] | None = None,
) -> S:
    """A typed section of a mapping.

    Args:
        section: its schema.
        values: keys and values.
        where: where they stand, for errors.
        origin: where one key stands, by its path, if that is known better.

    Raises:
        UserError: a sentence for each unknown, missing or mistyped key and each value out of
            range, or one where the file is another tool's.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        if section is Config and (sentence := foreign_keys(values)):
            raise UserError(f"{where} {sentence}") from error
        sentences = describe_mistakes(error, section, values, origin or (lambda _: where))
        raise UserError(sentences) from error


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` as a dotted key and its value: as it is for keys that take text, else as YAML.

    Text within quotes is YAML too, so that `"{prompt}\\n"` ends with a line break.

    Raises:
        UserError: if there is no `=` or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {text}: expected key=value, such as train.steps=40.")
    if takes_text(key) and value not in ("", "~", "null") and not _is_quoted(value):
        return key, value
    return key, parse_yaml(value, f"--set {text}")


def _is_quoted(value: str) -> bool:
    """Whether a text is one quoted scalar of YAML."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return False
    try:
        return isinstance(parse_yaml(value, ""), str)
    except UserError:
        return False


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every key written out."""
    return dump_yaml(config.model_dump(mode="json"))


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
