"""Integer weights in ONNX Runtime graphs: MatMulNBits (group-wise, weights only) and MatMulInteger (W8A8, dynamic).

MatMulNBits with accuracy level 4 rounds activations to int8 per block inside the kernel and multiplies integers (VNNI);
levels 0 and 1 compute in fp32. An embedding table tied to lm_head shares lm_head's codes through GatherBlockQuantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import BadInput, CandidateFailed
from quantadvisor.kernels.packing import pack_nbits, unpack_nbits
from quantadvisor.kernels.saturation import saturates
from quantadvisor.methods.affine import Codes, Floats, Grouped, quantize_channels, quantize_groups, signed_channels
from quantadvisor.methods.linear_format import HEAD, LinearFormat, check

from .onnx_adapters import Adapter, put_beside
from .onnx_base import Array, Factors, Reader, Rewrite, linears

MICROSOFT = "com.microsoft"
CHUNK = 1 << 22
"""Weights rounded at a time: bounds the temporaries."""


def quantize_weights(base: Path, out: Path, plan: Mapping[str, LinearFormat], accuracy_level: int = 4,
                     factors: Factors | None = None,
                     given: Mapping[str, Callable[[], Grouped]] | None = None,
                     adapters: Mapping[str, Adapter] | None = None) -> None:  # fmt: skip
    """Every linear named in `plan` becomes a MatMulNBits; `lm_head` takes the embedding table with it.

    `given` brings the integers of linears that a method has rounded; the others are rounded to nearest. `adapters`: by Hugging
    Face names.
    """
    with Rewrite(base, out, factors) as edit:
        known = linears(edit.model)
        if missing := sorted(set(plan) - set(known)):
            raise CandidateFailed(f"the graph in {base} has no linear named {missing[0]}; it has {sorted(known)[:3]}…")
        put_beside(edit, adapters or {})
        for name, chosen in plan.items():
            bring = (given or {}).get(name)
            group_linear(edit, known[name], chosen, accuracy_level, bring() if bring else None)


def quantize_dynamic_w8a8(base: Path, out: Path, factors: Factors | None = None, per_token: bool = False,
                          head: LinearFormat = HEAD, bits: int = 8,
                          given: Mapping[str, Callable[[], Grouped]] | None = None) -> None:  # fmt: skip
    """Layers: integer weights per channel of `bits` bits (8, or per token 7), activations rounded at run time. lm_head:
    MatMulNBits, in the format `head`. `given` brings the integers of linears that a method has rounded, 8 bits about 128 with
    one scale a row; the others are rounded to nearest.

    `per_token` False writes what `onnxruntime.quantization.quantize_dynamic` writes: DynamicQuantizeLinear, ONE range
    per activation tensor, so a long prompt with one outlier token rounds all its tokens coarsely. ONNX Runtime fuses it
    to DynamicQuantizeMatMul or MatMulIntegerToFloat. True divides each token by its own max|x| / 127 first.
    """
    with Rewrite(base, out, factors) as edit:
        shared: dict[str, tuple[str, str, str]] = {}
        for name, node in linears(edit.model).items():
            bring = (given or {}).get(name)
            if name == "lm_head":
                group_linear(edit, node, head, 4)
            elif per_token:
                token_linear(edit, node, shared, bits, bring() if bring else None)
            else:
                tensor_linear(edit, node, shared, bring() if bring else None)


def group_linear(edit: Rewrite, node: Any, chosen: LinearFormat, accuracy_level: int,
                 given: Grouped | None = None) -> None:  # fmt: skip
    """MatMul -> MatMulNBits in place; a tied embedding is moved to the same codes first."""
    import onnx

    check(chosen, "onnxruntime")
    bits, group, _ = chosen
    weight = node.input[1]
    wide, tall = edit.old[weight].dims
    codes, scales, zeros = rounded(edit.tensor(weight), chosen) if given is None else packed(given, chosen)
    names = [edit.add(f"{weight}_Q{bits}", codes), edit.add(f"{weight}_scales", scales)]
    if zeros is not None:
        names.append(edit.add(f"{weight}_zp", zeros))
    table = embedding(edit, weight) if node.name == "/lm_head/MatMul" else None
    if table is not None:
        share_embedding(edit, table, names, scales.shape, chosen, wide)
    edit.drop(weight)
    replace(edit, [node], [onnx.helper.make_node(
        "MatMulNBits", [node.input[0], *names], list(node.output), name=f"{node.name}_Q{bits}", domain=MICROSOFT,
        K=wide, N=tall, bits=bits, block_size=group, accuracy_level=accuracy_level,
    )])  # fmt: skip


def rounded(weight: Array, chosen: LinearFormat) -> tuple[Codes, Floats, Codes | None]:
    """weight: [K, N] -> packed codes [N, G, group * bits / 8], scales [N, G], packed zeros [N, ceil(G * bits / 8)].

    Zeros are None when symmetric: MatMulNBits then assumes 2**(bits - 1).
    """
    bits, group, symmetric = chosen
    wide, tall = weight.shape
    groups = -(-wide // group)
    codes = np.empty((tall, groups, group * bits // 8), np.uint8)
    scales = np.empty((tall, groups), np.float32)
    zeros = None if symmetric else np.empty((tall, -(-groups * bits // 8)), np.uint8)
    step = max(1, CHUNK // wide)
    for start in range(0, tall, step):
        rows = slice(start, start + step)
        block = np.ascontiguousarray(weight[:, rows].T)
        codes[rows], scales[rows], part = packed(quantize_groups(block, bits, group, symmetric), chosen)
        if zeros is not None:
            zeros[rows] = part
    return codes, scales, zeros


def packed(given: Grouped, chosen: LinearFormat) -> tuple[Codes, Floats, Codes | None]:
    """Integers [N, K] in the layout of MatMulNBits, see `rounded`; a last, shorter group is filled up with zeros."""
    bits, group, symmetric = chosen
    tall, wide = given.codes.shape
    padded = np.zeros((tall, given.scales.shape[1] * group), np.uint8)
    padded[:, :wide] = given.codes
    blocks = pack_nbits(padded.reshape(tall, -1, group), bits)
    return blocks, given.scales, None if symmetric else pack_nbits(given.zeros, bits)


def read_integers(folder: Path) -> tuple[dict[str, Grouped], LinearFormat]:
    """Integers of every MatMulNBits but lm_head by Hugging Face names, and their format; BadInput where formats differ."""
    from .onnx_rescale import unfused

    reader, found, formats = Reader(folder), dict[str, Grouped](), set[LinearFormat]()
    for node in reader.model.graph.node:
        if node.op_type != "MatMulNBits" or "lm_head" in node.name:
            continue
        sizes = {entry.name: entry.i for entry in node.attribute}
        bits, group, wide, tall = (sizes[key] for key in ("bits", "block_size", "K", "N"))
        codes = unpack_nbits(reader.tensor(node.input[1]), bits, group).reshape(tall, -1)[:, :wide]
        scales = reader.tensor(node.input[2]).reshape(tall, -1)
        symmetric = len(node.input) < 4 or not node.input[3]
        if symmetric:
            zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
        else:
            zeros = unpack_nbits(reader.tensor(node.input[3]).reshape(tall, -1), bits, scales.shape[1])
        formats.add(LinearFormat(bits, group, symmetric))
        name = node.name.split("/MatMul")[0].strip("/").replace("/", ".")
        found[name] = Grouped(np.ascontiguousarray(codes), np.array(scales), zeros)
    if len(formats) != 1:
        raise BadInput(str(folder), f"its linears have {len(formats)} integer formats", "one is read at a time")
    return unfused(found, folder), formats.pop()


def embedding(edit: Rewrite, head: str) -> list[Any] | None:
    """The nodes that look tokens up in a table tied to `head`: [Transpose, Gather]; None when the table is its own."""
    flip = next((node for node in edit.nodes if node.op_type == "Transpose" and node.input[0] == head), None)
    if flip is None:
        return None
    return [flip, next(node for node in edit.nodes if node.op_type == "Gather" and node.input[0] == flip.output[0])]


def share_embedding(edit: Rewrite, table: list[Any], names: list[str], shape: tuple[int, ...], chosen: LinearFormat,
                    hidden: int) -> None:  # fmt: skip
    """Look up in lm_head's codes as they lie there, [V, G, group]: one quantized block per row of the last axis.

    No reshaped copy of the codes comes into being, on disk or in memory; only the scales are reshaped to [V, G, 1].
    Where the operator cannot read them (see below), the table stays fp32.
    """
    import onnx

    bits, group, _ = chosen
    flip, gather = table
    out, root = gather.output[0], "/model/embed_tokens"
    if hidden % group or (len(names) == 3 and bits != 8):  # padded rows, or several zeros in a byte
        own = edit.add("model.embed_tokens.weight", np.ascontiguousarray(edit.tensor(flip.input[0]).T))
        plain = onnx.helper.make_node("Gather", [own, gather.input[1]], [out], name=f"{root}/Gather")
        return replace(edit, [flip, gather], [plain])
    block = edit.add("embed.scale_shape", np.array([*shape, 1], np.int64))
    flat = edit.add("embed.flat_shape", np.array([0, 0, hidden], np.int64))
    nodes = [onnx.helper.make_node("Reshape", [source, block], [f"{source}_blocks"], name=f"{root}/{source}_blocks")
             for source in names[1:]]  # fmt: skip
    nodes.append(onnx.helper.make_node(
        "GatherBlockQuantized", [names[0], gather.input[1], *(f"{source}_blocks" for source in names[1:])],
        [f"{out}_blocks"], name=f"{root}/GatherBlockQuantized", domain=MICROSOFT,
        bits=bits, block_size=group, gather_axis=0, quantize_axis=2,
    ))  # fmt: skip
    nodes.append(onnx.helper.make_node("Reshape", [f"{out}_blocks", flat], [out], name=f"{root}/flat"))
    return replace(edit, [flip, gather], nodes)


def tensor_linear(edit: Rewrite, node: Any, shared: dict[str, tuple[str, str, str]],
                  given: Grouped | None = None) -> None:  # fmt: skip
    """MatMul -> DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Mul; linears with the same input share the first."""
    import onnx

    make = onnx.helper.make_node
    source, name, nodes = node.input[0], node.name, []
    if source not in shared:
        shared[source] = (f"{source}_quantized", f"{source}_scale", f"{source}_zero")
        nodes.append(make("DynamicQuantizeLinear", [source], list(shared[source]), name=f"{source}_quantize"))
    codes, scale, zero = shared[source]
    weight, weight_scale, weight_zero = channel_weight(edit, node, given=given)
    nodes += [
        make("MatMulInteger", [codes, weight, zero, weight_zero], [f"{name}_int32"], name=f"{name}_quant"),
        make("Cast", [f"{name}_int32"], [f"{name}_float"], name=f"{name}_cast", to=onnx.TensorProto.FLOAT),
        make("Mul", [scale, weight_scale], [f"{name}_scales"], name=f"{name}_scales_mul"),
        make("Mul", [f"{name}_float", f"{name}_scales"], list(node.output), name=f"{name}_output_scale_mul"),
    ]
    replace(edit, [node], nodes)


def token_linear(edit: Rewrite, node: Any, shared: dict[str, tuple[str, str, str]], bits: int = 8,
                 given: Grouped | None = None) -> None:  # fmt: skip
    """MatMul -> per-token scale, QuantizeLinear with scale 1, MatMulIntegerToFloat, Mul by the tokens' scales."""
    import onnx

    make = onnx.helper.make_node
    source, name, nodes = node.input[0], node.name, []
    one, middle = "quant.one", "quant.middle"
    if not shared:
        edit.add(one, np.array(1, np.float32))
        edit.add(middle, np.array(128, np.uint8))
        edit.add("quant.last_axis", np.array([-1], np.int64))
        edit.add("quant.step", np.array(1 / 127, np.float32))
        edit.add("quant.least", np.array(1e-12, np.float32))
    if source not in shared:
        part = {key: f"{source}_{key}" for key in ("abs", "max", "safe", "scale", "unit", "codes")}
        shared[source] = (part["codes"], part["scale"], middle)
        nodes += [
            make("Abs", [source], [part["abs"]], name=f"{source}_abs"),
            make("ReduceMax", [part["abs"], "quant.last_axis"], [part["max"]], name=f"{source}_max", keepdims=1),
            make("Max", [part["max"], "quant.least"], [part["safe"]], name=f"{source}_safe"),
            make("Mul", [part["safe"], "quant.step"], [part["scale"]], name=f"{source}_scale"),
            make("Div", [source, part["scale"]], [part["unit"]], name=f"{source}_unit"),
            make("QuantizeLinear", [part["unit"], one, middle], [part["codes"]], name=f"{source}_codes"),
        ]
    codes, scale, zero = shared[source]
    weight, weight_scale, weight_zero = channel_weight(edit, node, bits, given)
    nodes += [
        make("MatMulIntegerToFloat", [codes, weight, one, weight_scale, zero, weight_zero], [f"{name}_unscaled"],
             name=f"{name}_quant", domain=MICROSOFT),
        make("Mul", [f"{name}_unscaled", scale], list(node.output), name=f"{name}_token_scale"),
    ]  # fmt: skip
    replace(edit, [node], nodes)


