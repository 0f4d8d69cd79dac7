"""`trb-mlx eval`."""

from __future__ import annotations

import json
from typing import Any

import click

from trb_mlx.cli.failures import told_plainly
from trb_mlx.config_file import parse_override

# option → the key that it stands for
KEYS = {
    "samples": "eval.samples",
    "prompts": "eval.prompts",
    "data": "data.eval.source",
    "split": "data.eval.split",
    "max_tokens": "eval.max_tokens",
    "temperature": "eval.temperature",
    "seed": "train.seed",
}


@click.command("eval")
@click.argument("target")
@click.option("--adapter-path", help="A folder with mlx-lm adapters (for a run: its own).")
@click.option("--checkpoint", default="final", show_default=True, help="final, best or a step.")
@click.option("-n", "--samples", type=click.IntRange(1), help="Rollouts a problem.")
@click.option("--prompts", type=click.IntRange(1), help="Problems.")
@click.option("--data", help="Held-out prompts: a Hub id, JSONL, or generated:NAME.")
@click.option("--split", help="Their split.")
@click.option("--max-tokens", type=click.IntRange(1), help="The longest answer.")
@click.option("--temp", "--temperature", "temperature", type=click.FloatRange(0, min_open=True))
@click.option("--seed", type=click.IntRange(0))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the config."
)
@told_plainly
def evaluate(
    target: str,
    adapter_path: str | None,
    checkpoint: str,
    as_json: bool,
    settings: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure pass@1 of TARGET on held-out prompts.

    TARGET is a run folder, whose config says which prompts and how, or a model.
    """
    from trb_mlx.inference import evaluate as measure  # slow to import
    from trb_mlx.inference import open_target

    changes = [parse_override(text) for text in settings]
    changes += [(KEYS[name], value) for name, value in options.items() if value is not None]
    found = measure(open_target(target, adapter_path, checkpoint, changes))
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name:<20}{value:.4g}")
