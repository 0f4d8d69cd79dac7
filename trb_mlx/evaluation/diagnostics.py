"""What `trb-mlx report --diagnostics` measures, and keeps in a run's diagnostics.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trb_mlx.config import Config, Section
from trb_mlx.errors import UserError
from trb_mlx.files import replacing


class Sizes(Section):
    """How much is measured: prompts, cut lengths in tokens, budgets in nats."""

    prompts: int
    cuts: list[int]
    budgets: list[float]


class BudgetRollouts(Section):
    """The rollouts `[B]` under one budget: rewards (empty without gold answers), and the mean
    log-probs that both models give their tokens, in nats."""

    budget: float
    rewards: list[float]
    student_logprob: list[float]
    teacher_logprob: list[float]


class Continuation(Section):
    """Rewards `[B]` after `model` went on from prefixes of `cut` tokens of both policies."""

    model: str
    cut: int
    vanilla: list[float]
    blended: list[float]


class Excerpt(Section):
    """The first tokens of a rollout and log π_T − log π_S of each, in nats.

    `score` is the mean over the whole rollout of `length` tokens.
    """

    pieces: list[str]
    scores: list[float]
    score: float
    length: int
    stopped: bool
    reward: float | None


class ExcerptPair(Section):
    """One prompt answered by the student alone and under the behavior policy."""

    prompt: str
    answer: str | None
    vanilla: Excerpt
    blended: Excerpt


class Diagnostics(Section):
    """Everything measured; `behavior` names what was compared with the student alone."""

    student: str
    teacher: str
    behavior: str
    max_tokens: int
    temperature: float
    sizes: Sizes
    budgets: list[BudgetRollouts]
    continuations: list[Continuation]
    excerpts: list[ExcerptPair]
    seconds: float


def default_sizes(
    config: Config,
    prompts: int | None = None,
    cuts: Sequence[int] | None = None,
    budgets: Sequence[float] | None = None,
) -> Sizes:
    """What is asked for, and for the rest: 128 prompts, cuts at 1/6 to 4/6 of the length limit,
    and a quarter, once and four times the run's budget. Budget 0 and the run's are always in.

    Raises:
        UserError: a cut is not below the length limit.
    """
    limit = config.rollout.max_tokens
    chosen = sorted(set(cuts or (max(1, limit * sixth // 6) for sixth in (1, 2, 3, 4))))
    wrong = [cut for cut in chosen if not 0 < cut < limit]
    if wrong:
        raise UserError(
            f"--cuts {wrong[0]}: expected 1 to {limit - 1}, below the run's rollout.max_tokens."
        )
    own = config.behavior.budget
    asked = budgets if budgets is not None else (own / 4, own, 4 * own)
    return Sizes(prompts=prompts or 128, cuts=chosen, budgets=sorted({0.0, own, *asked}))


def read_diagnostics(path: Path) -> Diagnostics | None:
    """What was measured before, or None.

    Raises:
        UserError: the file cannot be read; says how to make it anew.
    """
    try:
        return Diagnostics.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise UserError(
            f"{path} is not what trb-mlx report --diagnostics writes; delete it and run that again."
        ) from error


def write_diagnostics(path: Path, diagnostics: Diagnostics) -> None:
    """Keep it beside the run."""
    with replacing(path) as draft:
        draft.write_text(diagnostics.model_dump_json() + "\n", encoding="utf-8")
