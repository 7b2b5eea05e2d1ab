"""Real English text to calibrate and to evaluate on: two texts that share no paragraph.

Built in: `pydoc_data.topics`, the language reference that ships with Python itself (PSF-2.0 licence), prose paragraphs
only. Topics sorted by name: the first half calibrates, the second evaluates, a paragraph of both only calibrates. The
text differs between Python releases, so each `TextSource` carries its SHA-256. Lengths are in tokens.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantadvisor.documents import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens = NDArray[np.int64]

Half = Literal["calibration", "evaluation"]

NGRAM = 13
"""Words in a row that count as the same passage (the length that GPT-3 used, arXiv:2005.14165, appendix C)."""

LARGEST_SHARED = 0.10
"""Share of the evaluation's 13-grams that may appear in the calibration text."""

JUDGED = (2048, 16_384)
"""Tokens of the evaluation text that quality is judged on: its first ones, and more of them where these do not decide."""

OVERLAP = 8
"""Calibration windows may overlap until the text is used this often."""


@dataclass(frozen=True)
class TextSource:
    """Where a text comes from; `sha256` is of its UTF-8 bytes."""

    name: str
    licence: str
    sha256: str


def evaluation_tokens(tokenizer_folder: Path, n: int, text_file: Path | None = None) -> tuple[Tokens, TextSource]:
    """The first `n` tokens of the evaluation text: int64 [n], led by the tokenizer's BOS where it has one."""
    text, source = _text("evaluation", text_file)
    prefix, tokens = _encode(tokenizer_folder, text)
    have = len(prefix) + len(tokens)
    if have < n:
        raise BadInput(f"quality.text ({source.name})", f"too short: {have:,} tokens, {n:,} needed", "give a longer text")
    return _int64(prefix + tokens[: n - len(prefix)]), source


