"""OpenVINO artifacts: stateful graphs whose key-value cache lives in variables, compressed by NNCF.

A folder holds `openvino_model.xml` (logits of the last position, as a server computes them), `openvino_scoring.xml` (the
same graph with the logits of all positions), one `openvino_model.bin` for both, and the tokenizer. The two graphs differ
in one attribute of one node, a StridedSlice in front of the output layer whose `begin_mask` is switched off or on:
their constants, and so the offsets into the file of weights, are the same.

NNCF's integer weights: INT8 is per output channel only (it has no groups), INT4 is by groups of input channels. Its
symmetric INT4 has a signed scale, so that the larger of the two tails of a group meets −8.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MODEL, SCORING, WEIGHTS = "openvino_model.xml", "openvino_scoring.xml", "openvino_model.bin"
SLICE = "quantadvisor/last_position"
LAST, ALL = 'begin_mask="1, 0"', 'begin_mask="1, 1"'
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
    """The float32 artifact of a Hugging Face folder of float32 weights; no network."""
    with artifact(out) as folder, tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-export.") as exported:
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


def compress_weights(
    base: Path,
    out: Path,
    bits: int | Mapping[str, int],
    group_size: int,
    symmetric: bool = True,
    head_bits: int = 8,
) -> None:
    """Round-to-nearest weights of `base`, with float activations.

    `bits` is 8 (per output channel: `group_size` does not apply), 4 (groups of `group_size` inputs), or the bits of each
    linear by its Hugging Face name (`model.layers.0.mlp.up_proj`), 8 where it is not named. The embedding and the output
    layer have `head_bits`.
    """
    with artifact(out) as folder:
        model = read(base / MODEL, base / WEIGHTS)
        names = linear_names(model)
        wanted = dict.fromkeys(names, bits) if isinstance(bits, int) else {name: bits.get(name, 8) for name in names}
        unknown = set() if isinstance(bits, int) else set(bits) - set(names)
        if unknown or not set(wanted.values()) <= {4, 8} or head_bits not in (4, 8):
            raise ValueError(f"weights of 4 or 8 bits by the names of linears, found {sorted(unknown) or bits}, {head_bits}")
        head = output_layer(model).get_friendly_name()
        keep = [node for name, node in names.items() if wanted[name] == 8 and node != head]
        if any(width == 4 for width in wanted.values()):
            model = compress_int4(model, group_size, symmetric, head_bits, keep)
        if keep or head_bits == 8:
            model = compress_int8(model, symmetric)
        write(model, folder)
        copy_rest(base, folder)


def quantize_w8a8(base: Path, out: Path, calibration_tokens: Any, smooth: bool) -> None:
    """INT8 weights (per channel) and INT8 activations (static, per tensor) from calibration tokens int64 [samples, length].

    `smooth`: SmoothQuant (arXiv:2211.10438) with α 0.5 before the linears. Statistics come from all positions of the
    output layer's input.
    """
    with artifact(out) as folder:
        model = read(base / SCORING, base / WEIGHTS)
        with quiet():
            import nncf
            from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters

            alpha = 0.5 if smooth else -1.0
            names = {name for port in model.inputs for name in port.get_names()}
            samples = [calibration_inputs(row, names) for row in calibration_tokens]
            model = nncf.quantize(
                model,
                nncf.Dataset(samples),
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.PERFORMANCE,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha),
                ),
            )
        write(model, folder)
        copy_rest(base, folder)


@contextlib.contextmanager
def artifact(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters and NNCF print progress bars, log and warn about their own code: none of it is for our user."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def read(xml: Path, weights: Path) -> Any:
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


def linear_names(model: Any) -> dict[str, str]:
    """{Hugging Face name: name of the MatMul} of the linears, those with weights [N, K], output layer included."""
    names = {}
    for node in model.get_ops():
        if node.get_type_name() == "MatMul" and node.get_friendly_name().startswith("__module."):
            if node.get_input_partial_shape(1).is_static and len(node.get_input_shape(1)) == 2:
                name = node.get_friendly_name()
                names[name.removeprefix("__module.").split("/")[0]] = name
    return names


def compress_int4(model: Any, group_size: int, symmetric: bool, head_bits: int, keep: list[str]) -> Any:
    """All linears but `keep` in INT4; with `head_bits` 4 the embedding and the output layer too."""
    with quiet():
        import nncf

        modes = nncf.CompressWeightsMode
        return nncf.compress_weights(
            model,
            mode=modes.INT4_SYM if symmetric else modes.INT4_ASYM,
            ratio=1.0,
            group_size=group_size,
            all_layers=head_bits == 4,
            backup_mode=nncf.BackupMode.INT8_SYM if symmetric else nncf.BackupMode.INT8_ASYM,
            ignored_scope=nncf.IgnoredScope(names=keep),
        )


def compress_int8(model: Any, symmetric: bool) -> Any:
    """Every weight that is still float in INT8, per output channel."""
    with quiet():
        import nncf

        name_apart(model)
        modes = nncf.CompressWeightsMode
        return nncf.compress_weights(model, mode=modes.INT8_SYM if symmetric else modes.INT8_ASYM)


def name_apart(model: Any) -> None:
    """Gives every node a name of its own: the names that NNCF's first pass makes up may clash with read ones."""
    seen: set[str] = set()
    for i, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name in seen:
            node.set_friendly_name(f"{name}/{i}")
        seen.add(node.get_friendly_name())


def calibration_inputs(row: Any, names: set[str]) -> dict[str, Any]:
    """Inputs of the stateful graph for one sequence of tokens int64 [length]."""
    import numpy as np

    tokens = np.ascontiguousarray(row, np.int64)[None]
    inputs = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.shape[1], dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    return {name: value for name, value in inputs.items() if name in names}


def convert_tokenizer(model_folder: Path, folder: Path) -> None:
    """The tokenizer as OpenVINO graphs, which openvino-genai asks for; skipped where there is no fast tokenizer."""
    if not (model_folder / "tokenizer.json").exists():
        return
    with quiet():
        import openvino
        from openvino_tokenizers import convert_tokenizer as convert
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(model_folder), local_files_only=True)
        for model, name in zip(convert(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True):
            openvino.save_model(model, folder / f"openvino_{name}.xml")


def copy_rest(base: Path, folder: Path) -> None:
    for path in base.iterdir():
        if path.name not in (MODEL, SCORING, WEIGHTS):
            shutil.copy(path, folder / path.name)
