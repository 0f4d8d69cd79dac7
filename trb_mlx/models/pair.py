"""Teacher and student side by side, checked before any step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from trb_mlx.errors import UserError, reading
from trb_mlx.files import json_digest
from trb_mlx.models.arrays import weights_digest
from trb_mlx.models.head import Split, split_model
from trb_mlx.models.loading import LanguageModel, ModelLike, load_model
from trb_mlx.ops.vocab import StopMerge, merge_stops, shared_logits

# Texts whose encodings differ between tokenizers that merely share a size.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "12 + 345 = 357, 3.14159 and 1e-5\n\tdef f(x): return x**2",
    "Größe, naïve café — “quoted” … 数学の問題 Привет 😀",
    "\\boxed{\\frac{1}{2}}\n\n  two  spaces\r\n",
)


@dataclass(frozen=True)
class Scorer:
    """A model seen through the shared vocabulary.

    Attributes:
        model: the loaded model.
        merge: how its logits map to the shared vocabulary.
        split: its body and head, or None where it cannot be split.
        is_teacher: whether it reads the teacher's prompt, where that is another.
    """

    model: LanguageModel
    merge: StopMerge
    split: Split | None = None
    is_teacher: bool = False

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Hidden states `[B, T, D]` of ids `[B, T]`, after the final norm.

        Raw logits `[B, T, W]` where there is no `split`.
        """
        if self.split is None:
            return self.model.module(tokens, cache=cache)
        return self.split.body(tokens, cache)

    def logits_of(self, hidden: mx.array) -> mx.array:
        """Float32 logits `[..., V]` of what `hidden` gave."""
        logits = hidden if self.split is None else self.split.head(hidden)
        return shared_logits(logits, self.merge)

    def logits(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Float32 logits `[B, T, V]` of right-padded ids `[B, T]`."""
        return shared_logits(self.model.module(tokens, cache=cache), self.merge)


@dataclass(frozen=True)
class Pair:
    """Both models over one vocabulary with one stop event."""

    student: Scorer
    teacher: Scorer

    @property
    def stop_id(self) -> int:
        """The id that is emitted when the stop event is drawn: the student's EOS."""
        return self.student.merge.stop_id


def load_pair(student: ModelLike, teacher: ModelLike) -> Pair:
    """Load both models and check that they can be compared token by token.

    >>> pair = load_pair("bundled:arithmetic-student", "bundled:arithmetic-teacher")
    >>> pair.student.logits(mx.array([[1, 2, 3]])).shape
    (1, 3, 400)

    Args:
        student: what `student.model` takes, or its whole section as a mapping.
        teacher: the same of the teacher.

    Raises:
        UserError: a model cannot be loaded, or the tokenizers differ.
    """
    return make_pair(load_model(student), load_model(teacher))


def make_pair(student: LanguageModel, teacher: LanguageModel) -> Pair:
    """Pair two loaded models; the teacher is frozen.

    Raises:
        UserError: the tokenizers differ in size, ids or probe encodings, or a model has no EOS.
    """
    check_tokenizers(student, teacher)
    teacher.module.freeze()
    size = min(len(student.tokenizer), logit_width(student), logit_width(teacher))
    stop_id = _stop_id(student, size, "student")
    _stop_id(teacher, size, "teacher")  # one that cannot end would teach never to end
    scorers = (
        Scorer(
            model,
            merge_stops(size, stop_id, model.stop_ids, other.stop_ids),
            split_model(model.module),
            is_teacher=model is teacher,
        )
        for model, other in ((student, teacher), (teacher, student))
    )
    return Pair(*scorers)


def make_scorer(model: LanguageModel, other_stops: Iterable[int] = ()) -> Scorer:
    """A model on its own: padded rows cut off and its EOS ids merged into its first.

    `other_stops` are EOS ids of a teacher that it was trained with, masked as in training.
    """
    size = min(len(model.tokenizer), logit_width(model))
    merge = merge_stops(size, _stop_id(model, size), model.stop_ids, other_stops)
    return Scorer(model, merge, split_model(model.module))


def model_digests(scorer: Scorer, name: str) -> dict[str, Any]:
    """What of a model has to be the same wherever a run is shared, by what it is in words."""
    model = scorer.model
    own = ("_name_or_path", "transformers_version")  # of who saved it, not of what it computes
    config = {key: value for key, value in model.config.items() if key not in own}
    return {
        f"the digest of {name}'s weights": weights_digest(model.module),
        f"the digest of {name}'s config": json_digest(json.loads(json.dumps(config, default=str))),
        f"the stop ids of {name}": sorted(model.stop_ids),
    }


def _stop_id(model: LanguageModel, size: int, role: str = "model") -> int:
    known = [token for token in model.stop_ids if token < size]
    if not known:
        raise UserError(
            f"{role} {model.name} has no EOS id that its tokenizer knows; expected eos_token_id "
            "in its config.json, or eos_token in its tokenizer_config.json."
        )
    return known[0]


def logit_width(model: LanguageModel) -> int:
    """W, the number of logits that the model gives (embedding rows, padding included).

    Raises:
        UserError: the model cannot read a token: its config and its weights are at odds.
    """
    with reading(f"model {model.name}"):
        logits = model.module(mx.array([[0]]))
        mx.eval(logits)
        return int(logits.shape[-1])


def check_tokenizers(student: LanguageModel, teacher: LanguageModel) -> None:
    """Refuse a pair whose token ids do not mean the same.

    Raises:
        UserError: one sentence with the first difference.
    """
    names = f"student {student.name} and teacher {teacher.name}"
    student_size, teacher_size = len(student.tokenizer), len(teacher.tokenizer)
    if student_size != teacher_size:
        raise UserError(
            f"{names} have tokenizers of different size ({student_size} and {teacher_size} "
            "tokens); on-policy distillation needs one tokenizer for both."
        )
    for probe in PROBES:
        student_ids, teacher_ids = (
            list(model.tokenizer.encode(probe, add_special_tokens=False))
            for model in (student, teacher)
        )
        if student_ids != teacher_ids:
            raise UserError(
                f"{names} encode {probe[:24]!r} differently though their tokenizers are of one "
                "size; on-policy distillation needs one tokenizer for both."
            )
    teacher_vocab = teacher.tokenizer.get_vocab()
    for token, student_id in student.tokenizer.get_vocab().items():
        teacher_id = teacher_vocab.get(token)
        if student_id != teacher_id:
            raise UserError(
                f"{names} give the token {token!r} different ids ({student_id} and {teacher_id}); "
                "on-policy distillation needs one tokenizer for both."
            )
