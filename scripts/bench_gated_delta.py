"""Recurrent layers in chunks against mlx-lm's own updates: seconds and memory of a gradient.

`head`, `channels` and `mamba2` are one update alone: the gated delta rule with a gate a head and
with gates of channels (16 value heads on 8 key heads, of 64), and Mamba 2 (24 heads of 64 on a
state of 128). `eager` and `compiled` are an update of LoRA adapters of a random qwen3_5 of 4 layers
by our `Stepper`. Every line has a process of its own, so that neither warms the other's memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import mlx.core as mx
from bench_step import Shape, make_pair, make_rollout
from mlx_lm.models.gated_delta import gated_delta_update
from mlx_lm.models.ssm import ssm_update

from trb_mlx.config import LoraConfig, LossConfig, TrainConfig
from trb_mlx.models import mlxlm
from trb_mlx.models.lora import add_lora
from trb_mlx.models.recurrences import chunk_recurrences, chunked_gated_delta, chunked_state_space
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper

VALUE_HEADS, KEY_HEADS, WIDTH = 16, 8, 64
SSM_HEADS, SSM_WIDTH, SSM_STATE = 24, 64, 128
# Of mlx-lm's side: a loop over 2,048 tokens holds 3.7 GB, a step of 2 × 512 2.4 GB.
LONGEST = {"head": 2048, "channels": 2048, "mamba2": 8192, "eager": 512, "compiled": 0}
VOCAB = 1024
QWEN = {
    "model_type": "qwen3_5",
    "text_config": {
        "model_type": "qwen3_5_text",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_value_heads": VALUE_HEADS,
        "linear_num_key_heads": KEY_HEADS,
        "linear_key_head_dim": WIDTH,
        "linear_value_head_dim": WIDTH,
        "linear_conv_kernel_dim": 4,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    },
}


def gated_delta_inputs(length: int, channels: bool) -> list[mx.array]:
    """q, k, v, a, b, A_log and dt_bias of one row, as a layer forms them."""
    heads = WIDTH**-0.5
    q, k = (mx.random.normal((1, length, KEY_HEADS, WIDTH)) * heads for _ in range(2))
    v = mx.random.normal((1, length, VALUE_HEADS, WIDTH))
    gates = (VALUE_HEADS, WIDTH) if channels else (VALUE_HEADS,)
    a = mx.random.normal((1, length, *gates))
    b = mx.random.normal((1, length, VALUE_HEADS))
    speeds = mx.random.uniform(1, 16, (VALUE_HEADS, 1) if channels else (VALUE_HEADS,))
    return [q, k, v, a, b, mx.log(speeds), mx.zeros(gates)]


def state_space_inputs(length: int) -> list[mx.array]:
    """x, A_log, B, C, D, dt and dt_bias of one row."""
    x = mx.random.normal((1, length, SSM_HEADS, SSM_WIDTH))
    b, c = (mx.random.normal((1, length, 1, SSM_STATE)) for _ in range(2))
    heads = (SSM_HEADS,)
    speeds = mx.log(mx.random.uniform(1, 16, heads))
    return [x, speeds, b, c, mx.ones(heads), mx.random.normal((1, length, *heads)), mx.zeros(heads)]


def layer(kind: str, side: str, length: int) -> Callable[[], None]:
    """One update, forward and backward by all inputs, of `length` tokens."""
    mx.random.seed(0)
    if kind == "mamba2":
        arrays = state_space_inputs(length)
        update = ssm_update if side == "mlx-lm" else chunked_state_space(ssm_update)
        options = {}
    else:
        arrays = gated_delta_inputs(length, channels=kind == "channels")
        update = gated_delta_update
        update = update if side == "mlx-lm" else chunked_gated_delta(update)
        options = {"use_kernel": False}
    mx.eval(arrays)

    def loss(*arrays: mx.array) -> mx.array:
        output, state = update(*arrays, **options)
        return output.square().sum() + state.square().sum()

    grad = mx.grad(loss, argnums=list(range(len(arrays))))
    return lambda: mx.eval(grad(*arrays))


def step(side: str, length: int, compiled: bool) -> Callable[[], None]:
    """An update of a qwen3_5's adapters on two rows of `length` tokens."""
    mx.random.seed(0)
    module = mlxlm.make_model(QWEN)
    if side == "chunks":
        chunk_recurrences(module)
    add_lora(module, LoraConfig(rank=8), 0)
    rollout = make_rollout(Shape(2, length // 2, length - length // 2), VOCAB, 0)
    pair = make_pair(module, module, VOCAB)
    config = TrainConfig(
        micro_batch_size=2, micro_batch_tokens=2**30, compile="on" if compiled else "off"
    )
    stepper = Stepper(module, Objective(LossConfig(mode="tail", top_k=16), pair), config)

    def call() -> None:
        stepper.update(rollout, 1e-5)

    return call


def measure(kind: str, side: str, length: int) -> dict[str, float | str]:
    """Seconds of the first call and of another, of the CPU too, and MB above the inputs."""
    if kind in ("eager", "compiled"):
        call = step(side, length, kind == "compiled")
    else:
        call = layer(kind, side, length)
    begun = time.perf_counter()
    call()
    first = time.perf_counter() - begun
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    begun, busy = time.perf_counter(), time.process_time()
    call()
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    above = (mx.get_peak_memory() - before) / 1e6
    line: dict[str, float | str] = {"kind": kind, "side": side, "tokens": length, "first": first}
    return line | {"seconds": seconds, "cpu_seconds": busy, "above_mb": above}


@click.command()
@click.option("--kind", "kinds", type=click.Choice(list(LONGEST)), multiple=True, default=["head"])
@click.option("--tokens", multiple=True, type=int, default=(64, 256, 512, 1024, 2048, 8192))
@click.option("--side", "sides", multiple=True, default=("mlx-lm", "chunks"))
@click.option("--one", is_flag=True, hidden=True, help="Measure here, and print JSON.")
def main(
    kinds: tuple[str, ...], tokens: tuple[int, ...], sides: tuple[str, ...], one: bool
) -> None:
    """Print the table."""
    if one:
        print(json.dumps(measure(kinds[0], sides[0], tokens[0])))
        return
    print(f"{'kind':>9} {'side':>7} {'tokens':>7} {'first':>9} {'time':>9} {'CPU':>9} {'above':>9}")
    for kind in kinds:
        for length in tokens:
            for side in sides:
                if side == "mlx-lm" and length > LONGEST[kind]:
                    continue
                options = ["--one", "--kind", kind, "--side", side, "--tokens", str(length)]
                command = [sys.executable, str(Path(__file__)), *options]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                line = json.loads(done.stdout)
                print(
                    f"{kind:>9} {side:>7} {length:>7} {line['first']:>7.2f} s "
                    f"{line['seconds']:>7.2f} s {line['cpu_seconds']:>7.2f} s "
                    f"{line['above_mb']:>6.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
