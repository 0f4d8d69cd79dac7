"""Our training step against mlx-lm's LoRA step on the same model at equal tokens.

The model is a llama with random weights and LoRA on every layer. mlx-lm's side is its trainer's
own step (`mlx_lm.tuner.trainer`: value_and_grad of `default_loss`, one AdamW update, the state
evaluated), on the same rows. Ours takes finished rollouts with the teacher's records, packs them,
and leaves all its metrics. Both compute the same positions, and of both the first calls, which
compile, are not counted. The sides alternate; times are medians.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tuner.trainer import default_loss

from trb_mlx.config import LoraConfig, LossConfig, TrainConfig
from trb_mlx.models.head import split_model
from trb_mlx.models.loading import LanguageModel
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.vocab import merge_stops
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper
from trb_mlx.types import Job, Prompt, Records, Rollout, RolloutKey

# Hidden, blocks, feed-forward, vocabulary: about 11 and 100 million weights.
MODELS = {"11M": (256, 8, 768, 16_384), "100M": (768, 12, 2048, 32_000)}
HEAD_DIM = 64
WARM_UP = 2  # calls of each side that are not counted
TOP_K = 16


@dataclass(frozen=True)
class Shape:
    """Rows, and the tokens of prompt and response in each."""

    rows: int
    prompt: int
    response: int


def make_llama(name: str, seed: int) -> nn.Module:
    """A llama with random weights, its adapters in place."""
    hidden, blocks, wide, vocab = MODELS[name]
    heads = hidden // HEAD_DIM
    mx.random.seed(seed)
    args = ModelArgs("llama", hidden, blocks, wide, heads, 1e-5, vocab, num_key_value_heads=heads)
    module = Model(args)
    mx.eval(module.parameters())
    return module


def make_pair(student: nn.Module, teacher: nn.Module, vocab: int) -> Pair:
    """Two bare modules as a pair over the whole vocabulary; no tokenizer is needed."""
    merge = merge_stops(vocab, 0, [0], [0])
    models = [LanguageModel("random", module, None, {}) for module in (student, teacher)]
    return Pair(*(Scorer(model, merge, split_model(model.module)) for model in models))


def make_rollout(shape: Shape, vocab: int, seed: int) -> Rollout:
    """Random rows with records as a rollout leaves them."""
    rng = np.random.default_rng(seed)
    records = Records.empty(shape.rows, shape.response, TOP_K)
    records.support[:] = np.arange(TOP_K)
    records.teacher_support[:] = -4.0
    records.teacher_rest[:] = np.log1p(-TOP_K * np.exp(-4.0))
    jobs = [
        Job(Prompt(row, "", tuple(rng.integers(0, vocab, shape.prompt).tolist())), key)
        for row, key in enumerate(RolloutKey(seed, 0, row, 0) for row in range(shape.rows))
    ]
    tokens = rng.integers(1, vocab, (shape.rows, shape.response)).astype(np.int32)
    lengths = np.full(shape.rows, shape.response, np.int32)
    return Rollout(jobs, tokens, lengths, np.zeros(shape.rows, bool), records)


def our_step(module: nn.Module, rollout: Rollout, mode: str, compiled: bool) -> Callable[[], None]:
    """One update by our `Stepper`, all rows in one micro-batch."""
    vocab = module.args.vocab_size
    teacher = make_llama(_name_of(vocab), seed=1) if mode == "exact" else module
    config = TrainConfig(
        micro_batch_size=len(rollout.jobs),
        micro_batch_tokens=2**30,
        compile="on" if compiled else "off",
    )
    pair = make_pair(module, teacher, vocab)
    objective = Objective(LossConfig(mode=mode, top_k=TOP_K), pair)  # type: ignore[arg-type]
    stepper = Stepper(module, objective, config)
    return lambda: void(stepper.update(rollout, 1e-5))


def _name_of(vocab: int) -> str:
    return next(name for name, sizes in MODELS.items() if sizes[-1] == vocab)


def void(_: object) -> None:
    """Drop a result."""


def mlx_lm_step(module: nn.Module, rollout: Rollout, compiled: bool) -> Callable[[], None]:
    """One update as `mlx_lm.tuner.trainer.train` makes it."""
    optimizer = optim.AdamW(learning_rate=1e-5)
    optimizer.init(module.trainable_parameters())
    value_and_grad = nn.value_and_grad(module, default_loss)
    prompts = np.array([job.prompt.tokens for job in rollout.jobs])
    batch = mx.array(np.concatenate([prompts, rollout.tokens], axis=1))
    spans = mx.array([[prompts.shape[1], batch.shape[1]]] * len(prompts))
    state = [module.state, optimizer.state, mx.random.state]

    def step(batch: mx.array, spans: mx.array) -> tuple[mx.array, mx.array]:
        (loss, tokens), grad = value_and_grad(module, batch, spans)
        optimizer.update(module, grad)
        return loss, tokens

    run = mx.compile(step, inputs=state, outputs=state) if compiled else step

    def call() -> None:
        module.train()
        loss, tokens = run(batch, spans)
        mx.eval(state, loss, tokens)

    return call


def timed(call: Callable[[], None]) -> tuple[float, float, int]:
    """Seconds of one call, by the clock and of the CPU, and bytes of memory above those before."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    begun, busy = time.perf_counter(), time.process_time()
    call()
    mx.synchronize()
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    return seconds, busy, mx.get_peak_memory() - before


