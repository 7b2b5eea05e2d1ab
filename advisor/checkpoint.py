"""Existing checkpoints: what they hold, read without running them, and the candidates that they are.

A GGUF file, an ONNX folder (`model.onnx`), an OpenVINO IR folder (`openvino_model.xml`) or a Hugging Face folder
(`config.json` with safetensors). What is stored is not what runs: that is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput, Candidate, Checkpoint, Device, Inventory, Scheme, Target, Workload
from quantadvisor.kernels.llama_layouts import crash, layouts
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import check_runtime, interpreter_of, refusal
from quantadvisor.profiling.runtimes import nvidia

from .candidates import UNKNOWN, asked_runtimes, needless, places_on
from .stored_gguf import gguf_in, of_gguf
from .stored_graphs import of_onnx, of_openvino, saturation_notes
from .stored_transformers import of_transformers
from .stored_words import GIVE

FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml", "transformers": "config.json"}
"""Format -> the file by which a folder of it is known."""
WORDS = {"onnx": "ONNX", "openvino": "OpenVINO IR", "transformers": "Hugging Face folder", "gguf": "GGUF"}
RUNTIMES_OF = {
    "onnx": ("onnxruntime", "onnxruntime-genai"),
    "openvino": ("openvino",),
    "transformers": ("torch", "vllm", "triton"),
    "gguf": ("llama.cpp",),
}
PLACES = {
    "onnx": ("onnxruntime", "onnxruntime-genai"),
    "openvino": ("openvino+f32", "openvino+bf16"),
    "transformers": ("torch", "vllm", "triton"),
    "gguf": ("llama.cpp", "llama.cpp+fa", "llama.cpp+plain", "llama.cpp+fa+plain"),
}
"""Runtimes with options on which a checkpoint of the format competes."""
CACHES = {
    "kvf16": "", "kvu8": "-kv8", "kvq8": "-kv8", "kvq4": "-kv4",
    "kvfp8": "-kvf8-unit", "kvturbo": "-kv4-turbo", "kvint8": "-kv8-head", "kvint4": "-kv4-head",
}  # fmt: skip
"""Options of a session that say how the cache is stored, and the end of the scheme's name that stands for it."""


def inspect(path: str, place: str | None, isa: tuple[str, ...], pythons: Mapping[str, str] | None = None) -> Checkpoint:
    """The checkpoint as its files describe it, on the runtime `name+option` (None: the format's first), which can run it in
    the interpreter that was asked for (`pythons`: by runtime)."""
    made = described(path)
    name, options = runtime_for(made.format, place, path)
    python = interpreter_of(name, (pythons or {}).get(name))
    refused = refusal(name, python, made.path, options, isa) or crash(made.scheme, name, options, isa, python)
    if refused:
        raise BadInput(path, f"cannot run on {name}: {refused}", "see advisor runtimes")
    cache = next((CACHES[option] for option in options if option in CACHES), "")
    options = tuple(option for option in options if option not in CACHES)  # the session gets them from the scheme
    update: dict[str, Any] = {"scheme": with_cache(made.scheme, cache)} if cache else {}
    if name == "llama.cpp" and nvidia.CUDA not in options:
        update["layouts"] = layouts(python)
    if name == "vllm":  # it computes in bfloat16, whatever the file holds
        update["plain"] = "bf16"
    return made.model_copy(update={"runtime": name, "options": options, **update})


def described(path: str) -> Checkpoint:
    """The checkpoint as its files describe it, on the first runtime of its format, whether that can run here or not."""
    given = Path(path).expanduser()
    if not given.exists():
        raise BadInput(path, "no such file or folder", GIVE)
    if is_engine(given):
        raise BadInput(path, "is a TensorRT engine, read by TensorRT-LLM only, no runtime here", "name what it was built from")
    kind, found = kind_of(given), gguf_in(given)
    if kind == "gguf" and found is not None:
        return Checkpoint(path=str(found), format="gguf", runtime="llama.cpp", **of_gguf(found))
    if kind == "onnx":
        return Checkpoint(path=str(given), format="onnx", runtime="onnxruntime", **of_onnx(given))
    if kind == "openvino":
        return Checkpoint(path=str(given), format="openvino", runtime="openvino", options=("f32",), **of_openvino(given))
    if kind == "transformers":
        return Checkpoint(path=str(given), format="transformers", runtime="torch", **of_transformers(given))
    if given.is_dir():
        raise BadInput(path, "holds no model.onnx, openvino_model.xml or config.json, and no single .gguf", GIVE)
    raise BadInput(path, "is neither a folder nor a GGUF file", GIVE)


def kind_of(given: Path) -> str | None:
    """The format, by the files that are there; None where it is none of ours."""
    if gguf_in(given) is not None and not (given / FILES["transformers"]).is_file():
        return "gguf"
    return next((kind for kind, file in FILES.items() if (given / file).is_file()), None)


def is_engine(given: Path) -> bool:
    """A TensorRT engine, or TensorRT-LLM's folder of them, whose config.json is its own."""
    if given.is_file():
        return given.suffix.lower() in (".engine", ".plan")
    return any(given.glob("*.engine")) and not any(given.glob("*.safetensors"))


