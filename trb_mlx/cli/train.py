"""`trb-mlx train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trb_mlx.cli.options import config_flags, overrides
from trb_mlx.config import Config
from trb_mlx.config_file import ConfigLike, dump_config
from trb_mlx.errors import UserError
from trb_mlx.ranks.launch import launched
from trb_mlx.runs.folder import RunFolder, plan_run
from trb_mlx.text import RunConsole


@click.command()
@click.option("-c", "--config", "config_name", help="A YAML file, or a shipped config's name.")
@click.option("--resume", is_flag=True, help="Go on with the run from its newest checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the resolved config and what would load.")
@click.option(
    "--preflight",
    is_flag=True,
    help="With --dry-run: load both models, show what they read and how they begin.",
)
@click.option("--force", is_flag=True, help="Run also what does not fit this machine.")
@config_flags
def train(
    config_name: str | None,
    resume: bool,
    dry_run: bool,
    preflight: bool,
    force: bool,
    settings: tuple[str, ...],
    **flags: Any,
) -> None:
    """Distil a teacher into a student's LoRA adapters.

    Writes runs/NAME/ with the resolved config, metrics, samples, checkpoints, and adapters that
    `mlx_lm generate --adapter-path` loads.
    """
    if preflight and not dry_run:
        raise UserError("--preflight belongs to --dry-run; a run begins with its preflight anyway.")
    given = overrides(settings, flags)
    if config_name is None and not given:
        raise UserError("train needs --config FILE (try --config small), or --model and --teacher.")
    source: ConfigLike = config_name or {}
    config, folder = plan_run(source, dict(given), "the command line")
    if dry_run:
        if launched().rank:  # rank 0 speaks for all
            return
        click.echo(describe(config, folder))
        if preflight:
            from trb_mlx.training.session import look_ahead  # loads MLX

            look_ahead(config, click.echo)
        return
    from trb_mlx.training.run import train as run  # seconds that a mistake need not wait for

    run(source, overrides=dict(given), resume=resume, progress=RunConsole(), force=force)


def describe(config: Config, folder: RunFolder) -> str:
    """The resolved config, then what a run of it would load and write."""
    rollouts = config.train.prompts_per_step * config.rollout.rollouts_per_prompt
    source = config.data.train
    return "\n".join(
        [
            dump_config(config),
            f"# teacher  {config.teacher.model} from {_origin(config.teacher.model)}",
            f"# student  {config.student.model} from {_origin(config.student.model)}",
            f"# prompts  {source.source}, split {source.split}",
            f"# work     {config.train.steps} steps of {rollouts} rollouts, "
            f"at most {rollouts * config.rollout.max_tokens:,} tokens each",
            f"# writes   {folder.path}",
        ]
    )


def _origin(model: str) -> str:
    from trb_mlx.models.loading import resolve

    place = resolve(model)
    return place if Path(place).exists() else f"the Hub ({place})"
