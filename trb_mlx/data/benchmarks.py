r"""The benchmarks of arXiv 2605.31159 by name: where they lie, and how the paper evaluates them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# More problems than any benchmark has: all of them.
ALL = 1_000_000
MAX_TOKENS = 8192
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Benchmark:
    """A data set of the Hub with its columns, and the n of the paper's pass@1."""

    source: str
    split: str
    prompt_column: str
    samples: int
    answer_column: str = "answer"
    subset: str | None = None

    def changes(self, split: str | None) -> list[tuple[str, Any]]:
        """Dotted keys and values that make a config evaluate this set as the paper does."""
        source = {
            "source": self.source,
            "subset": self.subset,
            "split": split or self.split,
            "prompt_column": self.prompt_column,
            "answer_column": self.answer_column,
        }
        return [
            ("data.eval", source),
            ("data.deduplicate", False),
            ("eval.prompts", ALL),
            ("eval.samples", self.samples),
            ("eval.temperature", 1.0),
            ("eval.top_p", 1.0),
            ("eval.max_tokens", MAX_TOKENS),
        ]


BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k", "test", "question", 32, subset="main"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", "problem", 64),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", "problem", 512),
    "aime25": Benchmark("math-ai/aime25", "test", "problem", 512),
    "amc23": Benchmark("math-ai/amc23", "test", "question", 512),
    "olympiadbench": Benchmark(
        "math-ai/olympiadbench", "test", "question", 64, answer_column="final_answer"
    ),
}


def evaluation_changes(data: str, split: str | None) -> list[tuple[str, Any]]:
    """Dotted keys and values that evaluate on `data`.

    Args:
        data: a benchmark's name, `arithmetic`, or what `data.eval.source` takes.
        split: another split than the benchmark's own, or than `test`.
    """
    if data in BENCHMARKS:
        return BENCHMARKS[data].changes(split)
    source = "generated:arithmetic" if data == "arithmetic" else data
    changes: list[tuple[str, Any]] = [("data.eval", {"source": source, "split": split or "test"})]
    if not source.startswith("generated:"):  # a generator never ends: the config says how many
        changes.append(("eval.prompts", ALL))
    return changes
