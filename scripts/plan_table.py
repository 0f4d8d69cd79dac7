"""Which pairs fit which Mac: the table of docs/models.md, by `trb-mlx plan` of published shapes.

Nothing is downloaded or measured: headers are made of the shapes that the models' cards give::

    python scripts/plan_table.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from published_models import header_files

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.planning.advice import fit
from trb_mlx.planning.machine import other_mac, size
from trb_mlx.planning.run import Planner

PAIRS = {
    "Qwen3-0.6B ← 4B, 4 bits": "qwen3-0.6b",
    "Qwen3-1.7B ← 8B, 4 bits": "qwen3-1.7b",
    "Qwen3.5-0.8B ← 4B, 4 bits": "qwen3.5-0.8b",
    "Qwen3.5-0.8B ← 9B, 4 bits": "qwen3.5-0.8b-from-9b",
}
MEMORIES = (8, 16, 24, 32, 64)  # GiB


def with_headers(name: str, place: Path) -> Config:
    """A shipped config whose models are headers alone."""
    config = load_config(name)
    models = {"student.model": config.student.model, "teacher.model": config.teacher.model}
    return load_config(name, [(k, str(header_files(m, place))) for k, m in models.items()])


def main() -> None:
    """Print the table as Markdown."""
    print("| pair | config | peak |" + "".join(f" {memory} GB |" for memory in MEMORIES))
    print("| --- | --- | ---: |" + " --- |" * len(MEMORIES))
    with tempfile.TemporaryDirectory() as folder, Planner() as planner:
        for pair, name in PAIRS.items():
            config = with_headers(name, Path(folder))
            peak, cells = "", []
            for memory in MEMORIES:
                machine = other_mac(memory * 2**30)
                plan = planner.plan(config, machine)
                peak = size(plan.memory.peak_bytes)
                if plan.fits:
                    cells.append("as it is")
                    continue
                fitted, changes = fit(planner, config, machine)
                told = ", ".join(f"{key.split('.')[1]} {value}" for key, value in changes.items())
                cells.append(f"{told}: {size(fitted.memory.peak_bytes)}" if fitted.fits else "no")
            print(f"| {pair} | {name} | {peak} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
