"""The folder of one run: where it is, whether it may be used, and what lies where in it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trb_mlx.config import RESUMABLE, Config
from trb_mlx.config_file import dump_config, flatten, load_config, nearest
from trb_mlx.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """`DIR/NAME/` with config.yaml, metrics.jsonl, samples.jsonl, adapters/, checkpoints/."""

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


def locate(config: Config, default_name: str) -> RunFolder:
    """The folder of a config's run: `run.name`, else the config's stem."""
    path = Path(config.run.dir) / (config.run.name or default_name)
    chosen = config.run.adapter_path
    return RunFolder(path, Path(chosen) if chosen else path / "adapters")


def open_run(folder: RunFolder, config: Config, resume: bool) -> bool:
    """Make the folder, or check that it may be gone on with.

    Returns:
        Whether the folder was made here.

    Raises:
        UserError: it exists and `resume` is off, it does not and `resume` is on, the config
            differs in more than length, reporting and paths, the adapters would overwrite
            others, or it cannot be written.
    """
    if folder.config.exists():
        if not resume:
            raise UserError(
                f"run {folder.path} exists already; add --resume to go on with it, "
                "or --name NAME for a new one."
            )
        _check_resumable(folder, config)
        return False
    if resume:
        raise UserError(f"run {folder.path} does not exist, so --resume has nothing to go on with.")
    if (folder.adapter_path / "adapters.safetensors").exists():
        raise UserError(
            f"run.adapter_path {folder.adapter_path} holds adapters already; name another folder."
        )
    existed = folder.path.exists()
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        probe = folder.path / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"run folder {folder.path} cannot be written: {error.strerror}.") from error
    return not existed


def write_config(folder: RunFolder, config: Config) -> None:
    """Keep the resolved config beside the run's results."""
    folder.config.write_text(dump_config(config), encoding="utf-8")


def discard(folder: RunFolder) -> None:
    """Remove a folder that was made for a run which never began."""
    shutil.rmtree(folder.path, ignore_errors=True)


def find_run(target: str) -> RunFolder | None:
    """The run that a path names, or None where it is not a run folder."""
    path = Path(target)
    if not (path / "config.yaml").is_file():
        return None
    config = load_config(str(path / "config.yaml"))
    chosen = config.run.adapter_path
    return RunFolder(path, Path(chosen) if chosen else path / "adapters")


def nearest_run(target: str) -> str:
    """`; did you mean X?` with the run beside `target` whose name is nearest."""
    path = Path(target)
    if not path.parent.is_dir():
        return ""
    names = [str(config.parent) for config in path.parent.glob("*/config.yaml")]
    return nearest(target, names)


def _check_resumable(folder: RunFolder, config: Config) -> None:
    kept, given = flatten(load_config(str(folder.config))), flatten(config)
    for key, value in given.items():
        free = any(key == name or key.startswith(f"{name}.") for name in RESUMABLE)
        # A template borrowed from the teacher was written down; leaving it out asks for it again.
        borrowed = key == "prompt.chat_template" and value is None
        if not free and not borrowed and kept.get(key) != value:
            raise UserError(
                f"run {folder.path} was started with {key} = {kept.get(key)!r}, not {value!r}; "
                "a resumed run may differ in train.steps, reporting and paths only."
            )
