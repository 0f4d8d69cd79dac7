"""The folder of one run: where it is, whether it may be used, and what lies where in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trb_mlx.config import Config
from trb_mlx.config_file import ConfigLike, dump_config, find_config, flatten, load_config
from trb_mlx.errors import UserError, did_you_mean
from trb_mlx.files import locked, write_text
from trb_mlx.interrupts import Interrupted, shielded

# What a resumed run may change: how long and how fast it goes on, what it holds in memory at once
# (the draws stay, and the update up to rounding), what it reports, and where things lie.
MEMORY_KEYS = (
    "rollout.batch_size",
    "rollout.draft_length",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.vocabulary_mb",
    "train.grad_checkpoint",
)
RESUMABLE = (
    "train.steps",
    "train.max_response_tokens",
    "train.max_minutes",
    "train.learning_rate",
    "train.max_grad_norm",
    "train.max_bad_steps",
    *MEMORY_KEYS,
    "run",
)


@dataclass(frozen=True)
class RunFolder:
    """`DIR/NAME/`: config, digests, metrics and samples, adapters/, checkpoints/."""

    path: Path
    adapter_path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """A few rollouts over time."""
        return self.path / "samples.jsonl"

    @property
    def data(self) -> Path:
        """Digests of the prompts, by which changed data is noticed."""
        return self.path / "data.json"

    @property
    def diagnostics(self) -> Path:
        """What a report measured with the run's models."""
        return self.path / "diagnostics.json"

    @property
    def report(self) -> Path:
        """The report's page and figures."""
        return self.path / "report"

    @property
    def checkpoints(self) -> Path:
        """Numbered folders to resume from."""
        return self.path / "checkpoints"


def locate(config: Config, default_name: str, kept: Path | None = None) -> RunFolder:
    """The folder of a config's run: `run.name`, else the config's stem.

    Where the config was read from a run's own file, `kept`, and is not given another place, it
    is that run.
    """
    run = config.run
    path = Path(run.dir) / (run.name or default_name)
    if kept is not None and kept.name == "config.yaml":
        is_run = (kept.parent / "data.json").exists() or (kept.parent / "metrics.jsonl").exists()
        own = load_config(kept).run if is_run else None
        if own is not None and (own.dir, own.name) == (run.dir, run.name):
            path = kept.parent
    return _folder(path, config)


def plan_run(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None = None,
    overrides_of: str = "the overrides",
) -> tuple[Config, RunFolder]:
    """The validated config of a run, and the folder that it would have.

    Args:
        config: as in `load_config`; a run without a name has that of its file, or is `run`.
        overrides: dotted keys and values on top.
        overrides_of: where they stand, for errors.

    Raises:
        UserError: the config cannot be read or does not hold together.
    """
    file = find_config(str(config)) if isinstance(config, str | Path) else None
    resolved = load_config(config, list((overrides or {}).items()), overrides_of)
    return resolved, locate(resolved, file.stem if file else "run", file)


@contextmanager
def holding_run(folder: RunFolder, config: Config, resume: bool) -> Iterator[None]:
    """Make the folder, or check that it may be gone on with, and keep other processes out.

    A folder that was created here is removed again where something fails before its config.yaml is
    written.

    Raises:
        UserError: it exists and `resume` is off, it does not and `resume` is on, the config
            differs in more than a resumed run may change, the adapters would overwrite others,
            or it cannot be written.
        RunError: another process works on it.
    """
    _check_open(folder, config, resume)
    places = [folder.path]
    if folder.path not in folder.adapter_path.parents:
        places.append(folder.adapter_path)
    with ExitStack() as locks:
        created: list[Path] = []
        try:
            for place in places:
                place.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    place.mkdir()
                    created.append(place)
                locks.enter_context(locked(place / ".lock", f"run {folder.path}"))
        except OSError as error:
            raise UserError(f"run folder {place} cannot be written: {error.strerror}.") from error
        locks.enter_context(_cleaned_up(folder, created))
        _check_open(folder, config, resume)  # another process may have finished meanwhile
        yield


@contextmanager
def _cleaned_up(folder: RunFolder, created: Sequence[Path]) -> Iterator[None]:
    """Remove what was created for a run that never began; one that did can be resumed."""
    try:
        yield
    except BaseException as error:
        if not folder.config.exists():
            with shielded():
                for place in created:
                    shutil.rmtree(place, ignore_errors=True)
        elif isinstance(error, Interrupted):
            error.advice = "--resume goes on from here"
        raise


def _check_open(folder: RunFolder, config: Config, resume: bool) -> None:
    if folder.config.exists():
        if not resume:
            raise UserError(
                f"run {folder.path} exists already; add --resume to go on with it, "
                "or --name NAME for a new one."
            )
        _check_resumable(folder, config)
    elif resume:
        raise UserError(f"run {folder.path} does not exist, so --resume has nothing to go on with.")
    elif (folder.adapter_path / "adapters.safetensors").exists():
        raise UserError(
            f"run.adapter_path {folder.adapter_path} holds adapters already; name another folder."
        )


def write_config(folder: RunFolder, config: Config) -> None:
    """Keep the resolved config beside the run's results."""
    write_text(folder.config, dump_config(config))


def find_run(target: str) -> RunFolder | None:
    """The run that a path names, or None where it is not a run folder."""
    path = Path(target).expanduser()
    if not (path / "config.yaml").is_file():
        return None
    return _folder(path, load_config(path / "config.yaml"))


def _folder(path: Path, config: Config) -> RunFolder:
    chosen = config.run.adapter_path
    return RunFolder(path, Path(chosen) if chosen else path / "adapters")


def nearest_run(target: str) -> str:
    """`; did you mean X?` with the run beside `target` whose name is nearest."""
    path = Path(target)
    if not path.parent.is_dir():
        return ""
    names = [str(config.parent) for config in path.parent.glob("*/config.yaml")]
    return did_you_mean(target, names)


def _check_resumable(folder: RunFolder, config: Config) -> None:
    kept, given = flatten(load_config(folder.config)), flatten(config)
    moved = ("data.train.source", "data.eval.source") if folder.data.exists() else ()
    for key in dict.fromkeys((*given, *kept)):  # a section that is not there has one key, null
        value = given.get(key)
        free = any(key == name or key.startswith(f"{name}.") for name in (*RESUMABLE, *moved))
        # A template borrowed from the teacher was written down; leaving it out asks for it again.
        borrowed = key == "prompt.chat_template" and value is None
        if not free and not borrowed and kept.get(key) != value:
            raise UserError(
                f"run {folder.path} was started with {key} = {kept.get(key)!r}, not {value!r}; "
                "a resumed run may differ in train.steps and train.learning_rate, in what it "
                "holds in memory at once, in reporting and in paths only."
            )
