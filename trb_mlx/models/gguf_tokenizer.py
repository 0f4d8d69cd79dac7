"""The tokenizer that a GGUF file describes, as the files from which mlx-lm loads one.

Two kinds are known: byte-level BPE (`gpt2`), whose pre-tokenizer the metadata names, and
SentencePiece BPE (`llama`), whose merges follow from the scores of its pieces.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

from trb_mlx.errors import one_line
from trb_mlx.models import mlxlm
from trb_mlx.models.gguf_reader import GgufError, brief

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # token_type
_PUNCTUATED = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
QWEN2 = _WORDS + r"|\p{N}" + _PUNCTUATED
LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _PUNCTUATED
GPT2 = None  # the pattern that ByteLevel has built in
# The name in `tokenizer.ggml.pre` → (single digits first?, pattern), as llama.cpp's llama-vocab.
PRE_TOKENIZERS: dict[str, tuple[bool, str | None]] = {
    "gpt-2": (False, GPT2),
    "smollm": (True, GPT2),
    "starcoder": (True, GPT2),
    "qwen2": (False, QWEN2),
    "deepseek-r1-qwen": (False, QWEN2),
    "llama-bpe": (False, LLAMA3),
    "llama3": (False, LLAMA3),
    "smaug-bpe": (False, LLAMA3),
}
LLAMA3_NAMES = ("llama-bpe", "llama3", "smaug-bpe")
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def load_tokenizer(metadata: dict[str, Any], eos_ids: list[int]) -> mlxlm.TokenizerWrapper:
    """mlx-lm's wrapped tokenizer, with the metadata's special tokens and chat template.

    Raises:
        GgufError: no tokenizer, one of an unknown kind, or one that contradicts itself.
    """
    try:
        return _wrapped(build_tokenizer(metadata), metadata, eos_ids)
    except GgufError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        raise GgufError(f"its tokenizer cannot be built: {one_line(str(error), 200)}") from error


def _wrapped(
    backend: Tokenizer, metadata: dict[str, Any], eos_ids: list[int]
) -> mlxlm.TokenizerWrapper:
    details: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role, key in ROLES.items():
        index = token_id(metadata, f"{key}_token_id")
        if index is not None:
            details[f"{role}_token"] = backend.id_to_token(index)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        details["chat_template"] = template
    with tempfile.TemporaryDirectory(prefix="trb-mlx-") as name:
        folder = Path(name)
        backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(details), encoding="utf-8")
        return mlxlm.load_tokenizer(folder, eos_token_ids=eos_ids)


def token_id(metadata: dict[str, Any], name: str) -> int | None:
    """The id under `tokenizer.ggml.NAME`, or None where there is none.

    Raises:
        GgufError: an id outside the vocabulary.
    """
    index = metadata.get(f"tokenizer.ggml.{name}")
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(_tokens(metadata)):
        raise GgufError(f"tokenizer.ggml.{name} is {brief(index)}, which is no id of its tokenizer")
    return index


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """The `tokenizers` object of a file's metadata, without names for its special tokens.

    Raises:
        GgufError: as `load_tokenizer`.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise GgufError(f"its tokenizer is of kind {brief(kind)}, expected gpt2 or llama")
    tokens, kinds = _tokens(metadata), _kinds(metadata)
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise GgufError("its tokenizer gives one token two ids")
    build = _byte_level if kind == "gpt2" else _sentence_piece
    tokenizer = build(metadata, vocab)
    for token, token_kind in zip(tokens, kinds[: len(tokens)], strict=True):
        if token_kind in (CONTROL, UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    _begin_with_bos(tokenizer, metadata, kind)
    return tokenizer


def _tokens(metadata: dict[str, Any]) -> list[str]:
    """The vocabulary without the unused entries at its end, which only pad the embedding."""
    tokens, kinds = _texts(metadata, "tokens"), _kinds(metadata)
    size = len(tokens)
    while size and kinds[size - 1] == UNUSED:
        size -= 1
    return tokens[:size]


def _kinds(metadata: dict[str, Any]) -> list[int]:
    count = len(_texts(metadata, "tokens"))
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * count)
    if not isinstance(kinds, list) or len(kinds) != count:
        raise GgufError("tokenizer.ggml.token_type does not fit tokenizer.ggml.tokens")
    return kinds


def _texts(metadata: dict[str, Any], name: str) -> list[str]:
    texts = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise GgufError(f"it has no tokenizer.ggml.{name}, so no tokenizer can be built")
    return texts


def _byte_level(metadata: dict[str, Any], vocab: dict[str, int]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise GgufError(f"its pre-tokenizer is {brief(name)}, expected one of {known}")
    digits, pattern = PRE_TOKENIZERS[name]
    merges = []
    for text in _texts(metadata, "merges"):
        left, _, right = text.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise GgufError(f"its tokenizer merges {text[:40]!r}, which is not in its vocabulary")
        merges.append((left, right))
    llama3 = name in LLAMA3_NAMES
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=llama3))
    steps: list[Any] = [pre.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre.Sequence(steps)
    if pattern is QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: dict[str, Any], vocab: dict[str, int]) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours, those whose joint piece scores highest merge."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(vocab):
        raise GgufError("tokenizer.ggml.scores does not fit tokenizer.ggml.tokens")
    unknown = token_id(metadata, "unknown_token_id")
    bpe = models.BPE(
        vocab=vocab,
        merges=_merges_by_score(vocab, scores, _kinds(metadata)),
        unk_token=None if unknown is None else _tokens(metadata)[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    first = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, spaces])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    return tokenizer


def _merges_by_score(
    vocab: dict[str, int], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
    """Every split of every normal piece into two pieces, best score first, as transformers does.

    Only the lengths that pieces have are tried, so that a very long one takes no longer.
    """
    ranked = []
    lengths = sorted({len(piece) for piece in vocab if piece})
    known = frozenset(lengths)
    for piece, index in vocab.items():
        if kinds[index] != NORMAL:
            continue
        for cut in (length for length in lengths if len(piece) - length in known):
            left, right = vocab.get(piece[:cut]), vocab.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[index], left, right, piece[:cut], piece[cut:]))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _begin_with_bos(tokenizer: Tokenizer, metadata: dict[str, Any], kind: str) -> None:
    """Put BOS in front of encoded texts where the file, or llama.cpp's default, says so."""
    default = kind == "llama" or metadata.get("tokenizer.ggml.pre") in LLAMA3_NAMES
    index = token_id(metadata, "bos_token_id")
    if index is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    bos = tokenizer.id_to_token(index)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{bos}:0", "$A:0"],
        pair=[f"{bos}:0", "$A:0", "$B:1"],
        special_tokens=[(bos, index)],
    )
