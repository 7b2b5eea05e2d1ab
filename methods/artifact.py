"""The steps that methods share when they write: find or make the fp32 base, hand over integers, put a cache on top.

A folder appears whole or not at all. A method that looks at calibration samples, layer by layer or one sample after the other,
to round or only to look, or that trains, keeps what it has beside it (`kept.py`) and goes on from there. One that goes layer by
layer runs them again without what they had brought, and not at all where nothing is left to look for; one that makes a single
pass over the weights keeps nothing, and an interrupted run of it begins again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.scheme import Scheme

from .affine import Floats, Grouped
from .kept import kept_beside, resumed, stamps
from .refusals import COMPRESSED, HALF, ONNX, config
from .rescale import Pair, Scale
from .schemes import group_format
from .training import Say, silent

Given = Mapping[str, Callable[[], Grouped]]
"""linear -> a function that brings its integers, which were chosen already"""

Adapters = Mapping[str, tuple[Floats, Floats]]
"""linear -> A [r, K] and B [N, r] of y += x A^T B^T"""

CACHE_SAMPLES = 32
"""Calibration samples that the scales of an integer cache come from."""


def tokens_read(tokens: NDArray[int64], calibration: NDArray[int64]) -> str:
    """How much of the calibration a method read, for its note; where it has a bound of its own, that it left samples out."""
    left_out = f" ({len(tokens)} of {len(calibration)} samples)" if len(tokens) < len(calibration) else ""
    return f"{tokens.size} calibration tokens{left_out}"


@contextmanager
def base_folder(model_folder: Path, runtime: str, out: Path, base: Path | None) -> Iterator[Path]:
    """The fp32 export of `model_folder` for `runtime`: the given one, or one made beside `out` and removed after."""
    if base is not None or runtime == "torch":
        yield base or model_folder
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".base.") as scratch:
        made = Path(scratch) / "base"
        format_of(runtime).export_base(model_folder, made)
        yield made


def format_of(runtime: str) -> Any:
    """The module of `formats/` that writes what `runtime` loads: `export_base`, `randomise` and more."""
    from importlib import import_module

    names = {"openvino": "openvino", "llama.cpp": "gguf"} | dict.fromkeys(COMPRESSED, "compressed") | dict.fromkeys(ONNX, "onnx")
    return import_module(f"{__package__}.formats.{names[runtime]}")


def write_cache(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, base: Path | None,
                say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    """The ONNX folder `base`, whatever is in it, with the integer cache of a scheme. Its scales come from the keys and values
    that this very folder computes: a method may have moved scales through v_proj (SmoothQuant W8A8 on SmolLM2-135M, 1,024
    tokens: KL 0.0119, with an INT8 cache 0.0140, and 0.117 with scales of the fp32 model). Returns notes."""
    from .formats import onnx
    from .observe import samples_read

    assert scheme.keys is not None
    seen, bits = calibration[:CACHE_SAMPLES], int(scheme.keys.bits)
    of_base = stamps(base, "*") if base else "its own export"
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, seen, f"cache of {of_base}") as kept,
    ):
        known = resumed(samples_read(kept), "samples")
        onnx.quantize_cache(source, out, onnx.calibrate_cache(source, seen, say, kept), bits)
    return (f"INT{bits} cache: one scale per channel (keys: per rotary pair), from {tokens_read(seen, calibration)}", *known)


def write_grouped(model_folder: Path, base: Path, scheme: Scheme, runtime: str, out: Path, given: Given,
                  moved: Iterable[tuple[Pair, Scale]] = (), adapters: Adapters | None = None) -> None:  # fmt: skip
    """Integers `given` by Hugging Face names, and lm_head rounded to nearest where the scheme rounds it; `moved`: scales to
    move in the rest. vLLM and triton get compressed-tensors, transformers GPTQ's layout. `adapters` (ONNX Runtime only): by
    Hugging Face names, to be computed beside."""
    assert scheme.weights is not None
    weights = group_format(scheme.weights)
    if runtime in HALF:
        from .formats import gptq, pack_quantized

        (pack_quantized if runtime in COMPRESSED else gptq).write(base, out, given, weights, moved)
        return
    assert scheme.lm_head is not None
    head = {"lm_head": group_format(scheme.lm_head)}
    if runtime not in ONNX:
        from .formats import openvino

        openvino.quantize_weights(base, out, dict.fromkeys(given, weights) | head, given, moved)
        return
    from .formats import onnx

    known = onnx.linear_names(base)
    plan = dict.fromkeys(known, weights) | head
    factors, fused = onnx.rescaled(base, moved, config(model_folder)), onnx.fused(given, known)
    onnx.quantize_weights(base, out, plan, factors=factors, given=fused, adapters=adapters)
