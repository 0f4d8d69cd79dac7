"""Files are whole or absent and on the disk; in JSON lines only the line feed ends a line."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trb_mlx.errors import RunError, UserError
from trb_mlx.files import (
    append_lines,
    disk_errors,
    json_line,
    json_text,
    read_lines,
    read_metrics,
    replacing,
    replacing_folder,
    write_lines,
    write_text,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Surrogates too: data and shells bring them.
    | st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.txt", tmp_path / "f"
    path.write_text("old")
    folder.mkdir()
    (folder / "x").write_text("old")
    for writer, target in ((replacing, path), (replacing_folder, folder)):
        with pytest.raises(OSError, match="full"), writer(target) as draft:
            (draft if writer is replacing else draft / "x").write_text("half")
            raise OSError(errno.ENOSPC, "full")
    assert path.read_text() == (folder / "x").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "f"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "f") as draft:
            (draft / text).write_text(text)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_rename_publishes_only_what_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and the folder of its names are flushed before the rename, the parent after."""
    events: list[tuple[str, str]] = []
    flush, rename = os.fsync, os.replace

    def fsync(number: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{number}")).name))
        flush(number)

    def replace(source: Path, target: Path) -> None:
        events.append(("rename", Path(target).name))
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name open files")
    monkeypatch.setattr("trb_mlx.files.os.fsync", fsync)
    monkeypatch.setattr("trb_mlx.files.os.replace", replace)
    write_text(tmp_path / "a.txt", "new")
    with replacing_folder(tmp_path / "f") as draft:
        (draft / "x").write_text("new")
    parent = ("sync", tmp_path.name)
    assert events == [
        *[("sync", ".a.txt.tmp.txt"), ("rename", "a.txt"), parent],
        *[("sync", "x"), ("sync", ".f.tmp"), ("rename", "f"), parent],
    ]


def test_a_drive_is_flushed_where_that_is_another_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fcntl(number: int, command: int) -> None:
        asked.append(command)
        raise OSError(errno.ENOTSUP, "a network share cannot")

    monkeypatch.setattr("trb_mlx.files.FULL_SYNC", 51)
    monkeypatch.setattr("trb_mlx.files.fcntl.fcntl", fcntl)
    write_text(tmp_path / "a", "x")
    assert asked == [51, 51]
    assert (tmp_path / "a").read_text() == "x"


def test_a_full_disk_is_one_sentence() -> None:
    with pytest.raises(RunError, match="the checkpoint could not be written: No space left"):
        with disk_errors("the checkpoint"):
            raise OSError(errno.ENOSPC, "No space left on device")


@settings(deadline=None)  # a drive may take its time
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5))
def test_lines_come_back_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write_lines(path, lines[:2])
    append_lines(path, lines[2:], synced=True)
    assert read_lines(path) == lines
    # Nor does a reader that knows Unicode's line ends see others.
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(lines)


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, character: str) -> None:
    """As other programs, and our earlier versions, write these characters: unescaped."""
    path = tmp_path / "a.jsonl"
    lines = [{"step": step, "text": f"a{character}b"} for step in range(3)]
    texts = [json.dumps(line, ensure_ascii=ord(character) < 32) + "\n" for line in lines]
    path.write_text("".join(texts), encoding="utf-8")
    assert read_lines(path) == lines


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = json_line({"step": 1, "text": "½"}).encode()
    for length in range(len(whole)):
        path.write_bytes(whole + whole[:length])
        # The line feed is the last byte to come, and the object is whole without it.
        assert len(read_lines(path)) == (2 if length == len(whole) - 1 else 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b'{"a": 1}\n\xff\xfe\n', ":2 cannot be read: it is not UTF-8 text"),
        (b'{"a": 1}\n\n[1]\n{"a": 1}\n', ":3 holds a list, expected an object"),
        (b'{"a": \n{"a": 1}\n', ":1 cannot be read: it is not JSON"),
        (b"[" * 100_000 + b"\n", ":1 cannot be read: it is nested too deeply"),
    ],
)
def test_what_is_no_json_line_is_one_sentence(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_lines(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"loss": 1.0}', "has a line without a step"),
        ('{"step": -1}', "has a line without a step"),
        ('{"step": true}', "has a line without a step"),
        ('{"step": NaN}', "has a line without a step"),
        ('{"step": 1, "loss": "x"}', "has a text for loss at step 1, expected a number"),
        ('{"step": 1, "loss": [1]}', "has a list for loss at step 1, expected a number"),
    ],
)
def test_metrics_are_numbers_by_step(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": null}\n' + line + "\n")
    with pytest.raises(UserError, match=re.escape(f"{path} {sentence}")):
        read_metrics(path)


def test_numbers_beyond_a_float_are_read_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "a": NaN, "b": 1e999, "c": {10**400}, "d": {2**70}}}\n')
    assert read_metrics(path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 2**70}]


def test_numbers_that_json_does_not_have_become_null() -> None:
    line = {"a": float("nan"), "b": [1.0, {"c": float("-inf")}], "d": (2, float("inf"))}
    assert json.loads(json_line(line)) == {"a": None, "b": [1.0, {"c": None}], "d": [2, None]}


def test_the_same_holds_for_json_of_several_lines() -> None:
    values = {"a": [float("nan"), 1.0], "b": {"c": float("inf")}}
    for text in (json_text(values), json_text(values, indent=None)):
        assert json.loads(text) == {"a": [None, 1.0], "b": {"c": None}}
    assert "\n" in json_text(values)
    assert "\n" not in json_text(values, indent=None)
