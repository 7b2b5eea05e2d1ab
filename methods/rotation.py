"""Rotations (QuaRot, arXiv:2404.00456): the hidden states turned by an orthogonal matrix, so that no channel is loud.

RMSNorm without a gain commutes with a rotation Q. So gains are folded into the linears that follow, and with every tensor
of the residual stream turned, x' = x Q, the embedding becomes E Q, what reads the stream W Q, what writes it Q^T W: the
same function. Within a head, values are turned by a second matrix that v_proj and o_proj share. Both cost nothing when the
model runs. Q is a Hadamard matrix with random signs where the width allows one, else Haar.

    w8a8        the two above: a plain checkpoint, which any runtime runs that runs dynamic W8A8
    w4a8, w4a4  and the inputs of down_proj turned while the model runs, which the activation function forbids to fold

Weights are rounded per channel, activations per token, symmetric. A tied output layer is untied: its embedding keeps no
gain, it does. Simulated on SmolLM2-135M, KL: activations alone in 4 bits 0.70, without rotation 5.9; W8A8 0.020, without
0.048. Its weights in 4 bits per channel by nearest rounding are what spoils W4A8 (1.9, without 2.2) and W4A4 (3.2, without
7.7): QuaRot's own W4A4 has GPTQ weights.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import dynamic_int8
from .fake import Fake
from .refusals import ONNX, config, not_offered
from .rescale import mapping_missing, pairs
from .schemes import scheme as named
from .stream import counted
from .training import Say, silent

NAME = "rotation"
TARGET: Target = "activations"
COST = "a random Hadamard rotation folded into every weight once, and one pass over the weights; no calibration"
PALEY = (11, 19, 43)
"""Primes q = 3 mod 4 that Hadamard matrices of order q + 1 are built from: 12, 20, 44."""
FOUR_BITS = "no runtime here multiplies INT4 activations, or turns them while the model runs: it is simulated only"


def schemes() -> tuple[Scheme, ...]:
    return (named("w8a8"), named("w4a8"), named("w4a4"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, ONNX):
        return refused
    return FOUR_BITS if scheme.name != "w8a8" else mapping_missing(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    """The rotated checkpoint is exported anew: a rotation mixes channels, so `base` cannot be mended by factors."""
    from transformers import AutoConfig

    from .formats.huggingface import rewrite, shards, tensors

    settings = AutoConfig.from_pretrained(model_folder, local_files_only=True).to_dict()
    norms = set(norms_of(settings).values())
    found = (pair for path in shards(model_folder) for pair in tensors(path))
    gains = {name: w.float() for name, w in found if name.removesuffix(".weight") in norms}
    turned, step = turning(settings, gains), counted(int(settings["num_hidden_layers"]), say, "turned")

    def change(name: str, w: Any) -> list[tuple[str, Any]]:
        made = turned(name, w.float())
        if name.endswith("down_proj.weight"):  # one a layer
            step()
        return made

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".rotated.") as scratch:
        folder = Path(scratch) / "hf"
        rewrite(model_folder, folder, change, {"tie_word_embeddings": False, "dtype": "float32"})
        more = dynamic_int8.apply(folder, scheme, runtime, calibration, out)
    return ("residual stream and heads rotated; the output layer has a table of its own", *more)


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    import copy

    from .grids import symmetric

    assert scheme.weights is not None
    assert scheme.activations is not None
    w_bits, a_bits = int(scheme.weights.bits), int(scheme.activations.bits)
    turned = copy.deepcopy(model)
    rotate(turned)
    online = orthogonal(turned.config.intermediate_size) if scheme.name != "w8a8" else None

    def in_turned_basis(name: str, x: Any, bits: int) -> Any:
        if online is None or not name.endswith("down_proj"):
            return symmetric(x, bits)
        return symmetric(x @ online, bits) @ online.T

    return Fake(
        turned,
        weight=lambda name, w: in_turned_basis(name, w, w_bits),
        inputs=lambda name, x: in_turned_basis(name, x, a_bits),
    )


@functools.cache
def orthogonal(width: int, seed: int = 0) -> Any:
    """A Hadamard matrix / sqrt(width) with random signs, float32 torch; a Haar-distributed one where none is known here."""
    import torch

    from quantadvisor.kernels.turbo_tables import rotation

    draw = np.random.default_rng(seed)
    made = hadamard(width)
    if made is None:
        return rotation(width, seed)
    signs = draw.choice([-1.0, 1.0], width)
    return torch.from_numpy((signs[:, None] * made / np.sqrt(width)).astype(np.float32))


def hadamard(width: int) -> NDArray[np.float64] | None:
    """Entries +-1, rows orthogonal: a Kronecker product of orders 2 (Sylvester), 12, 20 and 44 (Paley); None: no product."""
    if width == 1:
        return np.ones((1, 1))
    for prime in PALEY:
        if width % (prime + 1) == 0 and (rest := hadamard(width // (prime + 1))) is not None:
            return kronecker(paley(prime), rest)
    if width % 2 == 0 and (rest := hadamard(width // 2)) is not None:
        return kronecker(np.array([[1.0, 1.0], [1.0, -1.0]]), rest)
    return None


def kronecker(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = np.kron(a, b).astype(np.float64)
    return product


def paley(prime: int) -> NDArray[np.float64]:
    """Paley's first construction, order prime + 1 for a prime = 3 mod 4: I + S, S skew with the quadratic characters."""
    squares = {i * i % prime for i in range(1, prime)}
    character = np.array([0] + [1 if i in squares else -1 for i in range(1, prime)], dtype=float)
    made = np.eye(prime + 1)
    made[0, 1:], made[1:, 0] = 1, -1
    index = np.arange(prime)
    made[1:, 1:] += character[(index[:, None] - index[None, :]) % prime]
    return made


