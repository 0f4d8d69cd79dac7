"""What a round and a step ask of Metal, traced on any machine at a real vocabulary.

Each part of a round of blended rollouts, of scoring and of an update is traced at V = 151,936 with
arrays that are never evaluated. Printed are its launches (views cost none), as they are and where
mx.compile has joined what it can, and the bytes that it reads and writes; what Metal has no kernel
for, full sorts, masks that attention would copy and attention that holds its scores are faults.
MLX's fast functions, which fall back to many operations on a CPU, are shown as the one launch that
they are on a GPU. Equal operations are counted once, so that launches are near those of a GPU and
not exactly them. A round is the sum of its parts, compiled where the product compiles them. Last
comes which published models attend by scores, and for which blocks::

    python scripts/metal_lint.py
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import exportable  # noqa: F401  (before the product is imported)
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from published_models import PUBLISHED, header_files

from trb_mlx.config import LoraConfig, ModelConfig
from trb_mlx.kernels import blend
from trb_mlx.models.loading import outline_model
from trb_mlx.models.lora import lora_parameters, make_lora_layers
from trb_mlx.models.model_config import attention_heads
from trb_mlx.ops import sampling, trust_region
from trb_mlx.ops.coupling import replacement, stands
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.divergence import reverse_kl, reverse_kl_on_support
from trb_mlx.ops.fused_head import fused_head_loss
from trb_mlx.ops.jensen_shannon import forward_kl, generalized_jsd
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.replacement import keep_or_replace
from trb_mlx.rollout import row_cache
from trb_mlx.rollout.behavior import Blend
from trb_mlx.rollout.draft_length import LENGTHS
from trb_mlx.rollout.generator import bare_draw, softmax_draw
from trb_mlx.rollout.recording import pair_records, student_records, teacher_records
from trb_mlx.rollout.row_cache import FEW_TOKENS, Offsets, RowKVCache

VOCAB, ROWS, BLOCK, SUPPORT = 151_936, 8, 4, 16
STUDENT, TEACHER = "Qwen/Qwen3-0.6B-Base", "mlx-community/Qwen3-4B-4bit"
PLACES = 512  # in the caches
# Primitives that make another view of an array, or none at all.
VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Copy", "ExpandDims", "Flatten", "Full",
    "NumberOfElements", "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "Transpose",
    "Unflatten", "View",
}  # fmt: skip
SORTS = {"Sort", "ArgSort", "Partition", "ArgPartition"}
# No kernel on a GPU: mx.linalg's factorisations, and float64 of anything.
MISSING = {"Cholesky", "Eig", "Eigh", "Inverse", "LUF", "QRF", "SVD"}
# A round's parts: how often each comes, and whether the product compiles it.
ROUND = {
    "student, a drafted token": (BLOCK, False),
    "a student's softmax and draw": (BLOCK, True),
    f"teacher, a pass of {BLOCK}": (1, False),
    "both softmaxes": (BLOCK / 2, False),  # the teacher's alone
    "test and replacement, all rows": (BLOCK, True),
    "records of both": (BLOCK, True),
}
SOLVERS = {
    "by the kernel": {"solver by the kernel": (BLOCK, False)},
    "without it": {
        "solver, before its trials": (BLOCK, False),
        "solver, a trial": (2 * BLOCK, False),
    },
}
# Losses of the whole vocabulary.
WHOLE: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "exact": reverse_kl,
    "forward_kl": forward_kl,
    "jsd": lambda logits, teacher: generalized_jsd(logits, teacher, 0.5),
}
LARGEST = 2**31  # entries that an index of 32 bits reaches
Message = dict[str, Any]


@dataclass
class Part:
    """What one part asks for.

    Attributes:
        name: for people.
        launches: kernels by their primitive.
        joined: kernels of the same once it is compiled.
        bytes: what the first ones read and write.
        faults: what Metal cannot do, or does at a price that it must not.
    """

    name: str
    launches: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    bytes: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """All launches."""
        return sum(self.launches.values())


def trace(
    name: str,
    function: Callable[..., Any],
    *arrays: mx.array,
    has_gradient: bool = False,
    **named: Any,
) -> Part:
    """The part that a function of arrays is; nothing of it is evaluated.

    With a gradient attention always holds its scores, which then are no fault.
    """
    part = Part(name)

    def listen(message: Message) -> None:
        if message["type"] == "primitive":
            _count(part, message)

    with _fast_functions_as_one(part.faults, has_gradient):
        mx.export_function(listen, function, *arrays, **named)
    with _fast_functions_as_one([], has_gradient):
        part.joined = _joined(mx.compile(function)(*arrays, **named))
    return part


def _joined(outputs: Any) -> int:
    """The launches of a compiled function, of which these are the unevaluated outputs."""
    with tempfile.TemporaryDirectory() as place:
        graph = Path(place) / "graph.dot"
        mx.export_to_dot(str(graph), *(output for _, output in tree_flatten(outputs)))
        names = re.findall(r'label ="(\w+)"', graph.read_text(encoding="utf-8"))
    return sum(name not in VIEWS for name in names)


def _count(part: Part, message: Message) -> None:
    name = message["name"]
    if name in VIEWS:
        return
    part.launches[name] += 1
    for _, shape, dtype in (*message["inputs"], *message["outputs"]):
        size = math.prod(shape)
        part.bytes += size * dtype.size
        if size >= LARGEST:
            part.faults.append(f"{name} of {size:,} entries")
        if dtype == mx.float64:
            part.faults.append(f"{name} of float64")
        if "Scatter" in name and dtype.size == 8:
            part.faults.append(f"{name} of 8 bytes")
    widths = [shape[-1] for _, shape, _ in message["inputs"] if shape]
    if name in SORTS and max(widths, default=0) > VOCAB // 8:
        part.faults.append(f"{name} of whole rows of {max(widths):,}")
    if name in MISSING:
        part.faults.append(f"{name}, which Metal has not")


def is_fused(tokens: int, width: int, values: int, group: int) -> bool:
    """Whether Metal attends without a gradient by one kernel, which holds no scores (MLX 0.32).

    Args:
        tokens: T, the queries of a row.
        width: the dimension of a head's queries and keys.
        values: that of its values.
        group: query heads a key head.
    """
    if tokens <= FEW_TOKENS:
        known = width == values and width in (64, 96, 128, 192, 256)
        known = known or (width, values) == (192, 128)
        return known and tokens * group <= 32
    return width == values and width in (64, 72, 80, 96, 128)


@contextmanager
def _fast_functions_as_one(faults: list[str], has_gradient: bool) -> Iterator[None]:
    """mx.fast's functions as one primitive each; `faults` are what attention would do."""

    def one(*arrays: mx.array) -> mx.array:
        return mx.depends([arrays[0]], list(arrays[1:]))[0]

    def attend(q: mx.array, k: mx.array, v: mx.array, **kwargs: Any) -> mx.array:
        rows, heads, tokens, width = q.shape
        group = heads // k.shape[1]
        if not has_gradient and not is_fused(tokens, width, v.shape[-1], group):
            faults.append(
                f"scores of {tokens} tokens held (head dimension {width}, {group} heads a key head)"
            )
        mask = kwargs.get("mask")
        if isinstance(mask, mx.array):
            if rows > 1 and tokens <= FEW_TOKENS and mask.shape[1] != heads:
                faults.append(f"a mask {list(mask.shape)} copied to {heads} heads")
            return one(q, k, v, mask)
        return one(q, k, v)

    stand_ins: dict[str, Any] = {
        "rms_norm": lambda x, weight, eps: one(x, weight),
        "rope": lambda x, *_, **__: one(x, x),
        "scaled_dot_product_attention": attend,
    }
    with patch.multiple(mx.fast, **stand_ins):
        yield


