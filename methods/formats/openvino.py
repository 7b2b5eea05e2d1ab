"""OpenVINO artifacts: stateful graphs whose key-value cache lives in variables.

A folder holds `openvino_model.xml` (logits of the last position, as a server computes them), `openvino_scoring.xml`
(the same graph with the logits of all positions), one `openvino_model.bin` for both, and the tokenizer. The two graphs
differ in one attribute of one node, a StridedSlice in front of the output layer whose `begin_mask` is switched off or
on: their constants, and so the offsets into the file of weights, are the same.

    export_base       Hugging Face folder -> fp32 folder
    randomise         fp32 folder -> the same with random weights: what ghosts are made of
    quantize_weights  fp32 folder -> group-wise 4 and 8 bit weights, on the grid of `methods/affine.py`
    quantize_w8a8     fp32 folder -> static INT8 x INT8, after moving SmoothQuant's scales

Weights and ranges are written by us, not by NNCF: it knows no INT8 in groups, has grids of its own, takes four times as
long, and its static INT8 holds 4.7 times the fp32 model in memory (SmolLM2-135M; ours: see the README). The CPU plugin
runs either as the same operators.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quantadvisor.documents.errors import BadInput
from quantadvisor.kernels.saturation import most_exact
from quantadvisor.methods.affine import Grouped
from quantadvisor.methods.linear_format import LinearFormat, check
from quantadvisor.methods.refusals import check_memory
from quantadvisor.methods.rescale import Pair, Scale

from .folders import link_or_copy, new_folder
from .huggingface import check_finite

MODEL, SCORING, WEIGHTS = "openvino_model.xml", "openvino_scoring.xml", "openvino_model.bin"
SLICE = "quantadvisor/last_position"
LAST, ALL = 'begin_mask="1, 0"', 'begin_mask="1, 1"'
HEAD = "lm_head"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
OTHER_FILES = ("config.json", "generation_config.json")


def export_base(model_folder: Path, out: Path) -> None:
    """The float32 artifact of a Hugging Face folder of float32 weights; no network. CandidateFailed where one is not finite, or
    memory has no room for the model."""
    check_memory("the export to OpenVINO", model_folder)
    check_finite(model_folder)
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=out.parent, prefix=".export.") as exported:
        with quiet():
            from optimum.exporters.openvino import main_export
            from optimum.intel import OVConfig

            main_export(
                str(model_folder),
                exported,
                task="text-generation-with-past",
                ov_config=OVConfig(dtype="fp32"),
                local_files_only=True,
            )
        model = read(Path(exported) / MODEL, Path(exported) / WEIGHTS)
        slice_last_position(model)
        write(model, folder)
        for name in (*TOKENIZER_FILES, *OTHER_FILES):
            if (model_folder / name).exists():
                shutil.copy(model_folder / name, folder / name)
        convert_tokenizer(model_folder, folder)


def linear_names(folder: Path) -> tuple[str, ...]:
    """Hugging Face names of the linears of a folder (`model.layers.0.mlp.up_proj`), `lm_head` last."""
    return tuple(linears(read(folder / MODEL, folder / WEIGHTS)))


def quantize_weights(base: Path, out: Path, plan: Mapping[str, LinearFormat],
                     given: Mapping[str, Callable[[], Grouped]] | None = None,
                     scales: Iterable[tuple[Pair, Scale]] = ()) -> None:  # fmt: skip
    """Every linear named in `plan` gets integer weights in groups; `lm_head` takes a tied embedding table with it.

    `scales` are moved first. `given` brings the integers of linears that a method has rounded; the others are rounded
    to nearest.
    """
    with new_folder(out) as folder:
        model = read(base / MODEL, base / WEIGHTS)
        known = linears(model)
        if missing := sorted(set(plan) - set(known)):
            raise ValueError(f"the graph in {base} has no linear named {missing[0]}; it has {', '.join(list(known)[:3])}…")
        waiting = move(known, scales)
        for name, chosen in plan.items():
            bring = (given or {}).get(name)
            steps = waiting.pop(name, [])
            if not bring:
                scale_weight(known[name], steps)
            store_in_groups(known[name].input_value(1), chosen, bring() if bring else None)
        for name, steps in waiting.items():
            scale_weight(known[name], steps)
        model.validate_nodes_and_infer_types()
        write(model, folder)
        copy_rest(base, folder)


def compress_weights(
    base: Path, out: Path, bits: int | Mapping[str, int], group_size: int, symmetric: bool = True, head_bits: int = 8
) -> None:
    """`quantize_weights` with one group size. `bits`: of all linears, or of each by name (8 where it is not named).

    8-bit weights are symmetric; `symmetric` is for the 4-bit ones. The output layer has `head_bits` in either case.
    """
    names = linear_names(base)
    if not isinstance(bits, int) and (unknown := sorted(set(bits) - set(names))):
        raise ValueError(f"the graph in {base} has no linear named {unknown[0]}")
    widths = {name: bits if isinstance(bits, int) else bits.get(name, 8) for name in names} | {HEAD: head_bits}
    plan = {name: LinearFormat(width, group_size, symmetric or width == 8) for name, width in widths.items()}
    quantize_weights(base, out, plan)


def randomise(base: Path, out: Path, seed: int = 0) -> None:
    """N(0, 0.02) in the place of every linear's weight; a tied embedding table gets the same."""
    import numpy as np
    from openvino import opset13 as ops

    draw = np.random.default_rng(seed)
    with new_folder(out) as folder:
        model = read(base / MODEL, base / WEIGHTS)
        for node in linears(model).values():
            weight = node.input_value(1)
            random = ops.constant(draw.standard_normal(tuple(weight.get_shape()), np.float32) * np.float32(0.02))
            for reader in list(weight.get_target_inputs()):
                reader.replace_source_output(random.output(0))
        write(model, folder)
        copy_rest(base, folder)


