"""The part of docs/results.md on SmolLM2, made of the recorded runs alone.

Reads the records of `configs/compare/smollm2.yaml` and their measures, and writes what stands
between the page's two marks; a test holds the page against it::

    python scripts/smollm2_page.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trb_mlx.comparison.outcomes import Outcome, read_outcome
from trb_mlx.comparison.spec import CompareSpec, load_spec, plan_runs
from trb_mlx.comparison.statistics import Row, compare_methods
from trb_mlx.evaluation.intervals import Interval

ROOT = Path(__file__).parent.parent
SPEC = ROOT / "configs/compare/smollm2.yaml"
PAGE = ROOT / "docs/results.md"
BEGIN, END = "<!-- smollm2: made by scripts/smollm2_page.py -->", "<!-- smollm2: end -->"
SHOWN = ("teacher", "student", "vanilla", "trb", "fixed", "sft")


def recorded(axis: str) -> tuple[CompareSpec, list[Outcome], int, dict[str, dict[str, Any]]]:
    """The comparison along an axis, its outcomes, how many runs it asks for, and the measures."""
    spec, folder = load_spec(SPEC)
    spec = spec.model_copy(update={"axis": axis, "record": str(ROOT / str(spec.record))})
    runs = plan_runs(spec, folder, str(SPEC))
    found = {run.name: outcome for run in runs if (outcome := read_outcome(spec, run)) is not None}
    measures = {}
    for path in sorted(Path(str(spec.record), "measures").glob("*.json")):
        measures[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    named = {run.name: f"{run.method}-s{run.seed}" for run in runs}
    measures = {named.get(name, name): value for name, value in measures.items()}
    return spec, list(found.values()), len(runs), measures


def page() -> str:
    """The text between the marks."""
    spec, outcomes, count, measures = recorded("tokens")
    rows = compare_methods(spec, outcomes)
    spec_seconds, by_seconds, _, _ = recorded("cpu_seconds")
    seconds = {row.method: row for row in compare_methods(spec_seconds, by_seconds)}
    done = ", ".join(f"{row.method} {len(row.seeds)}" for row in rows)
    lines = [f"{len(outcomes)} of {count} runs are recorded (seeds a method: {done}).", ""]
    lines += _distances(rows, seconds)
    lines += ["", *_answers(rows, measures), "", *_samples(measures)]
    return "\n".join(lines)


def _distances(rows: Sequence[Row], seconds: dict[str, Row]) -> list[str]:
    lines = [
        "| method | reverse KL at the end (decides) | to vanilla, over seeds | over problems "
        "| at equal tokens | at equal CPU seconds | forward KL | CPU seconds a run |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        mean, gap = row.over_seeds, row.difference.get("final.reverse_kl")
        over = row.over_problems.get("final.reverse_kl")
        cells = [
            row.method,
            _told(mean["final.reverse_kl"]),
            _told(gap, "+.3f"),
            "" if over is None else f"{over.low:+.3f} to {over.high:+.3f}",
            _told(mean.get("equal.reverse_kl")),
            _told(seconds[row.method].over_seeds.get("equal.reverse_kl")),
            _told(mean["final.forward_kl"]),
            f"{np.mean(_cpu_seconds(row)):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    cost = rows[0].equal_cost, next(iter(seconds.values())).equal_cost
    lines += ["", f"Equal: at {cost[0]:,.0f} response tokens, and at {cost[1]:,.0f} CPU seconds."]
    return lines


def _cpu_seconds(row: Row) -> list[float]:
    _, outcomes, _, _ = recorded("cpu_seconds")
    return [o.curves["reverse_kl"][-1][0] for o in outcomes if o.method == row.method]


def _told(interval: Interval | None, form: str = ".3f") -> str:
    if interval is None:
        return ""
    value = f"{interval.value:{form}}"
    return value if interval.half_width is None else f"{value} ± {interval.half_width:.3f}"


def _answers(rows: Sequence[Row], measures: dict[str, dict[str, Any]]) -> list[str]:
    names = (("score", ".1%"), ("stopped", ".1%"), ("repeated", ".1%"))
    on_teacher = (("forward_kl", ".3f"), ("top1", ".1%"), ("perplexity", ".2f"))
    lines = [
        "| | graded right | stopped | repeated | KL(π_T‖π_S) on the teacher's answers "
        "| likeliest token agrees | perplexity |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for subject in ("teacher", "student", "dwq", *(row.method for row in rows)):
        own = [each for name, each in measures.items() if name.partition("-")[0] == subject]
        if not own:
            continue
        cells = [_by_seed([each[name] for each in own], form) for name, form in names]
        texts = [each["teacher_answers"] for each in own if "teacher_answers" in each]
        for name, form in on_teacher:
            cells.append(f"{np.mean([t[name] for t in texts]):{form}}" if texts else "")
        label = {"student": "the student before", "dwq": "mlx-lm's DWQ"}.get(subject, subject)
        lines.append(f"| {label} ({len(own)}) | {' | '.join(cells)} |")
    return lines


def _by_seed(values: Sequence[float], form: str) -> str:
    """Their mean, and behind it each seed's where there are several."""
    mean = f"{np.mean(values):{form}}"
    if len(values) == 1:
        return mean
    return f"{mean} ({', '.join(f'{100 * value:.0f}' for value in values)})"


def _samples(measures: dict[str, dict[str, Any]]) -> list[str]:
    """The likeliest answers of the first seed to a few held-out prompts."""
    found = {name: measures.get(name) or measures.get(f"{name}-s0") for name in SHOWN}
    shown = {name: each for name, each in found.items() if each is not None}
    if not shown:
        return []
    prompts = list(next(iter(shown.values()))["answers"])
    lines = []
    for prompt in prompts:
        lines += [f"**{prompt}**", ""]
        lines += [f"- {name}: {_one_line(each['answers'][prompt])}" for name, each in shown.items()]
        lines.append("")
    return lines[:-1]


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def with_page(text: str) -> str:
    """The whole page with the part made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{page()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