class Traced:
    """A published model with unevaluated arrays, as a function of them."""

    def __init__(self, name: str, layers: int | None, place: Path, lora: bool) -> None:
        """With `layers` blocks (None: all of them), and adapters where `lora` is."""
        config = PUBLISHED[name]
        PUBLISHED[name] = config | ({} if layers is None else {"num_hidden_layers": layers})
        outline = outline_model(ModelConfig(model=str(header_files(name, place))))
        PUBLISHED[name] = config
        self.module = outline.module
        self.heads = attention_heads(outline.config)
        if lora:
            self.module.freeze()
            make_lora_layers(self.module, -1, lora_parameters(LoraConfig()), False)
        arrays = dict(tree_flatten(self.module.parameters()))
        self.arrays: dict[str, Any] = {key: _spread(a.shape, a.dtype) for key, a in arrays.items()}

    def __call__(self, ids: mx.array, cache: Any, arrays: dict[str, mx.array]) -> mx.array:
        """Logits `[B, T, V]`."""
        self.module.update(tree_unflatten(list(arrays.items())))
        return self.module(ids, cache=cache)

    def token_part(self, name: str, tokens: int) -> Part:
        """`tokens` tokens of `ROWS` ragged rows, whose caches hold nearly `PLACES` places.

        It is what a second pass adds to a first: adapters are cast and joined once an update.
        """
        both, first = self._passes(tokens, 2), self._passes(tokens, 1)
        return _less(name, both, first)

    def _passes(self, tokens: int, count: int) -> Part:
        shapes = [layer.state for layer in self._caches()]

        def step(ids: mx.array, *buffers: mx.array, **arrays: mx.array) -> Any:
            offsets = Offsets((PLACES - 64 - np.arange(ROWS)).tolist(), self.heads)
            layers: list[RowKVCache] = []
            for number in range(len(shapes)):
                layers.append(RowKVCache(offsets))
                layers[-1].keys, layers[-1].values = buffers[2 * number : 2 * number + 2]
            logits = []
            for own in mx.split(ids, count, axis=1):
                logits.append(self(own, layers, arrays))
                offsets.set(offsets.lengths + tokens)
            return [*logits, *(each for layer in layers for each in layer.state)]

        buffers = [_spread(each.shape, each.dtype) for state in shapes for each in state]
        ids = mx.zeros((ROWS, count * tokens), mx.int32)
        with patch.object(row_cache, "on_gpu", lambda: True):
            return trace("", step, ids, *buffers, **self.arrays)

    def _caches(self) -> list[RowKVCache]:
        offsets = Offsets([0] * ROWS)
        layers = [RowKVCache(offsets) for _ in self.module.layers]
        self.module(mx.zeros((ROWS, PLACES - 64), mx.int32), cache=layers)
        return layers