class Input(NamedTuple):
    """The range [low, high] of the activations that the linears `readers` share as their input."""

    readers: tuple[str, ...]
    low: float
    high: float


def quantize_w8a8(base: Path, out: Path, inputs: Iterable[Input], scales: Iterable[tuple[Pair, Scale]] = ()) -> None:
    """INT8 weights per channel and INT8 activations per tensor, in fixed ranges, of the linears that `inputs` name.

    `scales` are moved first (SmoothQuant, arXiv:2211.10438, eq. 3), so the ranges are those after the move. Attention
    stays float: quantized inputs would take the cache out of it, and decode would copy the cache every step. The output
    layer stays as it is.
    """
    with new_folder(out) as folder:
        model = read(base / MODEL, base / WEIGHTS)
        known = linears(model)
        waiting = move(known, scales)
        for readers, low, high in inputs:
            rounded = round_activations(known[readers[0]].input_value(0), low, high)
            for name in readers:
                known[name].input(0).replace_source_output(rounded)
                scale_weight(known[name], waiting.pop(name, []))
                store_in_channels(known[name].input(1))
        for name, steps in waiting.items():
            scale_weight(known[name], steps)
        model.validate_nodes_and_infer_types()
        write(model, folder)
        copy_rest(base, folder)


Step = tuple[Any, Any]
"""(numpy.divide or numpy.multiply, by what)"""


def move(known: Mapping[str, Any], scales: Iterable[tuple[Pair, Scale]]) -> dict[str, list[Step]]:
    """Norms and biases are divided at once; what each linear's weight waits for comes back, in order: `scale_weight` does it when
    its turn comes to be stored, so that no second float32 model comes into being."""
    import numpy as np

    waiting: dict[str, list[Step]] = {}
    for pair, scale in scales:
        if pair.norm:
            divide_norm([known[name] for name in pair.targets], scale)
        else:
            waiting.setdefault(pair.source, []).append((np.divide, scale[:, None]))
            for reader in known[pair.source].output(0).get_target_inputs():
                if reader.get_node().get_type_name() == "Add":  # its bias
                    put(constant := constants(reader.get_node())[0], constant.get_source_output().get_node().data / scale)
        for name in pair.targets:
            waiting.setdefault(name, []).append((np.multiply, pair.spread(scale)))
    return waiting


def scale_weight(linear: Any, steps: Iterable[Step]) -> None:
    for operation, by in steps:
        put(linear.input(1), operation(linear.input_value(1).get_node().data, by))


def divide_norm(readers: Sequence[Any], scale: Scale) -> None:
    """Divide the norm's weight, which the exporter leaves out where it is all ones: then a product is put in its place."""
    from openvino import opset13 as ops

    value = readers[0].input_value(0)
    if weights := constants(value.get_node()):
        put(weights[0], weights[0].get_source_output().get_node().data / scale)
        return
    divided = ops.multiply(value, ops.constant(1 / scale))
    for reader in readers:
        reader.input(0).replace_source_output(divided.output(0))


