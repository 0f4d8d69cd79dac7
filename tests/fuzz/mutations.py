"""Seeded damage to files: JSON and YAML values, lines, bytes; one mutation a call."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

DEEP = 100_000
# What a hand, a tool or a disk may leave where a value stood. A callable makes raw text, which no
# JSON writer would give.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10_000_000,
    2**31,
    2**63,
    -(2**64),
    0.0,
    0.5,
    -2.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "12",
    "\ud800",
    "\x00",
    "a\u2028b\u0085c",
    "é" * 300,
    "x" * 100_000,
    [],
    [[]],
    {},
    [None],
    {"": None},
    {"a": {"b": [1, "c"]}},
    lambda: "9" * 5000,
    lambda: "1e999999",
    lambda: "[" * DEEP + "]" * DEEP,
    lambda: '{"a":' * DEEP + "1" + "}" * DEEP,
    lambda: "",
)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Change one place of a JSON document: its value, its key, or whether it is there."""
    values = json.loads(content)
    places = list(_places(values))
    parent, key = rng.choice(places) if places else (None, None)
    if parent is None:
        return _dump(_value(rng), {})
    raw: dict[str, str] = {}
    kind = rng.choice(("value", "value", "value", "number", "drop", "rename", "swap", "wrap"))
    old = parent[key]
    if kind == "number" and isinstance(old, int | float):
        parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, old / 3, str(old)))
    elif kind == "drop":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice((key.upper(), f"{key}s", "", "type"))] = parent.pop(key)
    elif kind == "swap":
        other, place = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[place]))
    elif kind == "wrap":
        parent[key] = rng.choice(([old], {"a": old}, [old, old], json.dumps(old)))
    else:
        parent[key] = _value(rng, raw)
    return _dump(values, raw)


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Damage a text file as disks, editors and merges do."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    kind = rng.choice(("cut", "line", "twice", "bytes", "nest", "empty", "mark", "latin", "swap"))
    if kind == "cut":
        return content[: rng.randrange(len(content) + 1)]
    if kind == "line":
        del lines[place]
    elif kind == "twice":
        lines.insert(place, lines[place])
    elif kind == "bytes":
        at = rng.randrange(len(content) + 1)
        return content[:at] + rng.randbytes(rng.randint(1, 8)) + content[at:]
    elif kind == "nest":
        lines[place] = lines[place] + b"[" * DEEP
    elif kind == "empty":
        return rng.choice((b"", b"\n", b"null", b"[]", b"{}", b"0", b'""', b"\x00" * 64))
    elif kind == "mark":
        mark = rng.choice(("\ufeff", "\u2028", "\x85", "\x00", "\t", "\r"))
        lines[place] = mark.encode() + lines[place]
    elif kind == "latin":
        return content.decode(errors="replace").encode("utf-16")
    else:
        other = rng.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    return b"\n".join(lines)


YAML_VALUES = (
    "2026-02-30",
    "2026-01-02",
    "0x",
    "0b2",
    "1:99:99",
    "!!python/object/apply:os.getcwd []",
    "!!binary =",
    "!!timestamp x",
    "!!float x",
    "!!int ''",
    "!!set {a, b}",
    "!!omap [a]",
    "&a [*a]",
    "&a {b: *a}",
    "*none",
    "{<<: 3}",
    "{[1, 2]: 3}",
    "{{a: 1}: 2}",
    "? [",
    "|",
    "'",
    "~",
    ".nan",
    ".inf",
    "1_000",
    "010",
    "9" * 5000,
    "[" * DEEP,
    "{a: " * DEEP,
    "- " * 2000 + "1",
    "'\\ud800'",
    '"\\ud800"',
    '"\\0"',
    "[1, 2]",
    "{a: 1}",
    "-1",
    "1e400",
    "true",
    "",
)
BOMB = "\n".join(
    ["b0: &b0 [x]", *(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12))]
)


def mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    """Give one key of a YAML file another value, or the file a bomb, a twin or a stranger."""
    lines = content.decode().splitlines()
    keyed = [number for number, line in enumerate(lines) if ":" in line]
    kind = rng.choice(("value",) * 6 + ("bomb", "twin", "stranger", "text"))
    if kind == "text" or not keyed:
        return mutate_text(content, rng)
    place = rng.choice(keyed)
    key, _, value = lines[place].partition(":")
    if kind == "value":
        lines[place] = f"{key}: {rng.choice(YAML_VALUES)}"
    elif kind == "bomb":
        lines.append(BOMB)
    elif kind == "twin":
        lines.insert(place, lines[place])
    else:
        lines[place] = f"{key}x:{value}"
    return "\n".join(lines).encode()


def mutate_line(mutate: Mutation) -> Mutation:
    """The mutation of one line of a JSON-lines file."""

    def apply(content: bytes, rng: random.Random) -> bytes:
        lines = content.split(b"\n")
        place = rng.choice([number for number, line in enumerate(lines) if line.strip()])
        lines[place] = mutate(lines[place], rng)
        return b"\n".join(lines)

    return apply


def mutate_bytes(content: bytes, rng: random.Random, head: int = 4096) -> bytes:
    """Damage a binary file, mostly within its first `head` bytes, where its structure is."""
    reach = len(content) if rng.random() < 0.2 else min(head, len(content))
    at = rng.randrange(reach)
    kind = rng.choice(("flip", "flip", "cut", "number", "number", "insert", "zero", "text"))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    if kind == "cut":
        return content[: rng.randrange(len(content))]
    if kind == "number":
        form, value = rng.choice(
            (("<I", 0), ("<I", 2**32 - 1), ("<Q", 2**63 - 1), ("<Q", 2**40), ("<I", 1), ("<I", 9))
        )
        packed = struct.pack(form, value)
        return content[:at] + packed + content[at + len(packed) :]
    if kind == "insert":
        return content[:at] + rng.randbytes(rng.randint(1, 16)) + content[at:]
    if kind == "zero":
        return content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :]
    word = rng.choice((b"\xff\xfe", b"{" * 64, b"[" * 64, b'"' * 16))
    return content[:at] + word + content[at + len(word) :]


def either(*mutations: Mutation) -> Mutation:
    """One of several mutations."""
    return lambda content, rng: rng.choice(mutations)(content, rng)


def _places(value: Any) -> Any:
    """(container, key) of every value below, at most 50 of a list."""
    if isinstance(value, dict):
        items: Any = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:50]
    else:
        return
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _value(rng: random.Random, raw: dict[str, str] | None = None) -> Any:
    chosen = rng.choice(VALUES)
    if not callable(chosen):
        return chosen
    if raw is None:
        return None
    raw["@raw@"] = chosen()
    return "@raw@"


def _dump(values: Any, raw: dict[str, str]) -> bytes:
    text = json.dumps(values)
    for mark, written in raw.items():
        text = text.replace(f'"{mark}"', written)
    return text.encode()
