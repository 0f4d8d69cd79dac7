"""Digests of a run's prompts: whether its data is what it was when the run began."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from trb_mlx.config import Config
from trb_mlx.config_file import flatten
from trb_mlx.data.held_out import PromptSplit, held_out_source
from trb_mlx.errors import UserError
from trb_mlx.files import json_text, write_text
from trb_mlx.run_folder import RunFolder
from trb_mlx.types import Prompt

Say = Callable[[str], None]


@dataclass(frozen=True)
class Digest:
    """How many prompts there are, and the SHA-256 of their ids (gold answers may be mended)."""

    prompts: int
    sha256: str


def digest_prompts(prompts: Sequence[Prompt]) -> Digest:
    """The digest of prompts in their order."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(json.dumps(prompt.tokens).encode() + b"\n")
    return Digest(len(prompts), found.hexdigest())


def keep_digests(folder: RunFolder, split: PromptSplit) -> None:
    """Write data.json."""
    digests = {"train": digest_prompts(split.train), "eval": digest_prompts(split.eval)}
    values = {part: asdict(digest) for part, digest in digests.items()}
    write_text(folder.data, json_text(values) + "\n")


def check_digests(folder: RunFolder, config: Config, split: PromptSplit, say: Say) -> None:
    """Compare prompts with those that the run began with.

    A run of a version that kept no digests is taken as it is, which is said.

    Raises:
        UserError: they are others.
    """
    kept = read_digests(folder)
    if kept is None:
        say(
            f"{folder.path} keeps no digest of its data (it is of an earlier version); "
            "taken to be the same"
        )
        return
    sources = {"train": config.data.train, "eval": held_out_source(config) or config.data.train}
    for part, prompts in (("train", split.train), ("eval", split.eval)):
        now = digest_prompts(prompts)
        if now != kept[part]:
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


def chooses_the_same(config: Config, kept: Config) -> bool:
    """Whether two configs ask for the same prompts, as far as their files are the same."""
    given, known = flatten(config), flatten(kept)
    return all(
        given.get(key) == value
        for key, value in known.items()
        if key.startswith(("data.", "prompt.")) or key == "train.seed"
    )
