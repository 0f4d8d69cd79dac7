"""Run folders with made-up metrics, and made-up diagnostics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trb_mlx.config_file import dump_config, load_config
from trb_mlx.evaluation.diagnostics import (
    BudgetRollouts,
    Continuation,
    Diagnostics,
    Excerpt,
    ExcerptPair,
    Sizes,
)

PAIR = [("teacher.model", "them/teacher"), ("student.model", "us/student")]
HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2}$ <img src=x onerror=alert(1)>'


def lines(steps: int = 6, shift: float = 0.0, budget: float = 0.3) -> list[dict[str, Any]]:
    """Every metric that a run writes, evaluated at the first, third and last step."""
    found: list[dict[str, Any]] = []
    for step in range(steps + 1):
        line: dict[str, Any] = {"step": step}
        if step in (0, 3, steps):
            line |= {
                "eval/pass@1": 0.1 * step + shift,
                "eval/reverse_kl": 2.0 / (step + 1) + shift,
                "time/eval_s": 1.5,
            }
        if step == 0:
            line["eval/teacher_pass@1"] = 0.95
        else:
            line |= training(step, shift, max(0.0, budget * (1 - (step - 1) / 3)))
        found.append(line)
    return found


def training(step: int, shift: float, budget: float) -> dict[str, float]:
    """The metrics of one training step."""
    return {
        "reverse_kl": 3.0 / step + shift,
        "reward/mean": min(1.0, 0.2 * step + shift),
        "trb/epsilon": budget,
        "trb/beta_mean": 0.5 * budget,
        "trb/kl_behavior_student": 0.9 * budget,
        "trb/acceptance_rate": 1.0 - budget,
        "entropy/student": 0.5 / step,
        "entropy/teacher": 0.4 / step,
        "entropy/gap": 0.1 / step,
        "completions/mean_length": 30.0 + step,
        "completions/truncated_fraction": 0.1,
        "tokens_per_second": 1000.0,
        "time/rollout_s": 2.0,
        "time/update_s": 1.0,
        "memory/peak_gb": 0.5,
    }


def make_run(folder: Path, metrics: list[dict[str, Any]] | None = None, **changes: object) -> Path:
    """A run folder; `changes` are config keys with `__` for the dot."""
    folder.mkdir(parents=True)
    values = [(key.replace("__", "."), value) for key, value in changes.items()]
    (folder / "config.yaml").write_text(dump_config(load_config(None, [*PAIR, *values])))
    if metrics is None:
        metrics = lines()
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def made_up(piece: str = "4", prompt: str = "2+2", rewarded: bool = True) -> Diagnostics:
    """Diagnostics of four prompts; without rewards as where no gold answers are."""
    rewards = [0.0, 1.0, 0.0, 1.0] if rewarded else []
    shown = Excerpt(
        pieces=[piece, "\n", "⟨stop⟩"],
        scores=[-9.0, 0.5, 0.0],
        score=-2.8,
        length=3,
        stopped=True,
        reward=0.0 if rewarded else None,
    )
    return Diagnostics(
        student="us/student",
        teacher="them/teacher",
        behavior="TRB, ε = 0.3",
        max_tokens=16,
        temperature=1.0,
        sizes=Sizes(prompts=4, cuts=[4, 8], budgets=[0.0, 0.3]),
        budgets=[
            BudgetRollouts(
                budget=budget,
                rewards=rewards,
                student_logprob=[-1.0, -1.0, -2.0, -0.5],
                teacher_logprob=[-3.0, -1.5, -2.5 + budget, -0.5],
            )
            for budget in (0.0, 0.3)
        ],
        continuations=[
            Continuation(model=model, cut=cut, vanilla=rewards, blended=[1.0, 1.0, 0.0, 1.0])
            for cut in (4, 8)
            for model in ("teacher", "student")
            if rewarded
        ],
        excerpts=[ExcerptPair(prompt=prompt, answer=prompt, vanilla=shown, blended=shown)],
        seconds=1.0,
    )
