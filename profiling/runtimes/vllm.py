"""vLLM's engine in this process, step by step: bfloat16 or compressed-tensors folders, on a CPU build or on one for CUDA.

The engine samples its own greedy tokens (which are what `decode` is given); logits are taken where the model computes
them. All prompts of a batch are prefilled in one step, as one static batch. On a CPU it runs eager; on a GPU as its users run
it, compiled and in CUDA graphs, where the parts of a step are told apart by the names of kernels.

vLLM pins packages of its own: it lives in an environment that `make runtime-vllm` makes (a CPU build), or in the user's. A build
is for one of the two, so the option `cuda` must agree with it. Its GPU path has never run on a GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import nvidia, torch_cuda

NAME = "vllm"
STEP_TOKENS = 16_384
"""Prompt tokens of one step; longer batches are measured from recorded caches."""
MOST_ROWS = 1024
"""Requests in flight that the engine has room for."""
CACHE_SHARE = 0.25
"""Of the machine's or the GPU's memory: the pool of cache blocks where nobody says how much traffic is to come."""
FP8_CACHE, TURBO_CACHE = "kvfp8", "kvturbo"
OPTIONS: dict[str, dict[str, str]] = {
    FP8_CACHE: {"kv_cache_dtype": "fp8"},
    TURBO_CACHE: {"kv_cache_dtype": "turboquant_4bit_nc"},
    nvidia.CUDA: {},
}
"""vLLM's TurboQuant (https://docs.vllm.ai/en/v0.20.2/api/vllm/v1/attention/backends/turboquant_attn/): keys turned and in a
codebook of 4 bits, values in even steps of 4 bits; it leaves the first and the last two layers in 16 bits."""
FIRST_TURBO = (0, 20)
POOL = "pool="
"""An option of a session, not of a candidate: bytes of the pool of cache blocks. vLLM takes all of it at load, so it is in
every peak measured here."""
FOR_CUDA = "python -m venv ENV && ENV/bin/pip install vllm, then runtimes: [{name: vllm, python: ENV/bin/python}]"
FOR_CPU = "make runtime-vllm installs its CPU build"


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    if importlib.util.find_spec("vllm") is None:
        mend = FOR_CUDA if on_gpu(options) else "make runtime-vllm, or runtimes: [{name: vllm, python: ...}]"
        return f"vllm is not installed in this environment: {mend}"
    if unknown := [option for option in options if option not in OPTIONS and not option.startswith(POOL)]:
        return f"vllm has no option {unknown[0]!r}; known: {', '.join(OPTIONS)}"
    if {FP8_CACHE, TURBO_CACHE} <= set(options):
        return f"one cache at a time, not {FP8_CACHE} and {TURBO_CACHE}"
    if path is not None and not (Path(path) / "config.json").exists():
        return f"{path} is not a Hugging Face folder: no config.json"
    built_for = nvidia.torch_built_for()
    if on_gpu(options):
        return nvidia.refusal("this vLLM", built_for, FOR_CUDA, without=FOR_CPU) or turbo_refusal(options)
    if built_for is not None:
        return f"this vLLM is built for CUDA {built_for} and has no CPU path: add the option cuda, or {FOR_CPU}"
    if (FP8_CACHE in options or (path is not None and has_cache_scales(Path(path)))) and (reason := fp8_cache_refusal(isa)):
        return reason
    if TURBO_CACHE in options:
        return "vLLM's attention on a CPU reads no TurboQuant cache: it is one of a GPU (option cuda)"
    if path is not None and (reason := fp8_refusal(Path(path), isa)):
        return reason
    return int4_refusal(isa) if path is not None and 4 in weight_bits(Path(path)) else None


def only_avx2(isa: tuple[str, ...]) -> bool:
    return "avx2" in isa and not any(flag.startswith(("avx512", "amx")) for flag in isa)


def fp8_cache_refusal(isa: tuple[str, ...]) -> str | None:
    """vLLM 0.32's attention on x86 decodes FP8 with AVX-512 or AMX only (v1/attention/backends/cpu_attn.py)."""
    return "vLLM's FP8 cache on a CPU needs AVX-512 or AMX, and this one has neither: it ends at AVX2" if only_avx2(isa) else None


