"""What `trb-mlx compare` does not measure of the runs of `configs/compare/smollm2.yaml`.

For each finished run, for the student as it starts, for the teacher and for what mlx-lm's DWQ makes
of the student with the teacher's answers to a run's prompts: likeliest answers to the held-out
prompts, graded by code and looked at for stops and repetition, and distances to the teacher on the
teacher's own answers. A file each under the comparison's record, in `measures`::

    python scripts/smollm2_measures.py configs/compare/smollm2.yaml
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np
from dense_dwq import Recipe, distil_weights

from trb_mlx.backend import prepare_backend
from trb_mlx.cli.failures import ending_plainly
from trb_mlx.comparison.records import read_finished
from trb_mlx.comparison.spec import CompareSpec, PlannedRun, load_spec, plan_runs
from trb_mlx.config import Config, EvalConfig
from trb_mlx.data.held_out import held_out_prompts, split_prompts
from trb_mlx.evaluation.distances import mean_reverse_kl
from trb_mlx.evaluation.evaluator import held_out_rollouts
from trb_mlx.evaluation.target import open_target
from trb_mlx.files import read_lines, write_text
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.pair import Pair, Scorer, make_pair, make_scorer
from trb_mlx.ops.numerics import kl_divergence, log_softmax
from trb_mlx.rollout.logits import logit_chunks
from trb_mlx.rollout.text import response_texts
from trb_mlx.runs.folder import locate
from trb_mlx.types import Prompt, Rollout

ROWS = 50  # decoded at once
SCORED = 10  # read at once by both models
DWQ_RATE = 1e-4  # as in recover_smollm2.py: mlx-lm's default is for hundreds of batches
GRAM = 4  # a token counts as repeated where the last four stood together before
SHOWN = (0, 1, 2, 3, 4, 6, 12, 13)  # held-out prompts whose answers are kept


def grade(row: dict[str, str], text: str, stopped: bool) -> bool | None:
    """Whether an answer does what its prompt asks; None where code cannot tell."""
    kind, gold, text = row["kind"], row.get("gold", ""), text.strip()
    if kind == "copy":
        return text.strip("\"'") == gold
    if kind == "sum":
        numbers = re.findall(r"-?\d+", text)
        return bool(numbers) and numbers[-1] == gold
    if kind == "past":
        return re.search(rf"\b{gold}\b", text) is not None and "\n" not in text and stopped
    if kind == "question":
        return text.endswith("?") and text.count("?") == 1 and "\n" not in text
    if kind == "capital":
        return gold in text
    if kind == "sentence":
        return stopped and len(re.findall(r"[.!?](\s|$)", text)) == 1
    return None


def repeated(tokens: Sequence[int]) -> float:
    """The share of a response's tokens that end a run of `GRAM` tokens which stood before."""
    grams = [tuple(tokens[end - GRAM : end]) for end in range(GRAM, len(tokens) + 1)]
    return (len(grams) - len(set(grams))) / max(len(tokens), 1)


def row_of(known: dict[str, dict[str, str]], prompt: Prompt) -> dict[str, str]:
    """The row that a formatted prompt was made of."""
    return next(row for text, row in known.items() if f"\n{text}<" in prompt.text)


def likeliest(
    scorer: Scorer, prompts: Sequence[Prompt], rows: Sequence[dict[str, str]], config: Config
) -> dict[str, Any]:
    """Greedy answers: scores by kind, stop rate, repetition, and some of the answers."""
    settings = EvalConfig(max_tokens=config.rollout.max_tokens, temperature=0.0)
    rollout = held_out_rollouts(scorer, prompts, settings, 0, ROWS)
    texts = response_texts(scorer, rollout)
    stopped = [bool(each) for each in rollout.stopped]
    grades = [grade(*each) for each in zip(rows, texts, stopped, strict=True)]
    kinds: dict[str, list[bool]] = {}
    for row, right in zip(rows, grades, strict=True):
        if right is not None:
            kinds.setdefault(row["kind"], []).append(right)
    tokens = [rollout.tokens[row, :length].tolist() for row, length in enumerate(rollout.lengths)]
    return {
        "score": float(np.mean([right for each in kinds.values() for right in each])),
        "graded": sum(map(len, kinds.values())),
        "by_kind": {kind: float(np.mean(each)) for kind, each in sorted(kinds.items())},
        "stopped": float(np.mean(stopped)),
        "repeated": float(np.mean([repeated(each) for each in tokens])),
        "answers": {rows[place]["prompt"]: texts[place].strip() for place in SHOWN},
    }


