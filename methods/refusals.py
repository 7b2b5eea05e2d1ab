"""Why a method cannot make an artifact, said before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.documents.scheme import Scheme
from quantadvisor.kernels.machine import usable_memory

ONNX = ("onnxruntime", "onnxruntime-genai")
"""Both read one folder format."""
COMPRESSED = ("vllm", "triton")
"""Both read compressed-tensors, and compute everything else in bfloat16."""


def config(model_folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(model_folder) / "config.json").read_text())
    return loaded


def not_offered(method: str, scheme: Scheme, schemes: Iterable[Scheme], runtime: str,
                runtimes: Iterable[str]) -> str | None:  # fmt: skip
    """The checks that all methods share: does it know the runtime, and the scheme?"""
    if runtime not in runtimes:
        return f"{method} writes nothing for {runtime}; it writes for {', '.join(runtimes)}"
    if scheme.name not in {offered.name for offered in schemes}:
        return f"{method} does not offer {scheme.name}"
    return None


INTEGER_BITS = dict.fromkeys(ONNX, (2, 4, 8)) | {"openvino": (4, 8), "vllm": (4, 8), "triton": (4, 8), "torch": (4, 8)}
"""Widths of integer weights in groups that a runtime's kernels multiply by (8 bits in vLLM, and all in triton: on a GPU only)."""


def width_missing(scheme: Scheme, runtime: str) -> str | None:
    """Why a runtime cannot compute the integer weights of a scheme; None where it can."""
    known = INTEGER_BITS.get(runtime, ())
    if scheme.weights is None or scheme.weights.bits in known:
        return None
    widths = ", ".join(map(str, known))
    return f"{runtime} has no kernel for {scheme.weights.bits:g}-bit weights in groups; it has {widths}"


def no_kernel(method: str, scheme: Scheme, schemes: Iterable[Scheme], runtime: str, missing: Mapping[str, str]) -> str:
    """Why a runtime cannot run what the method would write: what it lacks, by `missing` (runtime -> reason)."""
    if scheme.name not in {offered.name for offered in schemes}:
        return f"{method} does not offer {scheme.name}"
    if runtime not in missing:
        return f"{method} writes nothing for {runtime}; none of {', '.join(missing)} runs it either"
    return missing[runtime]


def installed(module: str) -> bool:
    """Whether a module could be imported here, within a package too."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package
        return False


def nothing_to_write(method: str, reason: str | None) -> NoReturn:
    """The `apply` of a method whose schemes are simulated only, since no runtime here could load the artifact."""
    raise CandidateFailed(f"{method}: {reason}")


def row_widths(found: Mapping[str, Any]) -> dict[str, int]:
    """What the rows of a decoder's linears are as wide as, by its config."""
    widths = {key: found[key] for key in ("hidden_size", "intermediate_size") if key in found}
    if found.get("head_dim"):
        widths["num_attention_heads x head_dim"] = found["num_attention_heads"] * found["head_dim"]
    return widths


def group_mismatch(model_folder: Path, scheme: Scheme) -> str | None:
    """Groups that must divide the rows that they cut: openvino's, and the blocks of bitsandbytes' NF4, in our kernel and in its
    own on a CPU, which goes row by row over blocks that it wrote flat."""
    group = scheme.weights.group_size if scheme.weights else None
    for key, width in row_widths(config(model_folder)).items():
        if group and width % group:
            return f"groups of {group} do not divide {key} = {width}"
    return None


def padding(model_folder: Path, scheme: Scheme, runtime: str) -> tuple[str, ...]:
    """The note of a method where ONNX Runtime's last group of a row is a short one; other runtimes refuse that."""
    short = group_mismatch(model_folder, scheme) if runtime in ONNX else None
    return (f"{short}: the last group of such a row is shorter, and filled up with zeros",) if short else ()


def memory_missing(method: str, model_folder: Path, models: float) -> str | None:
    """Why a method that holds so many times the model in float32 cannot run here now; None where there is room."""
    needed, free = models * fp32_bytes(model_folder), free_memory()
    if needed <= free:
        return None
    held = "the whole model" if models == 1 else f"{models:g} times the whole model"
    return f"{method} holds {held} in float32, {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"


def check_memory(step: str, model_folder: Path) -> None:
    """CandidateFailed where a step that holds the whole model in float32 finds no room for it."""
    if reason := memory_missing(step, model_folder, 1):
        raise CandidateFailed(reason)


def fp32_bytes(model_folder: Path) -> int:
    """Of every tensor of the folder, by the headers of its files."""
    from safetensors import safe_open

    values = 0
    for path in sorted(Path(model_folder).glob("*.safetensors")):
        with safe_open(path, "np") as file:
            values += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
    return 4 * values


def free_memory() -> int:
    """Bytes that can be allocated without pushing anything out, or the limit of the cgroup where that is less."""
    import psutil

    return min(int(psutil.virtual_memory().available), usable_memory())


READS = "transformers reads"
"""How a refusal begins that keeps nobody from writing the folder: it only could not be loaded here."""
HALF = (*COMPRESSED, "torch")
"""Runtimes whose integer weights in groups lie in Hugging Face folders, with everything else in 16 bit."""


def half_mismatch(scheme: Scheme, runtime: str) -> str | None:
    """Those keep in 16 bit what is not in groups; the others have an 8-bit lm_head, and compute in float32."""
    if (runtime in HALF) != (scheme.compute == "bf16"):
        return f"{scheme.name} is not for {runtime}: …-bf16 is for {', '.join(HALF)} only"
    return None


def unread_groups(runtime: str) -> str | None:
    """Why integers in groups that are written could not be loaded here. To be asked last: it hides what keeps from writing."""
    if runtime == "torch" and find_spec("gptqmodel") is None:
        return f"{READS} GPTQ's layout through gptqmodel, which is not installed: pip install gptqmodel"
    return None


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""How configs call the number of a layer's experts."""


def experts_left(found: Mapping[str, Any], runtime: str) -> str | None:
    """Why a mixture of experts is not quantized through an exporter's graph: there all experts of a layer are one product of
    three dimensions, or an operator of their own, and would stay as they are."""
    named = next((key for key in EXPERTS if found.get(key)), None)
    return named and f"{named} = {found[named]}: in the graph for {runtime} the experts' weights would stay unquantized"


BITSANDBYTES = ("torch", "triton")
"""Runtimes that read bitsandbytes' folders: with its kernels, and with ours."""


def not_bitsandbytes(scheme: Scheme, runtime: str, held: Iterable[str]) -> str | None:
    """Why there is no bitsandbytes folder of a scheme for a runtime; `held`: those that it holds."""
    if runtime not in BITSANDBYTES:
        return f"{scheme.name} is not for {runtime}: bitsandbytes' folders are read by {' and '.join(BITSANDBYTES)} only"
    if scheme.name not in held:
        return f"bitsandbytes holds {' and '.join(held)}, not {scheme.name}"
    return None


def unread_bitsandbytes(runtime: str) -> str | None:
    """As `unread_groups`, of bitsandbytes' folders."""
    if runtime == "triton":
        return None
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        return f"{READS} bitsandbytes' folders through {missing[0]}, which is not installed: pip install {missing[0]}"
    return None


def compute_mismatch(scheme: Scheme, runtime: str) -> str | None:
    """Of W8A8: vLLM and triton compute everything but the INT8 products in bfloat16, the others in float32."""
    if (runtime in COMPRESSED) != (scheme.compute == "bf16"):
        return f"{scheme.name} is not for {runtime}: w8a8-bf16 is for {' and '.join(COMPRESSED)} only"
    return None
