"""k-bit number types in blocks (arXiv:2212.09720): int, EeMm, quantile, NF4 and dynamic exponent, 3 to 8 bit.

Every weight becomes the nearest value of a codebook (`codebooks.py`) times the largest |w| of its block. A scheme may
centre blocks (`-c`) and keep in 16 bit the inputs that will probably carry outliers (`-p2`: 2 %): those whose writer's
weights have the largest standard deviation ("proxy quantization", section 4 there), and round the blocks' max|w| too (`-dq`,
`double_quantization.py`). A codebook is no integer grid: ONNX Runtime's MatMulBnb4 multiplies by NF4, and for the others what
they would cost in quality is simulated, and no artifact is written.
With everything else in bfloat16 (`nf4-b64-bf16`) NF4 is a folder of bitsandbytes, which torch and triton run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import codebooks, double_quantization
from .affine import Floats
from .artifact import base_folder
from .codebooks import Blocks, Codebook, quantize_blocks
from .refusals import ONNX, config, group_mismatch, not_bitsandbytes, nothing_to_write, unread_bitsandbytes
from .rescale import Pair, mapping_missing, pairs
from .schemes import PATTERN
from .schemes import scheme as scheme_named

NAME = "kbit"
TARGET: Target = "weights"
COST = "one pass over the weights, no calibration"
OFFERED = (
    "nf4-b64", "int4-b64", "e2m1-b64", "quantile4-b64", "dynamic4-b64", "int3-b64", "e2m0-b64", "quantile3-b64", "nf4-b1024",
    "nf4-b64-c", "nf4-b64-dq", "int3-b64-p2", "nf4-b64-bf16", "nf4-b64-dq-bf16",
)  # fmt: skip
"""What the table of methods shows; any other number type, block and option is rounded just so."""
BLOCKS = (32, 1024)
"""Smallest and largest block."""
WRITTEN = ("nf4-b64", "nf4-b64-dq")
BITSANDBYTES = ("nf4-b64-bf16", "nf4-b64-dq-bf16")
"""Its folders, which transformers reads."""
NO_KERNEL = "no CPU kernel multiplies by that codebook with a scale a block; its quality can be simulated"
DOUBLED = "double quantization: 0.127 bit a parameter where the scales are stored so; MatMulBnb4 reads them in float32, 0.5 bit"


def schemes() -> tuple[Scheme, ...]:
    return tuple(scheme_named(name) for name in OFFERED)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := no_number_type(scheme.name):
        return refused
    if scheme.compute == "bf16":
        refused = not_bitsandbytes(scheme, runtime, BITSANDBYTES) or mapping_missing(config(model_folder))
        return refused or group_mismatch(model_folder, scheme) or unread_bitsandbytes(runtime)
    if runtime not in ONNX or scheme.name not in WRITTEN:
        return f"{runtime}: {NO_KERNEL}"
    return mapping_missing(config(model_folder)) or group_mismatch(model_folder, scheme)


def no_number_type(name: str) -> str | None:
    """Why a scheme's name is none that is rounded here; None where it is, listed or not."""
    found = PATTERN.fullmatch(name)
    if found is None or found["type"] is None:
        return f"{NAME} does not offer {name}"
    if not BLOCKS[0] <= int(found["block"]) <= BLOCKS[1]:
        return f"{NAME} takes blocks of {BLOCKS[0]} to {BLOCKS[1]} weights: {name} has {found['block']}"
    if len(codebook_of(name)) > 256:
        return f"{NAME} takes codes of up to 8 bits: {name} has {1 + int(found['e']) + int(found['m'])}"
    if found["doubled"] and (found["centred"] or found["percent"]):
        return f"{NAME} rounds the blocks' max|w| (-dq) of plain blocks only, not of {name}"
    return None


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    from .formats import onnx
    from .formats.huggingface import linear_weights

    if scheme.name in BITSANDBYTES:
        from .formats import bitsandbytes

        names = [name for pair in pairs(config(model_folder)) for name in pair.targets]
        bitsandbytes.write(base or model_folder, out, names, "nf4", double="-dq" in scheme.name)
        return ()
    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    weights = linear_weights(model_folder, config(model_folder))
    given = {name: partial(read_nf4, read, scheme) for name, read in weights.items()}
    with base_folder(model_folder, runtime, out, base) as source:
        onnx.quantize_nf4(source, out, given, block_of(scheme))
    return (DOUBLED,) if scheme.name.endswith("-dq") else ()