def on_teacher_answers(pair: Pair, answers: Rollout) -> dict[str, float]:
    """KL(π_T‖π_S), agreement of the likeliest token and the student's perplexity."""
    sums = np.zeros(3)
    for chunk in logit_chunks((pair.student, pair.teacher), answers, SCORED):
        student, teacher = map(log_softmax, chunk.logits)
        tokens = chunk.take(answers.tokens)[:, None]
        chosen = mx.take_along_axis(student, tokens, axis=-1)
        same = mx.argmax(student, axis=-1) == mx.argmax(teacher, axis=-1)
        parts = (kl_divergence(teacher, student), same, -chosen)
        sums += [float(np.asarray(part.astype(mx.float32)).sum(dtype=np.float64)) for part in parts]
    forward, same, surprise = sums / answers.lengths.sum()
    return {"forward_kl": forward, "top1": same, "perplexity": float(np.exp(surprise))}


def by_dwq(config: Config, teacher: LanguageModel) -> Pair:
    """The student after DWQ on a run's prompts, each with an answer that the teacher drew."""
    assert config.student.quantize is not None
    packed = config.student.quantize.model_copy(update={"store": "packed"})
    student = load_model(config.student.model_copy(update={"quantize": packed}))
    split = split_prompts(config, teacher.tokenizer, click.echo)
    prompts = split.train[: config.train.steps * config.train.prompts_per_step]
    settings = EvalConfig(max_tokens=config.rollout.max_tokens)
    drawn = held_out_rollouts(make_scorer(teacher), prompts, settings, 1, ROWS)
    texts = [
        [*prompt.tokens, *drawn.tokens[row, :length].tolist()]
        for row, (prompt, length) in enumerate(zip(prompts, drawn.lengths, strict=True))
    ]
    distil_weights(student, teacher, texts, Recipe(DWQ_RATE, sum(map(len, texts))), seed=0)
    return make_pair(student, teacher)


def subjects(
    spec: CompareSpec, runs: Sequence[PlannedRun], teacher: LanguageModel
) -> Iterator[tuple[str, Callable[[], Pair | None]]]:
    """(name, what gives the student over its teacher); the teacher has no pair."""
    config = runs[0].config
    yield "teacher", lambda: None
    yield "student", lambda: make_pair(load_model(config.student), teacher)
    yield "dwq", lambda: by_dwq(config, teacher)
    for run in runs:
        folder = locate(run.config, run.name)
        if read_finished(spec, run) is not None and folder.config.exists():
            run_of = partial(open_target, str(folder.path), None, "final", (), True, teacher)
            yield run.name, partial(lambda target: target().pair, run_of)


@click.command()
@click.argument("name", metavar="SPEC")
@ending_plainly()
def main(name: str) -> None:
    """Measure what is not measured yet, a file each."""
    spec, root = load_spec(name)
    runs = plan_runs(spec, root, name)
    config = runs[0].config
    assert spec.record is not None
    assert config.data.eval is not None
    place = Path(spec.record) / "measures"
    place.mkdir(parents=True, exist_ok=True)
    prepare_backend()
    teacher = load_model(config.teacher)
    scorer = make_scorer(teacher)
    reported = slice(config.eval.prompts, config.eval.prompts + spec.problems)
    known = {row["prompt"]: row for row in read_lines(Path(config.data.eval.source))}
    whole = config.eval.model_copy(update={"prompts": reported.stop})
    longer = config.model_copy(update={"eval": whole})
    prompts = held_out_prompts(longer, teacher.tokenizer, click.echo)[reported]
    rows = [row_of(known, prompt) for prompt in prompts]
    settings = EvalConfig(max_tokens=config.rollout.max_tokens)
    answers = held_out_rollouts(scorer, prompts, settings, 0, ROWS)
    for subject, make in subjects(spec, runs, teacher):
        path = place / f"{subject}.json"
        if path.exists():
            continue
        begun, pair = time.process_time(), make()
        seconds = time.process_time() - begun
        found: dict[str, Any] = likeliest(pair.student if pair else scorer, prompts, rows, config)
        if pair is not None:
            found["teacher_answers"] = on_teacher_answers(pair, answers)
        if pair is not None and subject == "dwq":  # a run's own evaluation has it
            drawn = held_out_rollouts(pair.student, prompts, settings, 0, ROWS)
            found["reverse_kl"] = mean_reverse_kl(pair, drawn, SCORED)
            found["cpu_seconds"] = seconds
        write_text(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        click.echo(f"{path}: score {found['score']:.3f}, stopped {found['stopped']:.2f}")


if __name__ == "__main__":
    main()
