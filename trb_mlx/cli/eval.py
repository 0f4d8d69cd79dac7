"""`trb-mlx eval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from trb_mlx.cli.failures import resumable
from trb_mlx.config_file import parse_override
from trb_mlx.data.benchmarks import BENCHMARKS
from trb_mlx.errors import UserError
from trb_mlx.files import json_text
from trb_mlx.ranks.launch import launched
from trb_mlx.text import is_share, number

if TYPE_CHECKING:
    from trb_mlx.evaluation.intervals import Interval

# option → the key that it stands for
KEYS = {
    "samples": "eval.samples",
    "limit": "eval.prompts",
    "max_tokens": "eval.max_tokens",
    "temperature": "eval.temperature",
    "top_p": "eval.top_p",
    "seed": "train.seed",
    "teacher": "teacher.model",
}


@click.command("eval")
@click.argument("target")
@click.option("--adapter-path", help="A folder with mlx-lm adapters (for a run: its own).")
@click.option("--checkpoint", default="final", show_default=True, help="final, best or a step.")
@click.option(
    "--data",
    help=f"Problems: {', '.join(BENCHMARKS)}, arithmetic, a JSONL file or folder, a Hub id, "
    "generated:gym/NAME.  [default: the run's held-out problems]",
)
@click.option("--split", help="Their split (default: the benchmark's own, else test).")
@click.option("--limit", "--prompts", "limit", type=click.IntRange(1), help="Problems at most.")
@click.option("-n", "--samples", type=click.IntRange(1), help="Rollouts a problem.")
@click.option("--pass-k", default="1", show_default=True, help="The k of pass@k: 1,8,32.")
@click.option(
    "--temp",
    "--temperature",
    "temperature",
    type=click.FloatRange(0),
    help="0 takes the likeliest token, in one sample.",
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True))
@click.option("-m", "--max-tokens", type=click.IntRange(1), help="The longest answer.")
@click.option("--seed", type=click.IntRange(0))
@click.option("--teacher", help="Compare with this teacher (for a run: its own).")
@click.option(
    "--distribution/--no-distribution",
    default=None,
    help="KL to the teacher, overlap, entropies (default: where there is a teacher).",
)
@click.option(
    "--out", type=click.Path(file_okay=False), help="Keep results here (for a run: RUN/eval)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the config."
)
def evaluate(
    target: str,
    adapter_path: str | None,
    checkpoint: str,
    data: str | None,
    split: str | None,
    pass_k: str,
    distribution: bool | None,
    out: str | None,
    as_json: bool,
    settings: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure TARGET on held-out problems: pass@k, lengths, and the distance to its teacher.

    TARGET is a run folder, whose config says which problems and how, or a model. The same
    command again goes on where an interrupted one stopped, or shows what it found.
    """
    counts = _counts(pass_k)
    overrides = {KEYS[name]: value for name, value in options.items() if value is not None}
    overrides |= dict(parse_override(text) for text in settings)
    from trb_mlx.evaluation.run import evaluate as measure  # slow to import

    with resumable():
        result = measure(
            target,
            data,
            split=split,
            adapter_path=adapter_path,
            checkpoint=checkpoint,
            distances=distribution,
            pass_k=counts,
            overrides=overrides,
            out=out,
            progress=Console(stderr=True),
        )
    if launched().rank:
        return  # rank 0 speaks for all
    if as_json:
        click.echo(json_text(result.as_json(), indent=None))
        return
    about = result.about
    click.echo(
        f"{about['target']} on {about['data']}: {about['problems']} problems × "
        f"{about['samples']}, temperature {about['temperature']:g}, top-p {about['top_p']:g}, "
        f"at most {about['max_tokens']} tokens"
    )
    Console().print(metrics_table(result.metrics))
    if result.path:
        click.echo(f"kept in {result.path}")


def metrics_table(metrics: Mapping[str, Interval]) -> Table:
    """One row a metric: its value, and the ends of its interval."""
    from trb_mlx.evaluation.intervals import LEVEL

    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column(f"{LEVEL:.0%} interval over problems", justify="right")
    for name, interval in metrics.items():
        form = ".1%" if is_share(name) else ".1f" if "length" in name else ".4f"
        ends = interval.low, interval.high
        span = "–" if ends == (None, None) else " to ".join(number(end, form) for end in ends)
        table.add_row(name, number(interval.value, form), span)
    return table


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--pass-k {text}: expected whole numbers with commas, such as 1,8,32.")
    return sorted({int(part) for part in parts})
