"""The memory of each phase of a run, part by part, from a config and what models look like.

Every part is a count of arrays: what is resident throughout, and what a phase adds at its worst
moment with every row at its limit. Constants that are no count are measured, and say so.
docs/models.md, "What a run holds", has the account; `scripts/plan_check.py` holds it against runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trb_mlx.bounds import CHUNK_BYTES, CPU_ENTRIES
from trb_mlx.config import Config
from trb_mlx.data.context import longest_prompt
from trb_mlx.planning.machine import Machine
from trb_mlx.planning.passes import BlockPass
from trb_mlx.planning.shapes import ModelShape
from trb_mlx.rollout.draft_length import LENGTHS
from trb_mlx.rollout.packing import LENGTH_STEP, size_class
from trb_mlx.rollout.recording import plan_hidden
from trb_mlx.rollout.row_cache import GROWTH

PREFILL_TOKENS = 2048  # of each row in one pass
# Wide arrays [rows, V] that live at once, measured (docs/log.md): of the chunk that a loss is in
# the middle of, and of a draft's place (log-probs, masses, roots).
LOSS_ARRAYS, DRAFT_ARRAYS = 6.0, 3.0
# A mask that a cache makes, and the two comparisons of which it is made, an entry.
MASK_BYTES = 3
# Blocks whose gradients wait, measured: MLX looks 20 arrays ahead, some three blocks of seven.
WAITING_BLOCKS = 3
FUSED_DIMS = (64, 72, 80, 96, 128)  # head widths for which Metal's attention holds no scores


@dataclass(frozen=True)
class Phase:
    """One phase: bytes of its parts at its worst moment, by what they are."""

    parts: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """All of them."""
        return sum(self.parts.values())


@dataclass
class MemoryPlan:
    """A run's phases in the order in which it has them; `host` bytes are beside MLX's."""

    phases: dict[str, Phase]
    host: dict[str, int] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        """The highest of all phases."""
        return max(phase.peak_bytes for phase in self.phases.values())


class MemoryModel:
    """The account of one run."""

    def __init__(
        self,
        config: Config,
        student: ModelShape,
        teacher: ModelShape,
        adapters: int,
        machine: Machine,
    ) -> None:
        """`adapters` are bytes of the student's; `machine` is where it would run."""
        self._config, self._machine = config, machine
        self._student, self._teacher = student, teacher
        self._adapters = adapters
        contexts = [each.context for each in (student, teacher) if each.context is not None]
        self._response = config.rollout.max_tokens
        self._answer = config.eval.max_tokens or self._response  # of evaluations
        self._prompt = config.data.max_prompt_tokens
        if contexts:
            longest = longest_prompt(min(contexts), self._response, self._prompt)
            self._prompt = min(self._prompt, longest)
            self._response = min(self._response, min(contexts) - self._prompt)
            self._answer = min(self._answer, min(contexts) - self._prompt)
        self._rollouts = config.train.prompts_per_step * config.rollout.rollouts_per_prompt
        self._most_entries = config.train.vocabulary_mb * 2**20 // 4

    def plan(self) -> MemoryPlan:
        """All phases."""
        phases = {
            "load": self._load(),
            "rollout": self._rollout(),
            "update": self._update(),
            "eval": self._eval(),
        }
        host = {}
        if self.keeps_hidden:
            host["the teacher's hidden states"] = self._hidden_bytes()
        return MemoryPlan(phases, host)

    @property
    def keeps_hidden(self) -> bool:
        """Whether the teacher's hidden states go from rollout to update."""
        config, teacher = self._config, self._teacher
        if config.loss.mode != "exact":
            return False
        tokens = self._rollouts * config.rollout.max_tokens
        memory = self._machine.memory_bytes
        setting = config.loss.keep_hidden
        return plan_hidden(setting, tokens, teacher.width, teacher.item, memory).keep

    def _hidden_bytes(self) -> int:
        return self._rollouts * self._response * self._teacher.width * self._teacher.item

    def _models(self) -> dict[str, int]:
        """What is resident throughout; the state before the last update is kept beside the new."""
        weights = {"student": self._student.weights}
        if not self._config.is_self_taught:
            weights["teacher"] = self._teacher.weights
        return weights | {"adapters and optimizer": 6 * self._adapters}

    def _load(self) -> Phase:
        """The second model while it is rounded or unpacked: both its forms, and the first."""
        student, teacher = {"student": self._student.weights}, self._teacher
        first = student | {"as it is read": _more(self._student)}
        if self._config.is_self_taught:
            return Phase(first)
        second = student | {"teacher": teacher.weights, "as it is read": _more(teacher)}
        return Phase(max(first, second, key=lambda parts: sum(parts.values())))

    def _rollout(self) -> Phase:
        """Drawing with both models' caches, or scoring what the student drew alone."""
        config = self._config
        sizes = config.rollout.batch_size, self._rollouts, config.rollout.rollouts_per_prompt
        answer, student, teacher = self._response, [self._student], [self._teacher]
        if self._config.behavior.kind in ("vanilla", "temperature"):
            parts = [self._drawing(student, *sizes, answer)]
            parts.append(self._scoring(teacher, self._packed(False)[0], answer))
        else:
            parts = [self._drawing(student + teacher, *sizes, answer)]
        if config.target.sft_steps:  # the teacher's own answers
            parts.append(self._drawing(teacher, *sizes, answer))
        return self._largest(parts)

    def _largest(self, parts: list[dict[str, int]]) -> Phase:
        return Phase(self._models() | max(parts, key=lambda each: sum(each.values())))

    def _drawing(
        self, readers: list[ModelShape], batch: int, jobs: int, copies: int, answer: int
    ) -> dict[str, int]:
        """Caches of all rows, and the larger of a prefill and a round of blocks, for two models.

        `readers` are the one that draws, or student and teacher.
        """
        both = len(readers) > 1
        vocab = self._student.vocab
        most = max(1, self._most_entries // vocab)
        rows = min(batch, jobs, most)
        places = _rounded(self._prompt + answer, GROWTH)
        caches = [rows * (places * each.place + each.fixed) for each in readers]
        distinct = -(-rows // copies)
        prefill = 0.0  # one model after another, beside the caches of those before
        for number, each in enumerate(readers):
            read = min(self._prompt, PREFILL_TOKENS)
            own = distinct * _rounded(self._prompt, GROWTH) * each.place
            reading = own + self._cached(each, distinct, read, self._prompt)
            prefill = max(prefill, sum(caches[:number]) + reading)
        block = 1
        if both:
            setting = self._config.rollout.draft_length
            longest = max(1, most // rows)
            block = min(max(LENGTHS) if setting == "auto" else setting, longest, answer)
        drafts = 4.0 * vocab * rows * block * (DRAFT_ARRAYS + (2.0 if both else 1.0))
        group = min(most, rows) if self._machine.is_gpu else CPU_ENTRIES // vocab + 1
        work = 4.0 * vocab * group * 4.0
        reading = max(self._cached(each, rows, block, places) for each in readers)
        # Two layers' keys and values at once while buffers grow.
        grown = max(2 * rows * places * each.place / len(each.blocks) for each in readers)
        decoding = drafts + work + reading + grown
        if prefill > sum(caches) + decoding:
            return {"caches and a prefill": int(prefill)}
        return {"caches": int(sum(caches)), "a round of drawing": int(decoding)}

    def _forward(self, shape: ModelShape, rows: int, tokens: int, places: int) -> float:
        """A pass without a gradient: its widest place with what comes next, and attention's scores.

        Scores are one array where attention has no kernel: its softmax is written over them.
        """
        widest = max(block.widest for block in shape.blocks)
        scores = max(self._scores(block, rows, tokens, places) for block in shape.blocks)
        return 2 * rows * tokens * widest + scores

    def _cached(self, shape: ModelShape, rows: int, tokens: int, places: int) -> float:
        """A pass that reads a cache, whose mask all attention shares."""
        attends = any(block.score for block in shape.blocks)
        mask = MASK_BYTES * rows * tokens * places if attends else 0
        return self._forward(shape, rows, tokens, places) + mask

    def _scores(self, block: BlockPass, rows: int, tokens: int, places: int) -> float:
        fused = self._machine.is_gpu and (tokens <= 8 or block.head_dim in FUSED_DIMS)
        return 0.0 if fused else block.score * rows * tokens * places

    def _scoring(self, readers: list[ModelShape], rows: int, answer: int) -> dict[str, int]:
        """Finished rows read without a cache, a chunk of their logits at a time.

        On a CPU two models run beside each other.
        """
        length = self._prompt + answer - 1
        passes = [self._forward(each, rows, length, length) for each in readers]
        reading = max(passes) if self._machine.is_gpu else sum(passes)
        hidden = sum(rows * length * each.width * each.item for each in readers)
        chunk = self._chunk(rows * answer, len(readers))
        return {
            "a pass of finished rows": int(reading + hidden),
            "logits": int(chunk * (1.0 + DRAFT_ARRAYS / len(readers))),
        }

    def _chunk(self, tokens: int, models: int) -> float:
        """Bytes of the logits of a chunk, both models' where both are formed."""
        most = min(CHUNK_BYTES, 4 * self._most_entries)
        return min(float(most), 4.0 * tokens * self._student.vocab * models)

    def _packed(self, rounded: bool) -> tuple[int, int]:
        """Rows and length of the largest micro-batch."""
        train = self._config.train
        length = self._prompt + self._response - 1
        if rounded:
            length = size_class(length, LENGTH_STEP)
        rows = min(train.micro_batch_size, max(1, train.micro_batch_tokens // length))
        return (rows if rounded else min(rows, self._rollouts)), length

    def _update(self) -> Phase:
        """The larger of a micro-batch's backward pass and the optimizer's own moment."""
        config, student = self._config, self._student
        compiled = config.train.compile == "on" or (
            config.train.compile == "auto" and self._machine.is_gpu
        )
        rows, length = self._packed(compiled)
        tokens = rows * length
        count = config.lora.num_layers
        blocks = student.blocks[-count:] if count > 0 else student.blocks if count else []
        kept = [b.kept * tokens + b.score * tokens * length for b in blocks]
        low = 4.0 * config.lora.rank * sum(len(b.linears) for b in blocks) * tokens
        backward = [2.0 * b.widest * tokens + 2.0 * b.score * tokens * length for b in blocks]
        waiting = _waiting([b.made for b in blocks]) * tokens
        if config.train.grad_checkpoint:
            saved = sum(b.width * tokens for b in blocks)
            working = max(k + b for k, b in zip(kept, backward, strict=True)) if blocks else 0.0
            waiting = min(waiting, 2 * max((b.made for b in blocks), default=0.0) * tokens)
        else:
            saved = sum(kept) + low
            working = max(backward, default=0.0)
        exact = config.loss.mode == "exact"
        drawn = rows * self._response
        head = LOSS_ARRAYS * self._chunk(drawn, 2 if exact else 1)
        hidden = 3.0 * tokens * student.width * student.item
        teacher = 0.0
        if exact:
            teacher = drawn * self._teacher.width * self._teacher.item
        step = {
            "activations of a micro-batch": int(saved + hidden + teacher),
            "its backward pass": int(max(working + waiting, head)),
            "gradients": 2 * self._adapters,
        }
        if exact and not self.keeps_hidden:
            again = int(self._forward(self._teacher, rows, length, length))
            if again > sum(step.values()):
                step = {"the teacher's pass": again, "gradients": 2 * self._adapters}
        optimizer = {"gradients, the new state": 5 * self._adapters}
        if sum(optimizer.values()) > sum(step.values()):
            step = optimizer
        return Phase(self._models() | step)

    def _eval(self) -> Phase:
        """Answers of the student (and once of the teacher) drawn, then read by both models."""
        config = self._config
        both = [self._student, self._teacher]
        samples = config.eval.samples
        jobs = config.eval.prompts * samples
        sizes, answer = (config.rollout.batch_size, jobs, samples), self._answer
        parts = [self._scoring(both, min(config.train.micro_batch_size, jobs), answer)]
        for each in both if config.eval.teacher else both[:1]:
            parts.append(self._drawing([each], *sizes, answer))
        return self._largest(parts)


def _waiting(made: list[float]) -> float:
    """Gradients by projections' outputs that wait for their adapters' own to be computed.

    MLX takes a graph breadth first for a while, so that those of several blocks stand side by side.
    """
    blocks = min(len(made) - 1, WAITING_BLOCKS)
    return sum(sorted(made)[-blocks:]) if blocks > 0 else 0.0


def _more(shape: ModelShape) -> int:
    """What a model's form on disk takes beside the form in use, where the two differ."""
    return shape.read if shape.read != shape.weights else 0


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step
