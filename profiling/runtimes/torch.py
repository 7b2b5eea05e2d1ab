"""torch through transformers, eager: the baseline that most people run. Safetensors folders in float32 or bfloat16, and
quantized ones of whatever transformers reads, with the package that brings the format's kernels.

A linear counts as quantized where it holds codes when it runs: a format that transformers expands again at load (FP8 on a
CPU) loads and runs unquantized. A decode step grows a DynamicCache by concatenation, as `generate` does: the copy is part
of what this runtime costs.

Option `cuda`: the model and its cache on the GPU, eager as on the CPU (the `triton` runtime decodes by CUDA graphs). Option
`compile`: decode steps by torch.compile over a static cache (torch_compile.py), prefill eager.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import nvidia, torch_compile, torch_cuda

NAME = "torch"
OPTIONS = (nvidia.CUDA, torch_compile.COMPILE)
PACKAGES = {
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel", "accelerate"),
    "compressed-tensors": ("compressed_tensors",),
    "fp8": ("accelerate",),
    "torchao": ("torchao",),
    "optimum-quanto": ("optimum.quanto",),
}
"""quant_method of config.json (or who else wrote the folder) -> the modules that loading it takes."""
INSTALL = {
    "compressed_tensors": "compressed-tensors",
    "optimum.quanto": "--no-deps optimum-quanto ninja",
    "gptqmodel": "--no-deps gptqmodel pypcre tokenicer device-smi logbar defuser dill pillow && pip install datasets",
}
"""What pip is given where that is not the module's name; GPTQModel pins a newer torch and transformers than it needs to load."""
UNREAD = {
    "hqq": "transformers 5 does not read it (5.5.4 leaves its linears random): dequantize it with hqq, and quantize again",
    "quanto": "transformers never wrote one that can be read again: save it with optimum-quanto's QuantizedModelForCausalLM",
}
QUANTO_MAP = "quanto_qmap.json"
"""What optimum-quanto's own folders hold beside a config that says nothing of it."""
ADAPTER = "adapter"
"""Where a folder holds LoRA beside its weights, in PEFT's format."""
BESIDE = (".lora_A.", ".lora_B.")
"""In the names of an adapter's products, which are none of the model's linears."""
FLOATS = ("float32", "bfloat16", "float16", "float64")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::mkldnn_linear", "mkldnn::_linear_pointwise", "aten::linear", "aten::bmm")
LOW_BIT = re.compile(
    r"int[48]pack_mm|::_int_mm|::_scaled_mm|dyn_quant_matmul|gemv_4bit|int8_linear_matmul|int8_scaled_mm|qbytes_mm"
)
"""Products that read codes: torch's own, bitsandbytes' and quanto's. What a package dequantizes first runs as a plain one."""


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    from importlib.util import find_spec

    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed: pip install {package}"
    if unknown := [option for option in options if option not in OPTIONS]:
        return f"torch has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}"
    if path is not None and not (Path(path) / "config.json").exists():
        return f"{path} is not a Hugging Face folder: no config.json"
    gpu = on_gpu(options)
    if gpu and find_spec("accelerate") is None:
        return "transformers loads onto a GPU through accelerate, which is not installed: pip install accelerate"
    if gpu and (reason := nvidia.torch_refusal()):
        return reason
    if torch_compile.COMPILE in options and (reason := torch_compile.refusal("cuda" if gpu else "cpu")):
        return reason
    return missing_package(path) if path is not None else None


def on_gpu(options: tuple[str, ...]) -> bool:
    return nvidia.CUDA in options


def missing_package(path: str) -> str | None:
    """The first package that the folder's format takes and that is not installed here, with the command that adds it."""
    from importlib.util import find_spec

    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{path}/config.json is not JSON: {error}"
    quanto = (Path(path) / QUANTO_MAP).exists()
    method = "optimum-quanto" if quanto else str((config.get("quantization_config") or {}).get("quant_method", ""))
    if method in UNREAD:
        return f"a {method} checkpoint: {UNREAD[method]}"
    beside = ("peft",) if (Path(path) / ADAPTER).is_dir() else ()
    for module in (*PACKAGES.get(method, ()), *beside):
        parents = [module.rsplit(".", 1)[0]] if "." in module else []
        if any(find_spec(name) is None for name in (*parents, module)):
            command = f"pip install {INSTALL.get(module, module)}"
            return f"a checkpoint of {method or 'LoRA'} needs {module}, which is not installed: {command}"
    return None


def leave_sklearn_out() -> None:
    """transformers' models import scikit-learn, and most of scipy with it, for assisted generation alone: 1.2 s of the 9.5 s of
    CPU time that a worker starts with (measured). transformers asks once whether it is there, here, and keeps the answer."""
    from transformers.utils import is_sklearn_available

    if "sklearn" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        is_sklearn_available()
    finally:
        del sys.modules["sklearn"]


