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
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    """The rotated checkpoint is exported anew: a rotation mixes channels, so `base` cannot be mended by factors."""
    from .formats.folders import link_or_copy
    from .observe import load

    model = load(model_folder)
    rotate(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".rotated.") as scratch:
        folder = Path(scratch) / "hf"
        model.save_pretrained(folder)
        for path in Path(model_folder).iterdir():
            if path.is_file() and not (folder / path.name).exists() and ".safetensors" not in path.name:
                link_or_copy(path, folder / path.name)
        del model
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

    settings = model.config
    heads = settings.num_attention_heads
    kv_heads = settings.num_key_value_heads or heads
    stream = orthogonal(settings.hidden_size)
    with torch.no_grad():
        untie(model)
        fold_gains(model)
        for table in (model.get_input_embeddings(), model.lm_head):
            table.weight.data = table.weight.data @ stream
        for pair in pairs(settings.to_dict(), linear=False):
            for name in pair.targets:
                linear = model.get_submodule(name)
                linear.weight.data = linear.weight.data @ stream
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                turn_outputs(writer, stream, 1)
            width = layer.self_attn.v_proj.weight.shape[0] // kv_heads
            head = orthogonal(width)
            turn_outputs(layer.self_attn.v_proj, head, kv_heads)
            mixed = layer.self_attn.o_proj.weight.data.unflatten(1, (heads, width)) @ head
            layer.self_attn.o_proj.weight.data = mixed.flatten(1)


def untie(model: Any) -> None:
    """Give the output layer a table of its own."""
    import torch

    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def fold_gains(model: Any) -> None:
    """Every norm's gain into the columns of what reads it; the gains become 1."""
    norms = [(pair.source, pair.targets) for pair in pairs(model.config.to_dict(), linear=False)]
    for source, targets in [*norms, ("model.norm", ("lm_head",))]:
        gain = model.get_submodule(source).weight
        for name in targets:
            model.get_submodule(name).weight.data *= gain.data
        gain.data = gain.data * 0 + 1


def turn_outputs(linear: Any, turn: Any, heads: int) -> None:
    """W -> Q^T W (and the bias) of a linear whose outputs, in `heads` equal parts, are turned: y' = y Q."""
    weight = linear.weight.data
    linear.weight.data = (turn.T @ weight.unflatten(0, (heads, -1))).flatten(0, 1)
    if linear.bias is not None:
        linear.bias.data = (linear.bias.data.unflatten(0, (heads, -1)) @ turn).flatten()
