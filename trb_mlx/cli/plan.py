"""`trb-mlx plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from trb_mlx.cli.options import config_flags, overrides
from trb_mlx.config_file import ConfigLike, dump_config
from trb_mlx.errors import UserError
from trb_mlx.files import disk_errors, json_text, write_text
from trb_mlx.runs.folder import plan_run
from trb_mlx.text import clock, file_size

if TYPE_CHECKING:
    from trb_mlx.planning.pace import StepTime
    from trb_mlx.planning.run import Plan


@click.command()
@click.option("-c", "--config", "config_name", help="A YAML file, or a shipped config's name.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.option("--memory", metavar="SIZE", help="Plan for a Mac with so much memory, as 16GB.")
@click.option("--bandwidth", type=click.FloatRange(0, min_open=True), help="Its GB/s.")
@click.option("--tflops", type=click.FloatRange(0, min_open=True), help="Its TFLOP/s.")
@click.option(
    "--fit", type=click.Path(path_type=Path), metavar="FILE", help="Write the config that fits."
)
@config_flags
def plan(
    config_name: str | None,
    as_json: bool,
    memory: str | None,
    bandwidth: float | None,
    tflops: float | None,
    fit: Path | None,
    settings: tuple[str, ...],
    **flags: Any,
) -> None:
    """Say what a run takes before anything is loaded: memory by phase, time, what to lower.

    Reads configs and the headers of weight files alone; of a Hub model that is not downloaded yet,
    by ranged reads.
    """
    if (bandwidth is None) != (tflops is None):
        raise UserError("--bandwidth and --tflops were not both given; a step's time needs both.")
    given = overrides(settings, flags)
    if config_name is None and not given:
        raise UserError("plan needs --config FILE (try --config small), or --model and --teacher.")
    source: ConfigLike = config_name or {}
    config, _ = plan_run(source, dict(given), "the command line")
    from trb_mlx.adapters.initial import with_initial_lora
    from trb_mlx.planning.advice import fit as fitting
    from trb_mlx.planning.advice import savings
    from trb_mlx.planning.machine import memory_size, other_mac, this_machine
    from trb_mlx.planning.pace import Pace, measure_pace, step_time
    from trb_mlx.planning.run import Planner

    limit = config.run.memory_limit_gb
    machine = this_machine(limit) if memory is None else other_mac(memory_size(memory), limit)
    config = with_initial_lora(config)
    changed: dict[str, Any] = {}
    with Planner() as planner:
        made = planner.plan(config, machine)
        lower = savings(planner, made)
        if fit is not None:
            made, changed = fitting(planner, config, machine)
    if bandwidth and tflops:
        pace: Pace | None = Pace(bandwidth * 1e9, tflops * 1e12)
    else:
        pace = measure_pace() if memory is None else None
    step = None if pace is None else step_time(made.config, made.student, made.teacher, pace)
    if fit is not None:
        if not made.fits:
            raise UserError(
                f"nothing of this config can be lowered until it fits {machine.name}: the least "
                f"peak is {_gib(made.memory.peak_bytes)} of {_gib(machine.limit_bytes)}; expected "
                "smaller models."
            )
        with disk_errors(str(fit)):
            write_text(fit, dump_config(made.config))
    if as_json:
        click.echo(json_text(as_values(made, step, {s.key: s for s in lower})))
        return
    _print(made, step)
    if fit is None:
        for each in lower:
            note = " (changes what is learnt)" if each.changes_learning else ""
            saved = made.memory.peak_bytes - each.peak_bytes
            click.echo(f"lower {each.key} to {each.value}: {_gib(saved)} less{note}")
    else:
        listed = ", ".join(f"{key} {value}" for key, value in changed.items()) or "nothing"
        click.echo(f"changed: {listed}; written to {fit}")


def _print(made: Plan, step: StepTime | None) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("phase", "peak", "of which"):
        table.add_column(column, justify="right" if column == "peak" else "left")
    for name, phase in made.memory.phases.items():
        parts = sorted(phase.parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{part} {_gib(count)}" for part, count in parts if count)
        table.add_row(name, _gib(phase.peak_bytes), listed)
    Console(width=max(100, Console().width)).print(table)
    for name, count in made.memory.host.items():
        click.echo(f"beside MLX's memory: {name}, {_gib(count)}")
    if made.download_bytes:
        from huggingface_hub.constants import HF_HUB_CACHE

        from trb_mlx.planning.machine import free_disk

        free = free_disk(HF_HUB_CACHE)
        click.echo(f"to download: {file_size(made.download_bytes)} ({file_size(free)} free)")
    if step is not None:
        click.echo(
            f"a step: about {clock(step.rollout_s)} of rollouts ({step.tokens_per_second:,.0f} "
            f"tokens/s) and {clock(step.update_s)} of update, with every answer at its limit"
        )
    click.echo(made.sentence())


def as_values(made: Plan, step: StepTime | None, lower: dict[str, Any]) -> dict[str, Any]:
    """The plan as JSON has it; bytes and seconds."""
    return {
        "peak_bytes": made.memory.peak_bytes,
        "limit_bytes": made.machine.limit_bytes,
        "fits": made.fits,
        "machine": made.machine.name,
        "phases": {
            name: {"peak_bytes": phase.peak_bytes, "parts": phase.parts}
            for name, phase in made.memory.phases.items()
        },
        "host_bytes": made.memory.host,
        "download_bytes": made.download_bytes,
        "step": None if step is None else vars(step),
        "lower": {
            key: {"value": each.value, "peak_bytes": each.peak_bytes} for key, each in lower.items()
        },
    }


def _gib(count: float) -> str:
    from trb_mlx.planning.machine import size

    return size(count)