def read_nf4(read: Callable[[], Floats], scheme: Scheme) -> Blocks:
    return nf4(read(), scheme)


def nf4(w: Floats, scheme: Scheme) -> Blocks:
    """w: [N, K] in NF4, max|w| of the blocks as they are after double quantization where the scheme has it."""
    blocks = codebooks.to_blocks(w, codebook_of(scheme.name), block_of(scheme))
    if "-dq" not in scheme.name:
        return blocks
    return blocks._replace(bounds=double_quantization.rounded(blocks.bounds))


def block_of(scheme: Scheme) -> int:
    assert scheme.weights is not None and scheme.weights.group_size is not None
    return scheme.weights.group_size


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64]) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its codes stand for}; needs no calibration."""
    from .observe import load, weight

    assert scheme.weights is not None
    model = load(model_folder)
    result = {}
    for pair, deviations in writers(model_folder, model):
        loud = loudest(deviations, scheme.weights.kept_percent)
        for target in pair.targets:
            w = weight(model, target)
            result[target] = on_codebook(quiet(w, loud), scheme)
            result[target][:, loud] = w[:, loud].astype(np.float16)
    return result


def on_codebook(w: Floats, scheme: Scheme) -> Floats:
    """w: [N, K] as its codes give it back."""
    assert scheme.weights is not None
    codebook, block = codebook_of(scheme.name), block_of(scheme)
    if "-dq" in scheme.name:
        return codebooks.from_blocks(nf4(w, scheme), codebook, block)
    return quantize_blocks(w, codebook, block, scheme.weights.centred)


def codebook_of(name: str) -> Codebook:
    """The codebook of a scheme's name: `nf4-b64` -> NF4."""
    found = PATTERN.fullmatch(name)
    if found is None or found["type"] is None:
        raise ValueError(f"{name} names no number type")
    if found["e"]:
        return codebooks.floats(int(found["e"]), int(found["m"]))
    makers = {"int": codebooks.integers, "nf": codebooks.normal_floats, "quantile": codebooks.quantiles,
              "dynamic": codebooks.dynamic}  # fmt: skip
    return makers[found["type"][:-1]](int(found["wide"]))


def writers(model_folder: Path, model: object) -> list[tuple[Pair, Floats]]:
    """Each pair with the standard deviations [K] of the weights that write its inputs: what each input is a sum of.

    For inputs from a norm these are the rows of the linear that wrote into the residual stream last (for the first, the
    columns of the embedding); for o_proj, of v_proj; for down_proj, of up_proj.
    """
    from .observe import weight

    found = []
    last = weight(model, "model.embed_tokens").std(axis=0)
    for pair in pairs(config(model_folder)):
        if pair.norm:
            found.append((pair, last))
            continue
        found.append((pair, pair.spread(weight(model, pair.source).std(axis=1))))
        last = weight(model, pair.targets[0]).std(axis=1)
    return found


def loudest(deviations: Floats, percent: float) -> NDArray[np.intp]:
    """Indices of the top `percent` of inputs by deviation, rounded to the nearest number of inputs."""
    count = round(len(deviations) * percent / 100)
    return np.argsort(-deviations, kind="stable")[:count]


def quiet(w: Floats, loud: NDArray[np.intp]) -> Floats:
    """w: [N, K] with the columns that stay in 16 bit at 0, so that they stretch no block."""
    if not len(loud):
        return w
    w = w.copy()
    w[:, loud] = 0
    return w