def constants(node: Any) -> list[Any]:
    """The inputs of `node` that read a constant."""
    return [port for port in node.inputs() if port.get_source_output().get_node().get_type_name() == "Constant"]


def put(port: Any, value: Any) -> None:
    import numpy as np
    from openvino import opset13 as ops

    port.replace_source_output(ops.constant(np.ascontiguousarray(value, np.float32)).output(0))


def round_activations(value: Any, low: float, high: float) -> Any:
    """`value` on the 256 levels of the affine grid of [low, high], on which 0 is exact."""
    import numpy as np
    from openvino import opset13 as ops

    from ..affine import affine_grid

    scale, zero = affine_grid(np.float32(low), np.float32(high), 0, 255)  # type: ignore[arg-type]  # scalars broadcast
    ends = [ops.constant(np.float32((level - zero) * scale)) for level in (0, 255)]
    return ops.fake_quantize(value, *ends, *ends, 256).output(0)


def store_in_channels(port: Any) -> None:
    """Puts symmetric int8 codes and one scale per row in the place of the float constant [N, K] behind `port`: 7 bits of them
    where this CPU's sums of 8 saturate (`kernels/saturation.py`)."""
    import numpy as np
    from openvino import opset13 as ops

    from ..affine import quantize_channels

    codes, scale = quantize_channels(port.get_source_output().get_node().data, most_exact())
    table = ops.multiply(ops.convert(ops.constant(codes), np.float32), ops.constant(scale[:, None]))
    port.replace_source_output(table.output(0))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print progress bars, log and warn about their own code: none of it is for our user."""
    silence_telemetry()
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("transformers", "optimum"))}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)


def silence_telemetry() -> None:
    """OpenVINO's converter reports its use to the vendor unless the user has opted out: here they do not."""
    loaded = sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails
    if loaded is not None:
        loaded.Telemetry.consent = property(lambda self: False, lambda self, value: None)


def read(xml: Path, weights: Path) -> Any:
    silence_telemetry()
    import openvino

    return openvino.Core().read_model(xml, weights)


def output_layer(model: Any) -> Any:
    """The MatMul that makes the logits."""
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    return node


def slice_last_position(model: Any) -> None:
    """Puts the StridedSlice in front of the output layer: hidden states [B, S, H] -> [B, 1, H]."""
    import numpy as np
    from openvino import opset13 as ops

    place = output_layer(model).input(0)
    begin, end, strides = (ops.constant(np.array(value, np.int64)) for value in ([0, -1], [0, 0], [1, 1]))
    node = ops.strided_slice(place.get_source_output(), begin, end, strides, begin_mask=[1, 0], end_mask=[1, 1], name=SLICE)
    place.replace_source_output(node.output(0))
    model.validate_nodes_and_infer_types()


def write(model: Any, folder: Path) -> None:
    """Both graphs over one file of weights, whichever of them `model` is."""
    import openvino

    openvino.save_model(model, folder / MODEL, compress_to_fp16=False)
    text = (folder / MODEL).read_text(encoding="utf-8")
    at = text.index(f'name="{SLICE}"')
    head, tail = text[:at], text[at:]
    mark = LAST if LAST in tail.split("</layer>", 1)[0] else ALL
    (folder / MODEL).write_text(head + tail.replace(mark, LAST, 1), encoding="utf-8")
    (folder / SCORING).write_text(head + tail.replace(mark, ALL, 1), encoding="utf-8")