def channel_weight(edit: Rewrite, node: Any, bits: int = 8, given: Grouped | None = None) -> tuple[str, str, str]:
    """Codes [K, N] of so many bits, scales [N] and zeros [N] of a MatMul's weight: names of the three tensors. The codes are
    int8 about 0; of 8 bits uint8 about 128 where products with such int8 saturate (`kernels/saturation.py`)."""
    weight = node.input[1]
    if given is None:
        codes, scales = quantize_channels(np.ascontiguousarray(edit.tensor(weight).T), 2 ** (bits - 1) - 1)
    else:
        codes, scales = signed_channels(given)
    edit.drop(weight)
    zero: NDArray[Any] = np.zeros(len(scales), np.int8)
    if bits == 8 and saturates():
        codes, zero = (codes.astype(np.int16) + 128).astype(np.uint8), np.full(len(scales), 128, np.uint8)
    return (
        edit.add(f"{weight}_quantized", np.ascontiguousarray(codes.T)),
        edit.add(f"{weight}_scale", scales),
        edit.add(f"{weight}_zero_point", zero),
    )


def replace(edit: Rewrite, gone: list[Any], nodes: list[Any]) -> None:
    """Put `nodes` where the last of `gone` stood."""
    place = edit.nodes.index(gone[-1])
    edit.nodes[place : place + 1] = nodes
    for node in gone[:-1]:
        edit.nodes.remove(node)