def rotate(model: Any) -> None:
    """Turn a Llama-like torch model in place; it computes the same. See the module's docstring."""
    import torch

    names = [name for name, _ in model.named_parameters()]
    settings = model.config.to_dict()
    gains = {f"{norm}.weight": model.get_submodule(norm).weight.data for norm in norms_of(settings).values()}
    turned = turning(settings, gains)
    if settings["tie_word_embeddings"]:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data, requires_grad=False)
        model.config.tie_word_embeddings = False
    for name in names:
        for new, value in turned(name, model.get_parameter(name).data):
            model.get_parameter(new).data = value


def norms_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """{linear: the norm that it reads}"""
    reads = {name: pair.source for pair in pairs(settings, linear=False) for name in pair.targets}
    return reads | {"lm_head": "model.norm"}


def turning(settings: Mapping[str, Any], gains: Mapping[str, Any]) -> Callable[[str, Any], list[tuple[str, Any]]]:
    """(name, tensor) of a Llama-like model -> what takes its place, by name; gains: the norms' weights. Gains move into what
    reads them, and a tied output layer gets a table of its own, since the embedding keeps none."""
    heads = settings["num_attention_heads"]
    kv_heads = settings["num_key_value_heads"] or heads
    norms = norms_of(settings)
    stream = orthogonal(settings["hidden_size"])
    head = orthogonal(settings.get("head_dim") or settings["hidden_size"] // heads)

    def turned(name: str, w: Any) -> list[tuple[str, Any]]:
        module, _, kind = name.rpartition(".")
        if module == "lm_head" and settings["tie_word_embeddings"]:
            return []
        if module in norms.values():
            return [(name, w * 0 + 1)]
        if module == "model.embed_tokens":
            table = [(name, w @ stream)]
            return (
                [*table, ("lm_head.weight", w * gains["model.norm.weight"] @ stream)]
                if settings["tie_word_embeddings"]
                else table
            )
        if module in norms and kind == "weight":
            w = w * gains[f"{norms[module]}.weight"] @ stream
        if module.endswith(("o_proj", "down_proj")):
            w = turned_outputs(w, stream, 1)
        if module.endswith("v_proj"):
            w = turned_outputs(w, head, kv_heads)
        if module.endswith("o_proj") and kind == "weight":
            w = (w.unflatten(1, (heads, -1)) @ head).flatten(1)
        return [(name, w)]

    return turned


def turned_outputs(w: Any, turn: Any, heads: int) -> Any:
    """W -> Q^T W, or a bias b -> b Q, of a linear whose outputs, in `heads` equal parts, are turned: y' = y Q."""
    parts = w.unflatten(0, (heads, -1))
    return (parts @ turn).flatten() if w.ndim == 1 else (turn.T @ parts).flatten(0, 1)
