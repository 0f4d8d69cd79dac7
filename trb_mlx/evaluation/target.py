"""A run or a model, opened for use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trb_mlx.adapters.apply import load_adapter
from trb_mlx.adapters.initial import add_frozen_adapter, with_initial_lora
from trb_mlx.adapters.mlx_lm import WEIGHTS, snapshots
from trb_mlx.backend import prepare_backend
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.files import file_digest, read_metrics
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.pair import Pair, Scorer, make_pair, make_scorer
from trb_mlx.models.self_teacher import load_models
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.runs.folder import RunFolder, find_run, nearest_run

Changes = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Target:
    """A loaded model with its adapter, and the config that says how it is used.

    Attributes:
        name: the folder or model that was named.
        scorer: the model.
        config: how it is used.
        pair: the model as the student and its teacher, where that was asked for.
        folder: the run's, where it is a run.
        adapter: the SHA-256 of the adapter's weights, or None.
    """

    name: str
    scorer: Scorer
    config: Config
    pair: Pair | None = None
    folder: RunFolder | None = None
    adapter: str | None = None


def open_target(
    target: str,
    adapter_path: str | None,
    checkpoint: str,
    changes: Changes = (),
    with_teacher: bool = False,
    teacher: LanguageModel | None = None,
) -> Target:
    """Load a run's student with its adapter, or a model with or without one.

    Args:
        target: a run folder, or what `student.model` takes.
        adapter_path: a folder with mlx-lm adapters; a run has its own.
        checkpoint: `final`, `best` (held out) or a step; of a run only.
        changes: dotted keys and values on top of the config.
        with_teacher: load `teacher.model` too.
        teacher: take this one instead of loading it.

    Raises:
        UserError: the target is neither, or the adapter does not exist or fit, or a model gives
            other probabilities with a cache than without.
    """
    prepare_backend()
    folder = find_run(target)
    if folder is None:
        if target.startswith("runs/"):
            raise UserError(f"run {target} does not exist{nearest_run(target)}.")
        if checkpoint != "final":
            raise UserError(f"--checkpoint {checkpoint} needs a run folder, and {target} is none.")
        models = [("teacher.model", target), ("student.model", target)]
        config = load_config(None, [*models, *changes])
    else:
        config = load_config(str(folder.config), changes)
    pair = make_pair(*load_models(config, teacher)) if with_teacher else None
    if pair is not None and config.teacher.adapter == "start":
        add_frozen_adapter(pair.teacher.model.module, with_initial_lora(config))
    model = pair.student.model if pair else load_model(config.student)
    weights = None
    if adapter_path is not None:
        weights = Path(adapter_path).expanduser() / WEIGHTS
    elif folder is not None:
        weights = adapter_file(folder, checkpoint)
    stops: Sequence[int] = ()
    if weights is not None:
        stops = load_adapter(model, weights.parent, weights)
    scorer = pair.student if pair else make_scorer(model, stops)
    for each in (pair.student, pair.teacher) if pair else (scorer,):
        make_decoder(each)  # refuses a model that is wrong without a cache, or with one
    adapter = None if weights is None else file_digest(weights)
    return Target(target, scorer, config, pair, folder, adapter)


def adapter_file(folder: RunFolder, checkpoint: str) -> Path:
    """The adapter weights of `final`, `best` or a step.

    Raises:
        UserError: the run has no such snapshot; names those it has.
    """
    if checkpoint == "final":
        return folder.adapter_path / WEIGHTS
    step = best_step(folder) if checkpoint == "best" else checkpoint
    kept = snapshots(folder.adapter_path)
    if not str(step).isdigit() or int(step) not in kept:
        raise UserError(
            f"--checkpoint {checkpoint} is not in {folder.path}; expected final, best or one of "
            f"{', '.join(map(str, kept)) or 'none yet'}."
        )
    return kept[int(step)]


def best_step(folder: RunFolder) -> int:
    """The step with the highest held-out pass@1, or the lowest reverse KL where no answer is.

    Raises:
        UserError: the run has no evaluation of a trained state.
    """
    lines = read_metrics(folder.metrics) if folder.metrics.exists() else []
    for name, sign in (("eval/pass@1", 1.0), ("eval/reverse_kl", -1.0)):
        scored = [(sign * line[name], line["step"]) for line in lines if line.get(name) is not None]
        later = [(score, -step) for score, step in scored if step]  # of equals, the earliest
        if later:
            return -max(later)[1]
    raise UserError(f"--checkpoint best: {folder.path} has no evaluation yet.")
