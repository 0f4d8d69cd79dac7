"""The bundled pair's corpus and tokenizer: worked solutions, drifting documents, byte-level BPE.

The student's documents drift: in each line of a solution there is one place at which a document
may leave for unrelated text, never to come back. A base model trained on them can do every step,
yet seldom stays with the steps up to the answer. The places and what follows differ from line to
line, so that staying on course at one of them says little about the next, and the late ones are
seldom visited by a model that drifts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trb_mlx.data.arithmetic import Problem

STUDENT_EOS = "<|endoftext|>"
TEACHER_EOS = "<|im_end|>"
SPECIAL_TOKENS = [STUDENT_EOS, "<|im_start|>", TEACHER_EOS]
VOCABULARY_SIZE = 400
IGNORED = -1

# What leaves a solution: (lines kept, line being left, generator) -> the whole drifted text.
Departure = Callable[[list[str], str, random.Random], str]

SUBJECTS = """the river|the old miller|a grey cat|my sister|the garden|a small boat|the baker
every child|the winter wind|a tired horse|the lamp|our neighbour|the village|a young fox
the long road|his mother|the blue door|a quiet bird|the moon|the harbour"""
VERBS = """waited for|looked at|walked past|remembered|followed|painted|carried|forgot|left
sang to|dreamed of|returned to|listened to|found|turned towards|slept near"""
OBJECTS = """the hills|a wooden bridge|the sea|an empty house|the market|a letter|some bread
the green field|a song|the first snow|her brother|the open window|two apples|the forest
a red coat|the church|nothing at all|the summer rain"""
TAILS = """in the morning|before the storm|with a smile|all night|for many years|by the fire
without a word|once again|under the stars|after dinner|near the water|on a cold day"""
JOINERS = "and|but|while|because|so|until"
PHRASES = {
    part: re.split(r"[|\n]", text)
    for part, text in [
        ("subject", SUBJECTS),
        ("verb", VERBS),
        ("object", OBJECTS),
        ("tail", TAILS),
        ("joiner", JOINERS),
    ]
}


def sentence(generator: random.Random) -> str:
    """Draw one sentence of prose."""

    def clause() -> str:
        words = [generator.choice(PHRASES[part]) for part in ("subject", "verb", "object")]
        return " ".join(words)

    text = clause()
    if generator.random() < 0.5:
        text += " " + generator.choice(PHRASES["tail"])
    if generator.random() < 0.4:
        text += f" {generator.choice(PHRASES['joiner'])} {clause()}"
    return text[0].upper() + text[1:] + "."


def prose(generator: random.Random) -> str:
    """Draw a paragraph of one to three sentences."""
    return " ".join(sentence(generator) for _ in range(generator.randint(1, 3)))


def prompt_text(problem: Problem) -> str:
    """Return what stands before a solution: the question and a newline."""
    return problem.question + "\n"


def _leave_at_start(kept: list[str], line: str, generator: random.Random) -> str:
    return "\n".join([*kept, prose(generator)])


def _leave_before_newline(kept: list[str], line: str, generator: random.Random) -> str:
    joiner = generator.choice(PHRASES["joiner"])
    return "\n".join(kept) + f" {joiner} {_uncapitalised(prose(generator))}"


def _leave_after_equals(kept: list[str], line: str, generator: random.Random) -> str:
    left = line.split("=")[0]
    return "\n".join([*kept, f"{left}={_uncapitalised(prose(generator))}"])


def _leave_for_list(kept: list[str], line: str, generator: random.Random) -> str:
    items = [f"- {generator.choice(PHRASES['object'])}" for _ in range(generator.randint(3, 6))]
    return "\n".join([*kept, *items])


def _leave_after_answer(kept: list[str], line: str, generator: random.Random) -> str:
    return "\n".join([*kept, f"Answer: {_uncapitalised(prose(generator))}"])


def _uncapitalised(text: str) -> str:
    return text[0].lower() + text[1:]


# For each step line its hazard (the probability to leave there) and its way to leave; the answer
# line has its own. Together they let about one document in ten reach its answer.
STEP_DEPARTURES: tuple[tuple[float, Departure], ...] = (
    (0.50, _leave_at_start),
    (0.45, _leave_before_newline),
    (0.35, _leave_after_equals),
    (0.30, _leave_for_list),
)
ANSWER_DEPARTURE: tuple[float, Departure] = (0.30, _leave_after_answer)


def drifted(solution: str, generator: random.Random) -> str:
    """Let a solution leave for unrelated text, at each of its lines with that line's hazard."""
    lines = solution.split("\n")
    departures = [*STEP_DEPARTURES[: len(lines) - 1], ANSWER_DEPARTURE]
    for depth, (line, (hazard, leave)) in enumerate(zip(lines, departures, strict=True)):
        if generator.random() < hazard:
            return leave(lines[:depth], line, generator)
    return solution


def build_tokenizer(problems: list[Problem], seed: int) -> Tokenizer:
    """Train a byte-level BPE whose digits, newlines and punctuation stay tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\n| ?\p{L}+|[^\p{L}]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    generator = random.Random(f"tokenizer {seed}")
    texts = [prompt_text(p) + p.solution + "\n" + prose(generator) for p in problems]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_documents(
    tokenizer: Tokenizer, problems: list[Problem], drifts: bool, eos: str, seed: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encode prompts with their solutions as two int16 arrays of shape [documents, length].

    Args:
        tokenizer: the pair's tokenizer.
        problems: one document each.
        drifts: whether solutions may leave for unrelated text.
        eos: the model's stop token.
        seed: draws the departures.
        length: tokens a document; what is longer is cut.

    Returns:
        tokens: prompt, continuation, stop token; then stop tokens as padding.
        targets: the token to predict at each position, `IGNORED` within prompts and padding.
    """
    generator = random.Random(f"drift {seed}")
    prompts = tokenizer.encode_batch([prompt_text(p) for p in problems])
    solutions = [drifted(p.solution, generator) if drifts else p.solution for p in problems]
    continuations = tokenizer.encode_batch(solutions)
    stop = tokenizer.token_to_id(eos)
    assert stop is not None
    tokens = np.full((len(problems), length), stop, np.int16)
    targets = np.full((len(problems), length), IGNORED, np.int16)
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        document: list[int] = [*prompt.ids, *continuation.ids, stop]
        end = min(len(document), length)
        tokens[row, :end] = document[:end]
        targets[row, len(prompt.ids) - 1 : end - 1] = document[len(prompt.ids) : end]
    return tokens, targets


def batches(
    tokens: np.ndarray, targets: np.ndarray, size: int, steps: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `steps` batches of `size` rows, epoch after epoch in a seeded order."""
    generator = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = generator.permutation(len(tokens))
        rows, order = order[:size], order[size:]
        yield tokens[rows].astype(np.int32), targets[rows].astype(np.int32)
