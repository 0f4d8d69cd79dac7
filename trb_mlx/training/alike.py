"""What of a run has to be the same on every rank."""

from __future__ import annotations

import json
from typing import Any

from trb_mlx.config import Config
from trb_mlx.config_file import flatten
from trb_mlx.data.held_out import PromptSplit
from trb_mlx.files import json_digest
from trb_mlx.models.pair import Pair, model_digests
from trb_mlx.ranks.agreement import versions
from trb_mlx.types import Prompt

# Where things lie may differ between machines: what lies there is compared by its digest.
PLACES = (
    "run",
    "teacher.model",
    "student.model",
    "student.adapter",
    "data.train.source",
    "data.eval.source",
)


def settings_of(config: Config) -> dict[str, Any]:
    """Versions, and the config's keys without places, as JSON holds them."""
    keys = {
        key: value
        for key, value in flatten(config).items()
        if not any(key == place or key.startswith(f"{place}.") for place in PLACES)
    }
    values: dict[str, Any] = json.loads(json.dumps(keys, default=str))
    return versions() | values


def digests_of(pair: Pair, prompts: PromptSplit, keep_hidden: bool) -> dict[str, Any]:
    """Digests of both models' weights, adapters included, and of the prompts."""
    digests: dict[str, Any] = {
        f"the digest of the {part} prompts": json_digest([_read(prompt) for prompt in given])
        for part, given in (("training", prompts.train), ("held-out", prompts.eval))
    }
    for role, scorer in (("student", pair.student), ("teacher", pair.teacher)):
        digests |= model_digests(scorer, f"the {role}")
    # By each machine's memory, where the config leaves it open; all must hold what one does.
    return digests | {"whether the teacher's hidden states fit (loss.keep_hidden)": keep_hidden}


def _read(prompt: Prompt) -> list[Any]:
    """What of a prompt is read, by models and by whoever scores answers."""
    return [prompt.tokens, prompt.teacher_tokens, prompt.answer, prompt.grader]
