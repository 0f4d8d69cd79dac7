"""Make the bundled teacher and student: tokenizer, pre-training, measurement, folders.

Run it in the repository's root with trb_mlx installed. Both models train side by side, one process
each, so give the matrix library one thread::

    OPENBLAS_NUM_THREADS=1 python scripts/make_bundled_pair.py --seed 0 --out trb_mlx/bundled
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import mlx.core as mx
from bundled_card import model_card
from bundled_corpus import (
    STUDENT_EOS,
    TEACHER_EOS,
    batches,
    build_tokenizer,
    encode_documents,
)
from bundled_training import (
    ANSWER_TOKENS,
    Phase,
    Recipe,
    Scores,
    build_model,
    measure,
    pretrain,
)
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3
from tokenizers import Tokenizer

from trb_mlx.data.arithmetic import problems

TRAIN_PROBLEMS = 60_000
TOKENIZER_PROBLEMS = 5_000
HELD_OUT_PROBLEMS = 1_000
LONGEST_PROMPT = 20
DOCUMENT_TOKENS = LONGEST_PROMPT + ANSWER_TOKENS
# Rows beyond the tokenizer's, as released models have them: every user must mask these.
EMBEDDING_ROWS = 448


# The student first learns every step as well as the teacher does, then learns to leave: its
# weakness is drift, which a few dozen updates can undo, never missing arithmetic, which they
# cannot supply.
TEACHER = Recipe(
    role="teacher",
    eos=TEACHER_EOS,
    hidden=96,
    layers=3,
    feed_forward=224,
    heads=3,
    key_value_heads=1,
    phases=(Phase(drifts=False, steps=2000, learning_rate=3e-3),),
)
STUDENT = Recipe(
    role="student",
    eos=STUDENT_EOS,
    hidden=96,
    layers=3,
    feed_forward=160,
    heads=3,
    key_value_heads=1,
    phases=(
        Phase(drifts=False, steps=1900, learning_rate=3e-3),
        Phase(drifts=True, steps=700, learning_rate=1e-3),
    ),
)


def model_settings(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, object]:
    """Return the config.json dictionary of one model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "intermediate_size": recipe.feed_forward,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.key_value_heads,
        "head_dim": recipe.hidden // recipe.heads,
        "vocab_size": EMBEDDING_ROWS,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": tokenizer.token_to_id(recipe.eos),
    }


def train_model(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> qwen3.Model:
    """Pre-train one model through its recipe's phases."""
    corpus = problems("train", TRAIN_PROBLEMS, seed)
    model = build_model(model_settings(recipe, tokenizer), _seed_of(recipe, seed))
    for index, phase in enumerate(recipe.phases):
        data_seed = 10 * _seed_of(recipe, seed) + index
        documents = encode_documents(
            tokenizer, corpus, phase.drifts, recipe.eos, data_seed, DOCUMENT_TOKENS
        )
        data = batches(*documents, recipe.batch_size, phase.steps, data_seed)
        label = f"{recipe.role}, phase {index + 1}"
        pretrain(model, data, phase.steps, phase.learning_rate, label)
    return model


def _seed_of(recipe: Recipe, seed: int) -> int:
    """Keep the two models' draws apart under one seed."""
    return 2 * seed + (recipe.role == "student")


def score_model(
    model: qwen3.Model, recipe: Recipe, tokenizer: Tokenizer, seed: int
) -> dict[str, Scores]:
    """Measure the model on held-out problems, at temperature 1 and greedily."""
    held_out = problems("test", HELD_OUT_PROBLEMS, seed)
    stop = tokenizer.token_to_id(recipe.eos)
    assert stop is not None
    return {
        name: measure(model, tokenizer, held_out, stop, temperature, seed)
        for name, temperature in [("temperature 1", 1.0), ("greedy", 0.0)]
    }


def write_folder(
    folder: Path, model: qwen3.Model, tokenizer: Tokenizer, settings: dict[str, object], eos: str
) -> None:
    """Write what `mlx_lm.load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    stop = {"eos_token_id": settings["eos_token_id"]}
    _write_json(folder / "config.json", settings)
    _write_json(folder / "generation_config.json", stop)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos,
            "pad_token": STUDENT_EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
        },
    )


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make(recipe: Recipe, seed: int, out: Path) -> None:
    """Train, measure and write one model with its card."""
    mx.set_default_device(mx.cpu)
    tokenizer = build_tokenizer(problems("train", TOKENIZER_PROBLEMS, seed), seed)
    model = train_model(recipe, tokenizer, seed)
    scores = score_model(model, recipe, tokenizer, seed)
    folder = out / f"arithmetic-{recipe.role}"
    settings = model_settings(recipe, tokenizer)
    write_folder(folder, model, tokenizer, settings, recipe.eos)
    counts = {
        "seed": seed,
        "tokens": tokenizer.get_vocab_size(),
        "problems": TRAIN_PROBLEMS,
        "held_out": HELD_OUT_PROBLEMS,
    }
    card = model_card(recipe, settings, model, scores, counts)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{recipe.role}: {scores}", flush=True)


def main() -> None:
    """Parse the command line and make both models side by side."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seeds everything (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("trb_mlx/bundled"),
        help="folder for arithmetic-teacher/ and arithmetic-student/ (default: trb_mlx/bundled)",
    )
    arguments = parser.parse_args()
    jobs = [(recipe, arguments.seed, arguments.out) for recipe in (TEACHER, STUDENT)]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        pool.starmap(make, jobs, chunksize=1)


if __name__ == "__main__":
    main()