def _spread(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.broadcast_to(mx.zeros((), dtype), shape)


def model_parts(layers: tuple[int | None, int | None]) -> Iterator[Part]:
    """A drafted token, a verifying pass and a step of the loss, of so many blocks."""
    with tempfile.TemporaryDirectory() as place:
        student = Traced(STUDENT, layers[0], Path(place), True)
        yield student.token_part("student, a drafted token", 1)
        teacher = Traced(TEACHER, layers[1], Path(place), False)
        yield teacher.token_part(f"teacher, a pass of {BLOCK}", BLOCK)
        for mode in ("exact", "tail", "forward_kl", "jsd"):
            yield _step_part(student, mode)


def _step_part(student: Traced, mode: str) -> Part:
    """Loss and gradients of 2 × 128 tokens, half of them in the loss, head and body."""
    student.module.train()
    count, chunk = 128, 40

    def head(hidden: mx.array) -> mx.array:
        inner = student.module
        weights = inner.model.embed_tokens
        return weights.as_linear(hidden).astype(mx.float32)

    def token_loss(logits: mx.array, arrays: dict[str, mx.array]) -> Any:
        if mode in WHOLE:
            return WHOLE[mode](logits, log_softmax(arrays["teacher"])), {}
        support = arrays["support"], arrays["teacher_support"], arrays["teacher_rest"]
        return reverse_kl_on_support(logits, *support, "tail"), {}

    def step(ids: mx.array, positions: mx.array, targets: Any, arrays: Any) -> Any:
        student.module.update(tree_unflatten(list(arrays.items())))

        def loss(batch: mx.array) -> mx.array:
            hidden = student.module.model(batch)
            hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
            losses, _ = fused_head_loss(hidden, targets, head, token_loss, chunk)
            return losses.mean()

        value, grads = nn.value_and_grad(student.module, loss)(ids)
        return [value, *(grad for _, grad in tree_flatten(grads))]

    if mode in WHOLE:
        targets = {"teacher": _spread((count, VOCAB), mx.float32)}
    else:
        kept = {"teacher_support": mx.float32, "support": mx.int32}
        targets = {name: _spread((count, SUPPORT), kind) for name, kind in kept.items()}
        targets["teacher_rest"] = _spread((count,), mx.float32)
    try:
        return trace(
            f"update, {mode}: 2 × 128 tokens",
            lambda ids, places, **named: step(
                ids,
                places,
                {name: named[f"target_{name}"] for name in targets},
                {key: named[key] for key in student.arrays},
            ),
            mx.zeros((2, 128), mx.int32),
            mx.zeros((count,), mx.int32),
            has_gradient=True,
            **{f"target_{name}": value for name, value in targets.items()},
            **student.arrays,
        )
    finally:
        student.module.eval()


def vocabulary_parts() -> Iterator[Part]:
    """What surrounds the models in a round, for `ROWS` rows of one place."""
    logits = _spread((ROWS, VOCAB), mx.float32)
    tokens, uniforms = mx.zeros((ROWS,), mx.int32), mx.zeros((ROWS, 2), mx.float32)
    number = mx.zeros((ROWS,), mx.float32)

    def of_two(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda one, two, *rest: function(softmax(one), softmax(two), *rest)

    both = trace("both softmaxes", of_two(lambda s, t: [*s, *t]), logits, logits)
    yield both
    yield trace("a student's softmax and draw", softmax_draw, logits, uniforms)
    yield trace("a draw that nobody records", bare_draw, logits, uniforms)
    yield from _solver_parts(logits)

    def coupling(tokens: Any, roots: Any, total: Any, behavior: Any, uniforms: Any) -> Any:
        test, last = uniforms[:, :1], uniforms[:, 1:]
        kept = stands(tokens, roots, total, behavior, test)
        return [kept, replacement(roots, total, behavior, last)]

    rows = logits, number[:, None], logits
    yield trace("test and replacement, all rows", coupling, tokens, *rows, uniforms)

    def records(s: Any, t: Any, tokens: Any, law: Any, number: Any) -> Any:
        given = Blend(law, number, number, number)
        return list(pair_records(s, t, given, tokens, SUPPORT, 1.0).values())

    part = trace("", of_two(records), logits, logits, tokens, logits, number)
    yield _less("records of both", part, both)

    def scores(one: Any, tokens: Any, support: Any) -> Any:
        return list(teacher_records(softmax(one), tokens, support, 1.0).values())

    support = mx.zeros((ROWS, SUPPORT), mx.int32)
    yield trace("scoring: the teacher's softmax and records", scores, logits, tokens, support)

    def alone(one: Any, tokens: Any) -> Any:
        return list(student_records(softmax(one), tokens, SUPPORT, 1.0).values())

    yield trace("vanilla: softmax and records", alone, logits, tokens)
    part = trace("", of_two(lambda s, t: list(keep_or_replace(s, t, 25, 1.0))), logits, logits)
    yield _less("SKD's law", part, both)
    yield trace(
        "nucleus, its long way", lambda x: sampling._least_kept(log_softmax(x), 0.9), logits
    )


def _solver_parts(logits: mx.array) -> Iterator[Part]:
    """By the kernel, and the plain solver: what comes before its trials, and one of them."""
    rows = softmax(logits)
    names = ("student_logprobs", "roots", "teacher_logprobs")
    given = [_spread(rows.logprobs.shape, mx.float32) for _ in names]

    total = mx.ones((ROWS, 1))

    def launched(logprobs: mx.array, roots: mx.array, teacher: mx.array) -> Any:
        return list(blend.launch(type(rows)(logprobs, roots, total), teacher, 0.02))

    with patch.object(blend, "_kernel", lambda: _as_one_launch):
        yield trace("solver by the kernel", launched, *given)

    def prepare(logprobs: mx.array, roots: mx.array, teacher: mx.array) -> Any:
        return trust_region._prepare(type(rows)(logprobs, roots, total), teacher)

    def before(*arrays: mx.array) -> Any:
        found: list[mx.array] = []

        def noted(*values: mx.array) -> list[np.ndarray]:
            found.extend(values)
            return [np.zeros(ROWS) for _ in values]

        with patch.object(trust_region, "_to_host", noted):
            prepared = prepare(*arrays)
            trust_region._at_zero(prepared)
        return [*prepared, *found]

    first = trace("solver, before its trials", before, *given)
    yield first

    def trial(*arrays: mx.array) -> Any:
        weight = np.full(ROWS, 0.5)
        return list(trust_region._evaluate(prepare(*arrays), weight, -weight))

    both = trace("", trial, *given)
    alone = trace("", lambda *arrays: list(prepare(*arrays)), *given)
    yield _less("solver, a trial", both, alone)


def _as_one_launch(
    inputs: list[mx.array],
    output_shapes: list[tuple[int, ...]],
    output_dtypes: list[mx.Dtype],
    **_: Any,
) -> list[mx.array]:
    """A custom kernel's outputs, for whoever has no GPU to build it."""
    outputs = [mx.zeros(*each) for each in zip(output_shapes, output_dtypes, strict=True)]
    return mx.depends(outputs, inputs)


def _less(name: str, part: Part, known: Part) -> Part:
    """A part without what another has counted."""
    launches, size = part.launches - known.launches, part.bytes - known.bytes
    return Part(name, launches, part.joined - known.joined, size, part.faults)


def rounds(parts: Iterable[Part]) -> Iterator[tuple[str, float, float]]:
    """Launches and bytes of a round that blends blocks of `BLOCK` tokens, by its solver."""
    by_name = {part.name: part for part in parts}
    for solver, own in SOLVERS.items():
        launches = size = 0.0
        for name, (times, compiled) in (ROUND | own).items():
            part = by_name[name]
            launches += times * (part.joined if compiled else part.count)
            size += times * part.bytes
        yield f"a round, blocks of {BLOCK}, solved {solver}", launches, size


def attention_lines() -> Iterator[str]:
    """Which published models hold their scores in a drafted token, a block or a prefill."""
    for name, config in PUBLISHED.items():
        own = config.get("text_config", config)
        heads = own["num_attention_heads"]
        width = own.get("head_dim", own["hidden_size"] // heads)
        group = heads // own["num_key_value_heads"]
        lengths = {f"{length}": length for length in LENGTHS} | {"a prefill": 512}
        held = [what for what, count in lengths.items() if not is_fused(count, width, width, group)]
        yield f"| {name} | {width} | {group} | {', '.join(held)} |"


@click.command()
@click.option("--layers", type=(int, int), default=(28, 36), help="blocks of student and teacher")
@click.option("--json", "as_json", is_flag=True, help="parts and rounds as JSON")
def main(layers: tuple[int, int], as_json: bool) -> None:
    """Print every part as a Markdown table."""
    parts = [*vocabulary_parts(), *model_parts(layers)]
    if as_json:
        found = [[part.name, part.count, part.joined, part.bytes, part.faults] for part in parts]
        print(json.dumps({"parts": found, "rounds": list(rounds(parts))}))
        return
    print(f"| part ({ROWS} rows, V = {VOCAB:,}) | launches | compiled | MB | faults |")
    print("| --- | ---: | ---: | ---: | --- |")
    for part in parts:
        faults = ", ".join(f"{n} × {fault}" for fault, n in Counter(part.faults).items())
        counts = f"{part.count:,} | {part.joined:,} | {part.bytes / 1e6:,.0f}"
        print(f"| {part.name} | {counts} | {faults} |")
    for name, launches, size in rounds(parts):
        print(f"| {name} | {launches:,.0f} | | {size / 1e6:,.0f} | |")
    print("\n| model | head dimension | heads a key head | scores held in blocks of |")
    print("| --- | ---: | ---: | --- |")
    print(*attention_lines(), sep="\n")


if __name__ == "__main__":
    main()
