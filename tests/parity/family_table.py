"""The table of families in docs/models.md, measured.

    PYTHONPATH=tests:tests/parity python tests/parity/family_table.py OLD NEW

`OLD` and `NEW` are folders that `family_checkpoints.py` has written with transformers 4 and with
the version installed here.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import peft
from exporting.run_folders import make_run
from mlx.utils import tree_flatten
from test_family_matrix import log_probs, opened, reference_gap

from trb_mlx.backend import prepare_backend
from trb_mlx.config import LoraConfig, ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.exporting.base import EXPERT_FAMILIES
from trb_mlx.exporting.run import export
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import make_scorer
from trb_mlx.rollout.cache_trial import make_decoder


def row(old: Path, new: Path) -> str:
    """One family's line."""
    cells = [f"`{new.name}`", _gap(old), _gap(new)]
    if "e-" in cells[-1]:
        model = load_model(ModelConfig(model=str(new)))
        blocks = "yes" if make_decoder(make_scorer(model)).is_trimmable else "no"
        add_lora(model.module, LoraConfig(), seed=0)
        names = [name for name, _ in tree_flatten(model.module.trainable_parameters())]
        reached = {found[1] for name in names if (found := re.search(r"\.(\d+)\.", name))}
        lora = "yes" if len(reached) == len(model.module.layers) else f"{len(reached)} layers"
        cells += [lora, blocks, *_exports(new)]
    return "| " + " | ".join(cells) + " |"


def _gap(folder: Path) -> str:
    if not (folder / "reference.npz").exists():
        return "not there"
    try:
        return f"{reference_gap(folder):.0e}"
    except UserError:
        return "refused"


def _exports(base: Path) -> list[str]:
    """Nats between the trained student and each export as transformers reads it.

    Of mixtures of experts the attention carries the adapters.
    """
    kind = json.loads((base / "config.json").read_text())["model_type"]
    attention = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    changes = [("lora.keys", attention)] if kind in EXPERT_FAMILIES else []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        student = make_run(run, str(base), changes)
        ids = np.load(base / "reference.npz")["ids"]
        logits = student.module(mx.array(ids)).astype(mx.float32)
        expected = np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        cells = []
        for form in ("peft", "merged"):
            try:
                path = export(run, form).path
            except UserError:
                cells.append("refused")
                continue
            model = opened(base if form == "peft" else path)
            if form == "peft":
                model = peft.PeftModel.from_pretrained(model, path)
            cells.append(f"{np.abs(log_probs(model, ids) - expected).max():.0e}")
        return cells


if __name__ == "__main__":
    prepare_backend()
    before, after = map(Path, sys.argv[1:3])
    print("| family | config by 4 | by 5 | LoRA | drafted blocks | PEFT export | merged export |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for place in sorted(after.iterdir()):
        with contextlib.redirect_stderr(io.StringIO()):
            line = row(before / place.name, place)
        print(line, flush=True)