def turbo_refusal(options: tuple[str, ...]) -> str | None:
    """Of a GPU: None where vLLM is new enough, or does not tell its version by numbers."""
    if TURBO_CACHE not in options:
        return None
    version = importlib.metadata.version("vllm")
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) >= FIRST_TURBO:
        return None
    return f"vLLM {version} has no TurboQuant cache: it came with {FIRST_TURBO[0]}.{FIRST_TURBO[1]}"


def int4_refusal(isa: tuple[str, ...]) -> str | None:
    """vLLM 0.32 builds `cpu_gemm_wna16` into its AVX-512 libraries, and not into the one for AVX2 (seen in both)."""
    return "vLLM's INT4 product on a CPU needs AVX-512 (its library for AVX2 has none)" if only_avx2(isa) else None


def weight_bits(folder: Path) -> set[int]:
    """Of a quantized Hugging Face folder: as compressed-tensors, GPTQ and AWQ say it; none where it says nothing."""
    said = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    groups = [one.get("weights") or {} for one in (said.get("config_groups") or {}).values()]
    return {int(bits) for bits in (said.get("bits"), *(one.get("num_bits") for one in groups)) if bits}


def fp8_product_refusal(granularity: str, isa: tuple[str, ...]) -> str | None:
    """Of a candidate on a CPU, before there is a folder. One of a scale per row and token runs, far too slow for any workload."""
    if granularity != "block":
        return (
            "vLLM's CPU build multiplies FP8 weights by torch._scaled_mm, which has no kernel there: a decode step of "
            "SmolLM2-135M took 33 s (docs/log.md)"
        )
    if any(flag.startswith("amx") for flag in isa):
        return None
    return "vLLM's product of FP8 weights in blocks on a CPU needs AMX"


def fp8_refusal(folder: Path, isa: tuple[str, ...]) -> str | None:
    """vLLM 0.32 on a CPU (seen): scales of rows and tokens run, by torch._scaled_mm; squares need AMX. Weights with one scale it
    rounds again where it joins q, k and v (w8a8_utils.py:requantize_with_max_scale), by an operator that its CPU build lacks."""
    said = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    groups = said.get("config_groups", {}).values() if said.get("format") == "float-quantized" else ()
    scaled = {group["weights"]["strategy"] for group in groups}
    if "tensor" in scaled:
        return "vLLM's CPU build cannot join FP8 weights that have one scale each: it lacks static_scaled_fp8_quant"
    return fp8_product_refusal("block", isa) if "block" in scaled else None


def has_cache_scales(folder: Path) -> bool:
    """Does a folder bring scales of an FP8 cache? vLLM then stores one without being asked."""
    said = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    return bool(said.get("kv_cache_scheme"))


def on_gpu(options: tuple[str, ...]) -> bool:
    return nvidia.CUDA in options


def warm_imports() -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB, and it would go before the pool that is asked for
    from vllm import LLM, SamplingParams  # noqa: F401


def float_of(options: tuple[str, ...]) -> str:
    """On a GPU the folder's own float type (there are fp16 folders); on a CPU bfloat16, whatever the folder has."""
    return "auto" if on_gpu(options) else "bfloat16"


def settings_of(options: tuple[str, ...]) -> dict[str, Any]:
    """The engine's arguments that the options stand for. Its longest sequence is what the pool holds: a model may allow more
    tokens than the traffic needs, and vLLM would refuse to start with a pool for fewer. On a GPU `gpu_memory_utilization` is
    then only how much must be free at the start, so that candidates fit beside each other."""
    asked = [int(option.removeprefix(POOL)) for option in options if option.startswith(POOL)]
    whole = gpu_bytes if on_gpu(options) else memory_bytes
    pool = asked[-1] if asked else int(whole() * CACHE_SHARE)
    settings: dict[str, Any] = {"kv_cache_memory_bytes": pool, "max_model_len": -1}
    if on_gpu(options):
        settings["gpu_memory_utilization"] = CACHE_SHARE
    for option in options:
        settings |= OPTIONS.get(option, {})
    return settings


def server(path: str, options: tuple[str, ...], port: int, model: str, threads: int) -> tuple[list[str], dict[str, str]]:
    """Arguments after the interpreter, and variables, of an OpenAI-compatible server. Its module, not `vllm serve`: that
    command of the CPU build looks for a package vllm."""
    cache = [text for name, value in settings_of(options).items() for text in (f"--{name.replace('_', '-')}", str(value))]
    eager = [] if on_gpu(options) else ["--enforce-eager"]
    arguments = [
        "-m", "vllm.entrypoints.openai.api_server", "--model", path, "--served-model-name", model, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", float_of(options), *eager, *cache,
    ]  # fmt: skip
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return arguments, quiet | {"VLLM_CPU_KVCACHE_SPACE": "", "VLLM_CPU_OMP_THREADS_BIND": cores_of(threads)}