def place_on_gpu(kind: str, place: str | None, device: Device) -> str | None:
    """The place (None: the format's first there) as it is on the GPU, with the option `cuda`; None where it has none."""
    if place is None:
        return next(iter(places_on(device, PLACES[kind])), None)
    name, *options = place.split("+")
    if name == "triton" or nvidia.CUDA in options:
        return place
    return "+".join((name, nvidia.CUDA, *options)) if places_on(device, (name,)) else None


def existing_checkpoints(workload: Workload, inventory: Inventory, device: Device) -> tuple[Candidate, ...]:
    """`checkpoints:` of the spec as candidates of method `given`, on every runtime asked for that reads their format; one that is
    refused, of what none of them reads. BadInput where nothing is there, or the checkpoint is another model's."""
    found: list[Candidate] = []
    asked = asked_runtimes(workload)
    for path in workload.checkpoints:
        try:
            checkpoint = described(path)
        except BadInput as error:
            if not Path(path).expanduser().exists():
                raise
            found.append(as_candidate(path, UNKNOWN, first_place(path, device), str(error)))
            continue
        check_same_model(checkpoint, inventory, workload.model)
        places = [place for place in places_on(device, PLACES[checkpoint.format]) if place.split("+")[0] in asked]
        if not places:
            refused = unread(checkpoint.format, tuple(asked), device)
            found.append(as_candidate(checkpoint.path, checkpoint.scheme, first_place(checkpoint.path, device), refused))
        notes = saturation_notes(Path(checkpoint.path)) if device.kind == "cpu" else ()
        found += [
            given(checkpoint, place, device.isa, asked[place.split("+")[0]]).model_copy(update={"notes": notes})
            for place in places
        ]
    names = [candidate.name for candidate in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput("checkpoints", f"two checkpoints would both be called {twice}", "give them different names")
    return tuple(found)


def first_place(path: str, device: Device) -> str:
    """Where what is read nowhere here is listed: the first place of its format, on a GPU there where it has one."""
    there = Path(path).expanduser()
    if is_engine(there):
        return "tensorrt-llm"
    kind = kind_of(there)
    return "unknown" if kind is None else (*places_on(device, PLACES[kind]), *PLACES[kind])[0]


def unread(kind: str, asked: tuple[str, ...], device: Device) -> str:
    """Why no runtime that is asked for reads the format, and what to do about it."""
    readers = RUNTIMES_OF[kind]
    reads = f"{WORDS[kind]}, read by {', '.join(readers)} only"
    if not places_on(device, PLACES[kind]):
        return f"{reads}, not on a GPU: set device: cpu"
    return f"{reads}; runtimes: names {', '.join(asked) or 'servers alone'}: add {readers[0]} there"


def given(checkpoint: Checkpoint, place: str, isa: tuple[str, ...], python: str) -> Candidate:
    made = checkpoint.scheme
    name, *options = place.split("+")
    refused = refusal(name, python, checkpoint.path, tuple(options), isa) or crash(made, name, tuple(options), isa, python)
    one = as_candidate(checkpoint.path, made, place, refused)
    return one.model_copy(update={"excluded": needless(one, isa, python)})


def as_candidate(path: str, made: Scheme, place: str, refused: str | None) -> Candidate:
    name, *options = place.split("+")
    cache_only = made.quantizes_cache and made.weights is None
    target: Target = "activations" if made.activations else "weights" if made.weights else "kv_cache" if cache_only else "none"
    there = Path(path).expanduser().resolve()
    called = re.sub(r"[^\w.-]+", "-", there.name.removesuffix(".gguf"))
    return Candidate(
        name=f"given-{called}@{place}", method="given", scheme=made, runtime=name, options=tuple(options), target=target,
        checkpoint=str(there), refused=refused,
    )  # fmt: skip


def runtime_for(kind: str, place: str | None, path: str) -> tuple[str, tuple[str, ...]]:
    """(name, options); BadInput where the runtime is unknown or reads another format."""
    able = RUNTIMES_OF[kind]
    name, *options = (place or able[0]).split("+")
    check_runtime("--runtime", name)
    if name not in able:
        raise BadInput("--runtime", f"{name} does not read {path}, a folder in {kind} format", f"give {' or '.join(able)}")
    if name == "openvino" and not options:
        options = ["f32"]
    return name, tuple(options)


def with_cache(made: Scheme, end: str) -> Scheme:
    """The scheme with a quantized cache: an option of the runtime, not of its artifact."""
    cache = scheme(f"q8_0{end}" if end == "-kv4" else f"bf16{end}" if end.endswith("-head") else f"fp32{end}")
    return made.model_copy(update={"name": made.name + end, "keys": cache.keys, "values": cache.values})


def check_quantized(checkpoint: Checkpoint) -> None:
    made = checkpoint.scheme
    if made.compute == "fp32" and not (made.weights or made.activations or made.quantizes_cache):
        raise BadInput(checkpoint.path, "is not quantized, so nothing is to explain", "name the quantized checkpoint")


def check_same_model(checkpoint: Checkpoint, inventory: Inventory, model: str) -> None:
    """A checkpoint of another model cannot be set against this one."""
    for what, found, wanted in (
        ("layers", checkpoint.layers, inventory.layers),
        ("tokens in its vocabulary", checkpoint.vocabulary, inventory.vocabulary),
    ):
        if found is not None and found != wanted:
            text = f"has {found} {what}, the workload's model {model} has {wanted}"
            raise BadInput(checkpoint.path, text, "name the model that it was made from in the workload")