def warm_imports() -> None:
    import torch

    leave_sklearn_out()
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    torch.set_grad_enabled(False)


def open_session(path: str, options: tuple[str, ...], threads: int) -> TorchSession:
    session = CompiledSession if torch_compile.COMPILE in options else TorchSession
    return session(path, threads, "cuda" if on_gpu(options) else "cpu")


class TorchSession:
    """See docs/architecture.md for the methods of a session. `device`: cpu, or cuda for the first GPU."""

    def __init__(self, path: str, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.device = device
        if device == "cuda":
            torch_cuda.reset_memory()
        self.model = loaded(path, device).eval()
        self.cache: Any = None

    def prefill(self, tokens: Any, capacity: int) -> Any:
        from transformers import DynamicCache

        self.cache = None
        self.cache = DynamicCache(config=self.model.config)
        return self._forward(tokens)

    def decode(self, tokens: Any) -> Any:
        return self._forward(tokens)

    def fill(self, batch: int, capacity: int) -> None:
        self.cache.batch_repeat_interleave(batch)

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        from transformers import DynamicCache

        cache, step = DynamicCache(config=self.model.config), chunk or len(tokens)
        for at in range(0, len(tokens), step):
            yield self._run(tokens[None, at : at + step], cache, 0)[0].float().cpu().numpy()

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        import numpy as np

        logits = self.prefill(tokens, tokens.shape[1] + 8)
        following = logits.argmax(-1)[:, None].astype(np.int64)
        if batch:
            self.fill(batch, tokens.shape[1] + 8)
            following = np.repeat(following, batch, 0)
        self.decode(following)
        decode = self._decode_seen(lambda: self.decode(following))
        prefill = self._observe(lambda: self.prefill(tokens, tokens.shape[1] + 8), rounds=2)
        return {"prefill": prefill, "decode": decode}

    def allocated(self) -> tuple[int, int] | None:
        return torch_cuda.allocated() if self.device == "cuda" else None

    def close(self) -> None:
        self.cache = None

    def _forward(self, tokens: Any, call: Any = None) -> Any:
        logits = self._run(tokens, self.cache, 1, call)[:, -1]
        return torch_cuda.Logits(logits) if self.device == "cuda" else logits.float().numpy()

    def _run(self, tokens: Any, cache: Any, keep: int, call: Any = None) -> Any:
        """`call`: what computes in the model's place."""
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(tokens).to(self.device)
            return (call or self.model)(given, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits

    def _decode_seen(self, run: Any) -> dict[str, Any]:
        return self._observe(run, rounds=5)

    def _observe(self, run: Any, rounds: int) -> dict[str, Any]:
        seen = torch_cuda.observe(run, rounds, places(self.model)) if self.device == "cuda" else self._observe_cpu(run, rounds)
        return self._with_linears(seen)

    def _with_linears(self, seen: dict[str, Any]) -> dict[str, Any]:
        kinds = linear_kinds(self.model)
        said = [f"{count} linears by {kind}" + f" over {codes}" * bool(codes) for (kind, codes), count in kinds.items()]
        return seen | {
            "linears": sum(kinds.values()),
            "quantized_linears": sum(count for (_, codes), count in kinds.items() if codes),
            "cache": self._number(),
            "notes": [*said, *seen.get("notes", [])],
        }

    def _number(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def _observe_cpu(self, run: Any, rounds: int) -> dict[str, Any]:
        """Parts of the wall time by hooks, interleaved with plain runs whose time is the wall; operators by the profiler."""
        import torch

        walls, parts = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            walls.append(time.perf_counter() - start)
            with Stopwatch(self.model) as watch:
                start = time.perf_counter()
                run()
                parts.append(watch.parts(time.perf_counter() - start))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        median = {key: sorted(part[key] for part in parts)[len(parts) // 2] for key in parts[0]}
        return {
            "operators": operator_counts(profile, self._number()),
            "wall_s": sorted(walls)[len(walls) // 2],
            "walls_s": walls,
            **median,
        }


class CompiledSession(TorchSession):
    """Decode steps by torch.compile, which generates code around products that stay calls. RuntimeError where it cannot."""

    def __init__(self, path: str, threads: int, device: str) -> None:
        import numpy as np

        super().__init__(path, threads, device)
        self.compiled = torch_compile.compiled(self.model, device)
        try:
            for rows in (1, 2):
                self.prefill(np.ones((rows, 3), np.int64), 8)
                self.decode(np.ones((rows, 1), np.int64))
        except Exception as error:  # inductor, g++ or the loader, each with exceptions of its own
            raise RuntimeError(torch_compile.reason(error)) from error
        self.close()

    def prefill(self, tokens: Any, capacity: int) -> Any:
        self.cache = None
        self.cache = torch_compile.static_cache(self.model.config, capacity)
        return self._forward(tokens)

    def decode(self, tokens: Any) -> Any:
        return self._forward(tokens.ravel().reshape(-1, 1), self.compiled)  # other strides are compiled for again

    def fill(self, batch: int, capacity: int) -> None:
        torch_compile.repeat(self.cache, batch)

    def _decode_seen(self, run: Any) -> dict[str, Any]:
        if self.device == "cuda":
            return self._with_linears(torch_cuda.observe(run, 5, None))
        return self._with_linears(torch_compile.observed(run, 5, operator_counts, self._number()))


def loaded(path: str, device: str) -> Any:
    """The folder's model. ValueError where it lacks weights: transformers would go on with random ones, and only log it."""
    if (Path(path) / QUANTO_MAP).exists():
        from optimum.quanto import QuantizedModelForCausalLM

        return QuantizedModelForCausalLM.from_pretrained(path)._wrapped.to(device)
    from transformers import AutoModelForCausalLM

    placed = {"device_map": {"": 0}} if device == "cuda" else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype="auto", attn_implementation="sdpa", output_loading_info=True, **placed
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{path} holds no {missing[0]} ({len(missing)} weights missing) that transformers can read")
    if (adapter := Path(path) / ADAPTER).is_dir():
        model.load_adapter(str(adapter))
    return model


def is_linear(module: Any) -> bool:
    """torch's own linear, or one of a quantization package: those name their sizes alike and hold no other linear."""
    import torch

    sized = isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int)
    return isinstance(module, torch.nn.Linear) or (sized and not list(module.children()))


def linear_kinds(model: Any) -> Counter[tuple[str, str]]:
    """(class, what its codes are stored as, empty where it holds none) -> how many of the model's linears."""
    own = [module for name, module in model.named_modules() if is_linear(module) and not any(part in name for part in BESIDE)]
    return Counter((type(module).__name__, codes_of(module)) for module in own)


def codes_of(module: Any) -> str:
    """The element type of a linear's low-bit codes, or the tensor class that hides them (torchao); empty: floats only."""
    import torch

    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for _, tensor in sorted((pair for pair in tensors if pair[0] != "bias"), key=lambda pair: -pair[1].numel()):
        data = tensor.data
        if type(data) not in (torch.Tensor, torch.nn.Parameter) and hasattr(data, "__tensor_flatten__"):
            return type(data).__name__
        name = str(data.dtype).removeprefix("torch.")
        return "" if name in FLOATS else name
    return ""


def operator_counts(profile: Any, precision: str) -> list[dict[str, Any]]:
    """All operators that ran, torch's and those that packages register, most expensive first: a list cut by time would differ
    from look to look."""
    rows = [event for event in profile.key_averages() if "::" in event.key or torch_compile.generated(event.key)]
    rows.sort(key=lambda event: -event.self_cpu_time_total)
    return [
        {
            "name": torch_compile.generated(event.key) or event.key,
            "count": event.count,
            "provider": "CPU",
            "precision": precision,
            "time_s": event.self_cpu_time_total / 1e6,
            "linear": event.key in PRODUCTS or bool(LOW_BIT.search(event.key)),
            "quantized": bool(LOW_BIT.search(event.key)),
        }
        for event in rows
    ]


def places(model: Any) -> list[torch_cuda.Place]:
    """Every linear, every attention call and every cache update of a model."""
    import torch
    from transformers import Cache

    linears = [(module, "forward", "linears") for module in model.modules() if is_linear(module)]
    attention = (torch.nn.functional, "scaled_dot_product_attention", "attention")
    return [*linears, attention, (Cache, "update", "cache")]


class Stopwatch:
    """Times every linear, every attention call and every cache update of a model while it is entered."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seconds = {"linears": 0.0, "attention": 0.0, "cache": 0.0}
        self._undo: list[Any] = []

    def __enter__(self) -> Stopwatch:
        for owner, name, part in places(self.model):
            self._wrap(owner, name, part)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in reversed(self._undo):
            undo()

    def parts(self, total_s: float) -> dict[str, float]:
        timed = sum(self.seconds.values())
        return {
            "linears_s": self.seconds["linears"],
            "attention_s": self.seconds["attention"],
            "cache_s": self.seconds["cache"],
            "other_s": total_s - timed,
        }

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        inner, own = getattr(owner, name), name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, inner) if own else delattr(owner, name))