def linears(model: Any) -> dict[str, Any]:
    """{Hugging Face name: MatMul} of the nodes that multiply by a constant [N, K], `lm_head` last."""
    head, found = output_layer(model), {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        constant = node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant"
        if constant and len(node.get_input_shape(1)) == 2 and name != head.get_friendly_name():
            found[name.removeprefix("__module.").split("/")[0]] = node
    return found | {HEAD: head}


def store_in_groups(weight: Any, chosen: LinearFormat, given: Grouped | None = None) -> None:
    """Puts integers, scales and zeros in the place of a float constant [N, K], for every node that reads it.

    Symmetric: signed integers [N, G, group], no zeros; else unsigned ones and zeros [N, G, 1]. Scales are float32.
    """
    import numpy as np
    from openvino import opset13 as ops

    from ..affine import quantize_groups

    bits, group, symmetric = chosen
    rows, width = weight.get_node().shape
    check(chosen, "openvino", [width])
    codes, scales, zeros = given or quantize_groups(weight.get_node().data, bits, group, symmetric)
    grouped = ops.convert(integers(codes.reshape(rows, -1, group), bits, symmetric), "f32")
    if not symmetric:
        grouped = ops.subtract(grouped, ops.convert(integers(zeros[..., None], bits, symmetric), "f32"))
    scaled = ops.multiply(grouped, ops.constant(scales[..., None]))
    table = ops.reshape(scaled, ops.constant(np.array([rows, width], np.int64)), False)
    for reader in list(weight.get_target_inputs()):
        reader.replace_source_output(table.output(0))


def integers(codes: Any, bits: int, symmetric: bool) -> Any:
    """A constant of i4, u4, i8 or u8 from unsigned codes; signed ones have half the range taken off."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    number = getattr(openvino.Type, f"{'i' if symmetric else 'u'}{bits}")
    tensor = openvino.Tensor(number, openvino.Shape(codes.shape))
    shifted = (codes ^ np.uint8(1 << (bits - 1))).ravel() if symmetric else codes.ravel()  # two's complement: flips the top bit
    if bits == 4:
        shifted = np.append(shifted, np.zeros(shifted.size % 2, np.uint8))
        shifted = shifted[::2] | shifted[1::2] << 4  # the first of a pair in the low half of its byte
    tensor.data.view(np.uint8).reshape(-1)[:] = shifted
    return ops.constant(tensor)


def read_integers(folder: Path) -> tuple[dict[str, Grouped], LinearFormat]:
    """Integers of every linear in groups but the output layer, by Hugging Face names, and their format."""
    import numpy as np

    model = read(folder / MODEL, folder / WEIGHTS)
    head, found, formats = output_layer(model), dict[str, Grouped](), set[LinearFormat]()
    for node in model.get_ordered_ops():
        table = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if table is None or table.get_type_name() != "Reshape" or node.get_friendly_name() == head.get_friendly_name():
            continue
        scaled = table.input_value(0).get_node()
        inner, scales = (scaled.input_value(at).get_node() for at in (0, 1))
        symmetric = inner.get_type_name() == "Convert"
        codes, bits = unsigned((inner if symmetric else inner.input_value(0).get_node()).input_value(0).get_node())
        rows, groups, group = codes.shape
        zeros = np.full((rows, groups), 1 << (bits - 1), np.uint8)
        if not symmetric:
            zeros = unsigned(inner.input_value(1).get_node().input_value(0).get_node())[0].reshape(rows, groups)
        name = node.get_friendly_name().removeprefix("__module.").split("/")[0]
        found[name] = Grouped(codes.reshape(rows, -1), np.array(scales.data, np.float32).reshape(rows, groups), zeros)
        formats.add(LinearFormat(bits, group, symmetric))
    if len(formats) != 1:
        raise BadInput(str(folder), f"its linears have {len(formats)} integer formats", "one is read at a time")
    return found, formats.pop()


def unsigned(constant: Any) -> tuple[Any, int]:
    """(codes as `integers` was given them, uint8, bits) of a constant of i4, u4, i8 or u8."""
    import numpy as np

    number, shape = constant.get_element_type(), tuple(constant.get_output_shape(0))
    bits = number.bitwidth
    raw = np.array(constant.data).view(np.uint8).reshape(-1)  # 4-bit numbers come packed, the first of a pair low
    if bits == 4:
        raw = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[: int(np.prod(shape))]
    signed = number.get_type_name().startswith("i")
    return (raw ^ np.uint8(1 << (bits - 1)) if signed else raw).reshape(shape), bits


def convert_tokenizer(model_folder: Path, folder: Path) -> None:
    """The tokenizer as OpenVINO graphs, which openvino-genai asks for; skipped where there is no fast tokenizer."""
    if not (model_folder / "tokenizer.json").exists():
        return
    with quiet():
        import openvino
        from openvino_tokenizers import convert_tokenizer as convert  # type: ignore[import-untyped]
        from transformers import PreTrainedTokenizerFast

        # not AutoTokenizer: the class that tokenizer_config.json names may override what tokenizer.json says
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model_folder), local_files_only=True)
        for model, name in zip(convert(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True):
            openvino.save_model(model, folder / f"openvino_{name}.xml")


def copy_rest(base: Path, folder: Path) -> None:
    for path in base.iterdir():
        if path.name not in (MODEL, SCORING, WEIGHTS):
            link_or_copy(path, folder / path.name)