def cores_of(threads: int) -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))


def memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def open_session(path: str, options: tuple[str, ...], threads: int) -> VllmSession:
    return VllmSession(path, options, threads)


class VllmSession:
    """See docs/architecture.md for the methods of a session."""

    def __init__(self, path: str, options: tuple[str, ...], threads: int) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores_of(threads)
        from vllm import LLM

        self.gpu = on_gpu(options)
        if self.gpu:
            torch_cuda.reset_memory()
        self.engine: Any = LLM(
            model=path,
            dtype=float_of(options),
            enforce_eager=not self.gpu,
            max_num_batched_tokens=STEP_TOKENS,
            max_num_seqs=MOST_ROWS,
            disable_log_stats=True,
            **settings_of(options),
        ).llm_engine
        self.runner = self.engine.model_executor.driver_worker.worker.model_runner
        self.model = self.runner.model
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.names: list[str] = []
        self.prompt: list[int] = []
        self.made = 0
        self.seen: list[tuple[list[str], Any]] = []
        inner = self.model.compute_logits

        def compute_logits(*arguments: Any, **more: Any) -> Any:
            logits = inner(*arguments, **more)
            self.seen.append((list(self.runner.input_batch.req_ids), logits))
            return logits

        self.model.compute_logits = compute_logits

    def prefill(self, tokens: Any, capacity: int) -> Any:
        if tokens.size > STEP_TOKENS:
            raise ValueError(f"{tokens.size} prompt tokens are more than one step takes: {STEP_TOKENS}")
        self._drop()
        self.prompt = tokens[0].tolist()
        self.names = [self._add(row.tolist(), capacity - len(row) + 1, self._salt()) for row in tokens]
        return self._step()

    def decode(self, tokens: Any) -> Any:
        return self._step()

    def fill(self, batch: int, capacity: int) -> None:
        """Each row's cache is really computed, under a salt of its own, and found again when all rows start together."""
        self._drop()
        steps = capacity - len(self.prompt) + 1
        salts = [self._salt() for _ in range(batch)]
        for salt in salts:
            self._add(self.prompt, 1, salt)
            while self.engine.has_unfinished_requests():
                self.engine.step()
        self.names = [self._add(self.prompt, steps, salt) for salt in salts]
        self._step()

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        import numpy as np

        self._drop()
        self.scheduler.max_num_scheduled_tokens = chunk or STEP_TOKENS
        self._add(tokens.tolist(), 1, self._salt(), prompt_logprobs=1)
        while self.engine.has_unfinished_requests():
            self.seen.clear()
            self.engine.step()
            last, *prompt = (logits.float().cpu().numpy() for _, logits in self.seen)
            if self.engine.has_unfinished_requests():
                last = last[:0]
            yield np.concatenate([*prompt, last])
        self.scheduler.max_num_scheduled_tokens = STEP_TOKENS

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        capacity = tokens.shape[1] + 16
        prefill = self._observe(lambda: self.prefill(tokens, capacity), rounds=2)
        if batch:
            self.fill(batch, capacity)
        return {"prefill": prefill, "decode": self._observe(self._step, rounds=5)}

    def allocated(self) -> tuple[int, int] | None:
        return torch_cuda.allocated() if self.gpu else None

    def close(self) -> None:
        """Gives the pool back: another engine may follow in this process."""
        self._drop()
        self.engine.engine_core.shutdown()

    def _add(self, prompt: list[int], output_tokens: int, salt: str, **more: Any) -> str:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=output_tokens, temperature=0, ignore_eos=True, detokenize=False, **more)
        self.made += 1
        name: str = self.engine.add_request(str(self.made), {"prompt_token_ids": prompt, "cache_salt": salt}, params)
        return name

    def _salt(self) -> str:
        """No two rows share cache blocks."""
        self.made += 1
        return f"row {self.made}"

    def _drop(self) -> None:
        self.engine.abort_request(self.names, internal=True)
        self.names = []

    def _step(self) -> Any:
        """One token more for every row: float32 [B, V], in the order of the rows."""
        self.seen.clear()
        self.engine.step()
        order, logits = self.seen[0]
        if sorted(order) != sorted(self.names):
            why = "its pool of cache blocks is too small"
            if len(self.names) > MOST_ROWS:
                why = f"its engine is started for {MOST_ROWS}"
            raise RuntimeError(f"vLLM stepped {len(order)} of {len(self.names)} rows: {why}")
        rows = logits[[order.index(name) for name in self.names]]
        return torch_cuda.Logits(rows) if self.gpu else rows.float().numpy()

    def _observe(self, run: Any, rounds: int) -> dict[str, Any]:
        seen = torch_cuda.observe(run, rounds, None) if self.gpu else self._observe_cpu(run, rounds)
        total, quantized, notes = linear_layers(self.model)
        stored = ", ".join(sorted({str(cache.dtype) for cache in self.runner.kv_caches}))
        asked = self.engine.vllm_config.cache_config.cache_dtype
        notes.append(f"cache stored as {stored} (kv_cache_dtype {asked})")
        return seen | {
            "linears": total,
            "quantized_linears": quantized,
            "cache": stored.removeprefix("torch.") if asked == "auto" else asked,
            "notes": [*notes, *seen.get("notes", [])],
        }

    def _observe_cpu(self, run: Any, rounds: int) -> dict[str, Any]:
        import torch

        walls = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            walls.append(time.perf_counter() - start)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        operators = operator_counts(profile)
        wall = sorted(walls)[len(walls) // 2]
        parts = {part: sum(o["time_s"] for o in operators if o["part"] == part) for part in ("linears", "attention", "cache")}
        for operator in operators:
            del operator["part"]
        return {
            "operators": operators,
            "wall_s": wall,
            "walls_s": walls,
            **{f"{part}_s": seconds for part, seconds in parts.items()},
            "other_s": wall - sum(parts.values()),
        }


def is_linear(module: Any) -> bool:
    return getattr(module, "quant_method", None) is not None and type(module).__name__ not in NO_LINEARS


NO_LINEARS = ("Attention", "VocabParallelEmbedding")
KERNELS = ("kernel", "fp8_linear")
"""Where a scheme of compressed-tensors, or the method of GPTQ, AWQ and FP8 folders, keeps the kernel that it chose."""


def linear_layers(model: Any) -> tuple[int, int, list[str]]:
    """(linears, quantized ones, what vLLM computes each kind with): by the classes it chose when it loaded them."""
    kinds: dict[str, int] = {}
    quantized = 0
    for module in model.modules():
        if not is_linear(module):
            continue
        method = module.quant_method
        scheme = getattr(module, "scheme", None)
        kernel = next((found for owner in (scheme, method) for key in KERNELS if (found := getattr(owner, key, None))), None)
        quantized += not any(base.__name__.startswith("Unquantized") for base in type(method).__mro__)
        name = " ".join(type(part).__name__ for part in (method, scheme, kernel) if part is not None)
        kinds[name] = kinds.get(name, 0) + 1
    return sum(kinds.values()), quantized, [f"{count} linears by {name}" for name, count in sorted(kinds.items())]


PARTS = {
    "linears": ("mm", "linear", "gemm"),
    "attention": ("attention", "attn"),
    "cache": ("reshape_and_cache",),
}
QUANTIZED = ("scaled_mm", "int8", "fp8", "wna16")
FOUR_BITS = ("int4", "wna16")
"""`int4_scaled_mm` where the CPU has AMX, `cpu_gemm_wna16` elsewhere, which takes no other width."""


def operator_counts(profile: Any) -> list[dict[str, Any]]:
    """All operators that ran, most expensive first; `part`: what of the step they are."""
    rows = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return [
        {
            "name": event.key,
            "count": event.count,
            "provider": "CPU",
            "precision": "int4"
            if any(mark in event.key for mark in FOUR_BITS)
            else "int8"
            if any(mark in event.key for mark in QUANTIZED)
            else "bfloat16",
            "time_s": event.self_cpu_time_total / 1e6,
            "linear": part_of(event.key) == "linears",
            "quantized": any(mark in event.key for mark in QUANTIZED),
            "part": part_of(event.key),
        }
        for event in rows
        if "::" in event.key
    ]


def part_of(name: str) -> str:
    stem = name.rsplit("::", 1)[-1]
    for part in ("cache", "attention", "linears"):
        if any(mark in stem for mark in PARTS[part]):
            return part
    return "other"