def compare(
    name: str, shape: Shape, repeats: int, compiled: bool, seed: int
) -> list[dict[str, float | str]]:
    """One line a side: mlx-lm's step, and ours with the top-k and the exact loss."""
    module = make_llama(name, seed)
    add_lora(module, LoraConfig(rank=8), seed)
    rollout = make_rollout(shape, module.args.vocab_size, seed)
    ours = partial(our_step, module, rollout, compiled=compiled)
    sides = {
        "mlx-lm": mlx_lm_step(module, rollout, compiled),
        "ours, tail": ours("tail"),
        "ours, exact": ours("exact"),
    }
    runs: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
    for turn in range(WARM_UP + repeats):
        for side, call in sides.items():
            found = timed(call)
            if turn >= WARM_UP:
                runs[side].append(found)
    weights = sum(array.size for _, array in tree_flatten(module.parameters()))
    lines: list[dict[str, float | str]] = []
    for side, times in runs.items():
        seconds, busy, above = (statistics.median(values) for values in zip(*times, strict=True))
        lines.append({"model": name, "weights": weights, "side": side, "seconds": seconds})
        lines[-1] |= {"cpu_seconds": busy, "above_mib": above / 2**20}
    return lines


@click.command()
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True)
@click.option("--rows", default=4, show_default=True)
@click.option("--prompt", default=32, show_default=True, help="Prompt tokens a row.")
@click.option("--response", default=97, show_default=True, help="Response tokens a row.")
@click.option("--compiled/--eager", default=False, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_path", type=Path, help="Write the table as JSON too.")
def main(
    models: tuple[str, ...],
    rows: int,
    prompt: int,
    response: int,
    compiled: bool,
    repeats: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Print the table."""
    shape, found = Shape(rows, prompt, response), []
    mode = "compiled" if compiled else "eager"
    print(f"{rows} rows of {prompt} + {response} tokens, {mode}, medians of {repeats}")
    print(f"{'model':>6} {'side':<12} {'time':>9} {'CPU':>9} {'above':>11}")
    for name in models or MODELS:
        for line in compare(name, shape, repeats, compiled, seed):
            found.append(line)
            print(
                f"{name:>6} {line['side']:<12} {line['seconds']:>7.2f} s "
                f"{line['cpu_seconds']:>7.2f} s {line['above_mib']:>7.0f} MiB"
            )
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
