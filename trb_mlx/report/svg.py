"""Turns matplotlib's SVG files into elements that live inside a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from trb_mlx.report.theme import LIGHT

VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items()}
_DROPPED = {"metadata", "style"}  # links to standards, and a style that would hold page-wide
_FAMILY = re.compile(r"font-family:[^;]*;?")  # the page's own font stands in
_COLOR = re.compile(r"#[0-9a-f]{6}")
_OWN_ID = re.compile(r"#([A-Za-z][\w.-]*)")


def inline_svg(text: str, key: str, label: str) -> str:
    """An SVG file as an element for HTML: an image to screen readers, coloured by the page.

    Args:
        text: the file.
        key: makes its ids unique within the page.
        label: its alternative text.
    """
    root = ElementTree.fromstring(text)
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in _DROPPED:
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(k): v for k, v in element.attrib.items()}
        _adopt(element.attrib, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _adopt(attributes: dict[str, str], key: str) -> None:
    """Rename ids and what refers to them, and put the page's colours and font in."""
    if "id" in attributes:
        attributes["id"] = f"{key}-{attributes['id']}"
    for name in ("href", "clip-path"):
        if name in attributes:
            attributes[name] = _OWN_ID.sub(rf"#{key}-\1", attributes[name])
    if "style" in attributes:
        plain = _FAMILY.sub("", attributes["style"])
        attributes["style"] = _COLOR.sub(lambda m: VARIABLES.get(m[0], m[0]), plain)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
