"""The values that pass between the rooms.

Axis letters used everywhere: B rows (rollouts), T response positions, V vocabulary,
K support (the student's top-k tokens), L positions of prompt and response together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for a model: its ids, its text, and the gold answer where there is one.

    `grader` names the item of a generated family whose own scorer knows what is right
    (`data.gym`). Where the teacher reads a prompt of its own, `teacher_text` and `teacher_tokens`
    are that prompt; the response that follows is one and the same.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    answer: str | None = None
    grader: str | None = None
    teacher_text: str | None = None
    teacher_tokens: tuple[int, ...] | None = None

    def text_for(self, teacher: bool) -> str:
        """What the teacher, or the student, is given."""
        return self.teacher_text if teacher and self.teacher_text is not None else self.text

    def tokens_for(self, teacher: bool) -> tuple[int, ...]:
        """The ids that the teacher, or the student, reads before the response."""
        own = self.teacher_tokens if teacher else None
        return self.tokens if own is None else own


@dataclass(frozen=True)
class RolloutKey:
    """What a rollout's random draws depend on, and nothing else: not its place in a batch."""

    seed: int
    step: int
    prompt: int
    rollout: int


@dataclass(frozen=True)
class Job:
    """One rollout that is asked for: the prompt and the key of its draws."""

    prompt: Prompt
    key: RolloutKey


@dataclass(frozen=True)
class Sampling:
    """How rollouts are drawn: length limit, rows at once, temperature τ, K recorded (0: none).

    `top_p` cuts the tail off one model's draws, in evaluations alone: training draws from the
    whole distribution, and what is recorded is of the whole distribution. With `keep_hidden`,
    the teacher's last hidden states are recorded too.
    """

    max_tokens: int
    batch_size: int = 64
    temperature: float = 1.0
    support: int = 0
    keep_hidden: bool = False
    top_p: float = 1.0


@dataclass
class Records:
    """What is kept of every drawn token, as host arrays `[B, T]` (`[B, T, K]` for the support).

    Log-probs and entropies are in nats. Those marked τ are of the tempered distributions that
    the draw used; the support is at temperature 1, as the loss is.
    """

    support: np.ndarray  # int32 [B, T, K]: the student's top-k ids
    teacher_support: np.ndarray  # [B, T, K]: the teacher's log-probs on them, at temperature 1
    teacher_rest: np.ndarray  # [B, T]: log of the teacher's mass outside the support
    student_mass: np.ndarray  # [B, T]: the student's mass on the support
    overlap: np.ndarray  # int32 [B, T]: ids shared by both models' top-k
    kl_behavior: np.ndarray  # [B, T]: KL(μ‖π_S), τ
    weight: np.ndarray  # [B, T]: the blend weight β
    total_variation: np.ndarray  # [B, T]: TV(μ, π_S), τ
    student_entropy: np.ndarray  # [B, T]: τ
    teacher_entropy: np.ndarray  # [B, T]: τ
    student_logprob: np.ndarray  # [B, T]: of the drawn token, τ
    teacher_logprob: np.ndarray  # [B, T]: of the drawn token, τ
    corrected: np.ndarray  # bool [B, T]: the token replaced a draft that was rejected
    teacher_top: np.ndarray  # int32 [B, T]: the teacher's likeliest id
    # [B, T, D]: the teacher's last hidden states in `rollout.recording`'s host form, or None
    # where the objective runs the teacher's body again.
    teacher_hidden: np.ndarray | None = None

    @classmethod
    def empty(cls, rows: int, length: int, support: int) -> Records:
        """Zeros for `rows` rollouts of at most `length` tokens with K = `support`."""
        wide = (rows, length, support)
        names = [name for name in cls.__annotations__ if name != "teacher_hidden"]
        values = {name: np.zeros((rows, length), np.float32) for name in names}
        values |= {
            "support": np.zeros(wide, np.int32),
            "teacher_support": np.zeros(wide, np.float32),
        }
        values["overlap"] = np.zeros((rows, length), np.int32)
        values["corrected"] = np.zeros((rows, length), bool)
        values["teacher_top"] = np.zeros((rows, length), np.int32)
        return cls(**values)

    def put(self, name: str, rows: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
        """Keep `values` `[N, …]` at the given rows and positions, each int `[N]`."""
        kept = getattr(self, name)
        if kept is None:  # zeros take no memory before they are written
            kept = np.zeros((*self.weight.shape, *values.shape[1:]), values.dtype)
            setattr(self, name, kept)
        kept[rows, places] = values

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def cut(self, length: int) -> Records:
        """The first `length` positions of every row, as views."""
        return Records(**{name: value[:, :length] for name, value in self.arrays().items()})


@dataclass
class Rollout:
    """A finished batch of rollouts.

    `tokens` is int32 `[B, T]`, right-padded; `lengths` `[B]` counts response tokens, the stop
    token included; `stopped` `[B]` is False where the length limit cut the row. `rounds` adds up
    the rows of every round of decoding, and `drafted` the tokens drafted for them. `horizon` is
    the length limit where that was below the full one: a row that it cut is not finished, and
    neither a stop event nor a truncated answer. Where several ranks draw, `ranks` `[B]` says which
    one drew a row.
    """

    jobs: list[Job]
    tokens: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    records: Records | None = None
    temperature: float = 1.0
    rounds: int = 0
    drafted: int = 0
    horizon: int | None = None
    ranks: np.ndarray | None = None

    @property
    def cut(self) -> np.ndarray:
        """Bool `[B]`: True where a horizon, and not the full length limit, ended the row."""
        return ~self.stopped & (self.horizon is not None)

    def first(self, count: int) -> Rollout:
        """The first `count` tokens of every response, with what is recorded of them."""
        records = None if self.records is None else self.records.cut(count)
        return replace(
            self,
            tokens=self.tokens[:, :count],
            lengths=np.minimum(self.lengths, count),
            stopped=self.stopped & (self.lengths <= count),
            records=records,
        )

    @property
    def step(self) -> int:
        """The training step, counted from 0, that all jobs of the batch belong to."""
        return self.jobs[0].key.step

    @property
    def mask(self) -> np.ndarray:
        """Bool `[B, T]`: True at the positions that hold a response token."""
        return np.arange(self.tokens.shape[1])[None] < self.lengths[:, None]

    def response(self, row: int) -> list[int]:
        """The response ids of one row, the stop token included."""
        return self.tokens[row, : self.lengths[row]].tolist()


@dataclass(frozen=True)
class Cost:
    """What training has cost so far, evaluations included in the time only.

    Attributes:
        loss_tokens: response tokens in the loss.
        student_tokens, teacher_tokens: that each model has read, prompts and drafts included,
            padding not; twice where it reads them twice, to draw and to learn.
        minutes: of the clock.
        cpu_seconds: of this process's threads.
    """

    loss_tokens: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    minutes: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both."""
        return Cost(**{name: mine + vars(other)[name] for name, mine in vars(self).items()})


@dataclass
class StepResult:
    """What one training step leaves: its metrics by name, the rollouts that were drawn for it,
    their rewards (None where nothing tells right from wrong), and all costs up to it.
    """

    step: int
    metrics: dict[str, float]
    rollout: Rollout | None = None
    rewards: list[float | None] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)


Metrics = dict[str, float]
Say = Callable[[str], None]  # takes a sentence for the user


def say_nothing(sentence: str) -> None:
    """A `Say` for callers who want none."""
