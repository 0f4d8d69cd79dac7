"""Digests of a run's prompts: whether its data is what it was when the run began."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trb_mlx.config import Config, PromptSource
from trb_mlx.config_file import flatten
from trb_mlx.data.held_out import PromptSplit, held_out_source
from trb_mlx.data.sources import is_generated
from trb_mlx.errors import UserError
from trb_mlx.files import file_digest, json_text, write_text
from trb_mlx.runs.folder import RunFolder
from trb_mlx.types import Prompt, Say


@dataclass(frozen=True)
class Digest:
    """How many prompts there are, and the SHA-256 of their ids (gold answers may be mended).

    `file` is the SHA-256 of the file that they come from, if it is one.
    """

    prompts: int
    sha256: str
    file: str | None = None


def digest_prompts(prompts: Sequence[Prompt]) -> Digest:
    """The digest of prompts in their order."""
    sha256 = hashlib.sha256()
    for prompt in prompts:
        sha256.update(json.dumps(prompt.tokens).encode() + b"\n")
    return Digest(len(prompts), sha256.hexdigest())


def write_digests(folder: RunFolder, config: Config, split: PromptSplit) -> None:
    """Write data.json."""
    files = _files(config)
    values = {
        part: asdict(replace(digest_prompts(prompts), file=files[part]))
        for part, prompts in (("train", split.train), ("eval", split.eval))
    }
    write_text(folder.data, json_text(values) + "\n")


def _files(config: Config) -> dict[str, str | None]:
    """The SHA-256 of each part's file, or None where the source is none."""
    paths = {part: Path(source.source) for part, source in _sources(config).items()}
    return {part: file_digest(path) if path.is_file() else None for part, path in paths.items()}


def _sources(config: Config) -> dict[str, PromptSource]:
    return {"train": config.data.train, "eval": held_out_source(config) or config.data.train}


def has_same_files(folder: RunFolder, config: Config) -> bool:
    """Whether a run's data comes from files that are byte by byte what they were.

    Sources that are no file (a generator, a data set of the Hub) count as the same.
    """
    kept = read_digests(folder)
    return kept is None or all(kept[part].file == now for part, now in _files(config).items())


def check_digests(
    folder: RunFolder, config: Config, parts: Mapping[str, Sequence[Prompt]], say: Say
) -> None:
    """Compare the prompts of `train` or `eval`, or of both, with those that the run began with.

    A run of a version that kept no digests is taken as it is, which is said.

    Raises:
        UserError: they are others.
    """
    kept = read_digests(folder)
    if kept is None:
        say(
            f"{folder.path} was begun by an earlier version: it keeps no digest of its data, which "
            "is taken to be the same, and its draws may differ from here on"
        )
        return
    sources = _sources(config)
    for part, prompts in parts.items():
        now = digest_prompts(prompts)
        if now.sha256 != kept[part].sha256:
            what = {"train": "training", "eval": "held-out"}[part]
            counts = (
                f"{kept[part].prompts} then, {now.prompts} now"
                if kept[part].prompts != now.prompts
                else f"{now.prompts} of them"
            )
            raise UserError(
                f"the {what} prompts of {sources[part].source} are not those that run "
                f"{folder.path} began with ({counts}); expected the same data again, or a new run."
            )


def read_digests(folder: RunFolder) -> dict[str, Digest] | None:
    """What data.json holds, or None where there is none.

    Raises:
        UserError: it is damaged.
    """
    if not folder.data.exists():
        return None
    try:
        values = json.loads(folder.data.read_text(encoding="utf-8"))
        return {part: Digest(**values[part]) for part in ("train", "eval")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder.data} cannot be read ({error}); remove it to take the data as it is."
        ) from error


def chooses_same_prompts(config: Config, kept: Config) -> bool:
    """Whether two configs ask for the same prompts, as far as their files are the same."""
    generated = any(is_generated(source) for source in _sources(kept).values())
    decisive = ("data.", "prompt.", *(("train.seed",) if generated else ()))
    given, known = (
        {key: value for key, value in flatten(each).items() if key.startswith(decisive)}
        for each in (config, kept)
    )
    return given == known
