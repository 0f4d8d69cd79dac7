"""YAML as version 1.2's core schema has it, with the lines of its keys, and nothing that explodes.

PyYAML follows version 1.1, where 010 is eight, 1:30 is ninety and `on` is true; of a key that is
given twice it takes the last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trb_mlx.errors import UserError, one_line, reading

# tag → (pattern, first characters), of the core schema; `<<` is kept of YAML 1.1.
_TAGS = {
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
# The most values that aliases may multiply a file to.
LARGEST = 100_000

Lines = dict[tuple[str | int, ...], int]


@dataclass(frozen=True)
class Document:
    """What a YAML file holds, and the line (from 1) of every key and list entry by its path."""

    values: dict[str, Any]
    lines: Lines

    def place(self, name: str, path: tuple[str | int, ...]) -> str:
        """`NAME:LINE` of a key, or NAME alone where the file does not hold it."""
        return f"{name}:{self.lines[path]}" if path in self.lines else name


class _Loader(yaml.SafeLoader):
    """Numbers, truth and nothing of the core schema; everything else is text, and no tag more."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own attributes)
    yaml_constructors = {  # noqa: RUF012
        f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("null", "bool", "str", "seq", "map")
    }

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """As PyYAML's, of whole characters alone."""
        if any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise _problem("half of a surrogate pair is no character", node.start_mark.line + 1)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, with every key once and of text alone."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key is a list or a mapping, expected a word", line)
            if key.value in first and key.value != "<<":
                raise _problem(
                    f"{key.value} is given twice, first at line {first[key.value]}", line
                )
            first[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


for _name, (_pattern, _first) in _TAGS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), list(_first)
        )


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Within double quotes, where they are escaped, for what YAML 1.1 takes for a line's end."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text if base == 10 else text[2:], base)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(
        str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan")
    )


def _refuse_tag(_: _Loader, node: yaml.Node) -> None:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise _problem(f"the tag {tag} is not known here", node.start_mark.line + 1)


_Loader.add_constructor(None, _refuse_tag)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml(path: Path) -> Document:
    """The mapping that a YAML file holds (an empty file is an empty mapping).

    Raises:
        UserError: the file cannot be read, is not YAML, gives a key twice, holds itself, grows
            beyond measure through its aliases, or holds no mapping.
    """
    with reading(f"config {path}"):
        text = path.read_text(encoding="utf-8-sig")
    values, lines = _load(text, f"config {path}")
    if values is None:
        return Document({}, {})
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "one value"
        raise UserError(f"config {path} holds {kind}, expected keys and values.")
    return Document(values, lines)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a piece of YAML, such as that of an option.

    Raises:
        UserError: as `read_yaml`; `where` begins the sentence.
    """
    return _load(text, where)[0]


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML that reads back as these values, in their order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _load(text: str, where: str) -> tuple[Any, Lines]:
    with reading(where):
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is None:
                return None, {}
            if _size(node, {}) > LARGEST:
                raise UserError(f"{where} grows beyond {LARGEST:,} values through its aliases.")
            lines: Lines = {}
            _find_lines(node, (), lines)
            return loader.construct_document(node), lines
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            at = f" at line {mark.line + 1}" if mark else ""
            problem = one_line(getattr(error, "problem", None) or str(error))
            raise UserError(f"{where} is not valid YAML{at}: {problem}.") from error


def _problem(sentence: str, line: int) -> yaml.YAMLError:
    mark = yaml.Mark("", 0, line - 1, 0, None, 0)
    return yaml.MarkedYAMLError(problem=sentence, problem_mark=mark)


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Values below a node, counted at every place that an alias puts them; inf in a circle."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is counted, so that a circle ends
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _find_lines(node: yaml.Node, path: tuple[str | int, ...], lines: Lines) -> None:
    pairs: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(index, value, value) for index, value in enumerate(node.value)]
    for name, place, value in pairs:
        lines[*path, name] = place.start_mark.line + 1
        _find_lines(value, (*path, name), lines)