def calibration_tokens(
    tokenizer_folder: Path,
    samples: int,
    length: int,
    text_file: Path | None = None,
    evaluation_file: Path | None = None,
) -> tuple[Tokens, TextSource]:
    """Evenly spaced windows of the calibration text: int64 [samples, length]; they overlap where it is short.

    Refused where a user's text shares passages with the text that quality will be evaluated on.
    """
    text, source = _text("calibration", text_file)
    prefix, tokens = _encode(tokenizer_folder, text)
    body = length - len(prefix)
    least = body + samples - 1 if text_file is None else max(body + samples - 1, samples * body // OVERLAP)
    if len(tokens) < least:
        raise BadInput(
            f"calibration.text ({source.name})",
            f"too short: {len(tokens):,} tokens, {samples} samples of {length} need {least:,}",
            "give a longer text, or fewer calibration.samples",
        )
    if text_file is not None or evaluation_file is not None:
        refuse_overlap(text, _text("evaluation", evaluation_file)[0], f"calibration.text ({source.name})")
    last = len(tokens) - body
    starts = [round(i * last / max(samples - 1, 1)) for i in range(samples)]
    return _int64([prefix + tokens[start : start + body] for start in starts]), source


def shared_passages(calibration: str, evaluation: str) -> float:
    """Share of the 13-grams of words of `evaluation` that `calibration` holds, 0..1."""
    return share_of(passages_in(calibration, evaluation))


def share_of(found: list[bool]) -> float:
    return sum(found) / len(found) if found else 0.0


def passages_in(calibration: str, evaluation: str) -> list[bool]:
    """Of each 13-gram of words of `evaluation`, whether `calibration` holds it."""
    known, judged = (re.findall(r"\w+", side.lower()) for side in (calibration, evaluation))
    seen = {tuple(known[i : i + NGRAM]) for i in range(len(known) - NGRAM + 1)}
    return [tuple(judged[i : i + NGRAM]) in seen for i in range(len(judged) - NGRAM + 1)]


def refuse_overlap(calibration: str, evaluation: str, where: str) -> None:
    """Raise where quality would be judged on text that the method was calibrated on."""
    found = passages_in(calibration, evaluation)
    words = len(found) + NGRAM - 1
    part, share = max(((n, share_of(found[: n - NGRAM + 1])) for n in (*JUDGED, words)), key=lambda each: each[1])
    if share > LARGEST_SHARED:
        judged = f", of its first {part:,} words," if part < words else ""
        raise BadInput(
            where,
            f"{share:.0%} of the evaluation text's passages ({NGRAM} words in a row){judged} are in it too,"
            f" at most {LARGEST_SHARED:.0%} may be",
            "calibrate on another text than quality.text",
        )


def passkey_prompt(tokenizer_folder: Path, context_tokens: int, key: str = "71432") -> tuple[Tokens, Tokens]:
    """A prompt of exactly `context_tokens` with a pass key near its start, asked for at its end, and the answer.

    The wording is one that SmolLM2-135M in fp32 answers at 512 and at 2,048 tokens.
    Prompt int64 [context_tokens], answer int64 [digits]: what greedy decoding must continue with (arXiv:2305.16300).
    """
    tokenizer = _tokenizer(tokenizer_folder)
    prefix = _prefix(tokenizer)

    def encode(text: str) -> list[int]:
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=False).ids]

    asked = "the secret pass key of the door is"
    needle = f"\n\nRemember this: {asked} {key}. Again, {asked} {key}. Once more, {asked} {key}.\n\n"
    question = f"\n\nRemember this: {asked}"
    filler = encode("\n\n".join(builtin_paragraphs("evaluation")))
    head, tail = encode(needle), encode(question)
    space = context_tokens - len(prefix) - len(head) - len(tail)
    if space < 0:
        raise BadInput("context", f"{context_tokens} tokens cannot hold a pass key", "use at least 96")
    lead = min(32, space // 4)
    filler = (filler * (space // len(filler) + 1))[:space]
    answer = encode(f"{question} {key}")[len(tail) :]
    return _int64(prefix + filler[:lead] + head + filler[lead:] + tail), _int64(answer)


def read_text(path: Path, where: str) -> str:
    """A user's UTF-8 text file."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{where} ({path})", f"not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    except OSError as error:
        raise BadInput(f"{where} ({path})", (error.strerror or "cannot be read").lower(), "name a text file") from None


def _text(half: Half, text_file: Path | None) -> tuple[str, TextSource]:
    if text_file is None:
        text = "\n\n".join(builtin_paragraphs(half))
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        name, licence = f"Python {version} language reference (pydoc_data.topics), {half} half", "PSF-2.0"
    else:
        field = "quality.text" if half == "evaluation" else "calibration.text"
        text, name, licence = read_text(text_file, field), str(text_file), "the user's"
    return text, TextSource(name, licence, hashlib.sha256(text.encode()).hexdigest())


@functools.cache
def builtin_paragraphs(half: Half) -> tuple[str, ...]:
    """Paragraphs of one half, each once; what both halves hold belongs to calibration."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    names = sorted(topics)
    middle = len(names) // 2
    first = dict.fromkeys(p for name in names[:middle] for p in _paragraphs(topics[name]))
    if half == "calibration":
        return tuple(first)
    second = dict.fromkeys(p for name in names[middle:] for p in _paragraphs(topics[name]))
    return tuple(p for p in second if p not in first)


def _paragraphs(topic: str) -> list[str]:
    """The prose of one topic: no code, tables, grammars or headings; emphasis marks and line breaks taken out."""
    kept = []
    for block in re.split(r"\n\s*\n", topic):
        if "::=" in block or ">>>" in block or re.search(r"^\s*[+|]", block):
            continue
        line = re.sub(r"^[*\-] ", "", " ".join(block.split()))
        line = re.sub(r"\*+([^*\s][^*]*?)\*+", r"\1", line)
        line = re.sub(r'"([^"]+)"', r"\1", line)
        words = line.split()
        prose = sum(word.rstrip(".,;:)").lstrip("(").isalpha() for word in words)
        if len(words) >= 8 and prose >= 0.75 * len(words) and line[0].isupper():
            kept.append(line)
    return kept


@functools.lru_cache(maxsize=4)
def _read_tokenizer(file: str, stamp: float) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # the binding raises plain Exception
        raise BadInput(file, f"not a tokenizer ({error})", "download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokenizer(folder: Path) -> Any:
    """Straight from tokenizer.json: transformers would take seconds to import."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BadInput(str(folder), "no tokenizer.json", "put the model's tokenizer.json there")
    return _read_tokenizer(str(file), file.stat().st_mtime)


def text_encoder(folder: Path) -> tuple[list[int], Callable[[str], list[int]], Callable[[list[int]], str]]:
    """(what leads every sequence, text -> tokens, tokens -> text)."""
    tokenizer = _tokenizer(folder)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return _prefix(tokenizer), encode, tokenizer.decode


def _prefix(tokenizer: Any) -> list[int]:
    """The special tokens that this tokenizer puts before a text (BOS), if any."""
    bare = list(tokenizer.encode("a", add_special_tokens=False).ids)
    full = list(tokenizer.encode("a").ids)
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:start]


def _encode(folder: Path, text: str) -> tuple[list[int], list[int]]:
    """(what leads every sequence, the tokens of the text)."""
    tokenizer = _tokenizer(folder)
    return _prefix(tokenizer), list(tokenizer.encode(text, add_special_tokens=False).ids)


def _int64(values: list[Any]) -> Tokens:
    import numpy as np

    return np.asarray(values, dtype=np.int64)
