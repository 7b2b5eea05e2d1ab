"""Other packages' kernels of the same kind, for `advisor selfcheck` to time beside ours where they are installed.

Written against the documented interfaces and never run on a GPU: what raises is reported with its reason and compared with
nothing. Packages are imported inside functions; packing and set-up happen in `prepare`, before anything is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

Tensor = Any
Call = Callable[[], Any]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rival:
    name: str
    package: str
    prepare: Callable[[Tensor, Tensor], Product]
    """(x [M, K], w [N, K] in 16 bits) -> its product with any such x; for attention (q [B, H, D], keys and values
    [2, B, HKV, S, D]) -> attention of any such q."""


def missing(rival: Rival) -> str | None:
    return None if importlib.util.find_spec(rival.package) else f"{rival.package} is not installed"


def rivals_of(kernel: str) -> tuple[Rival, ...]:
    """Of a kernel by its name in `advisor selfcheck`, which ends in its groups where it has some."""
    return RIVALS.get(kernel.partition("-")[0], ())


def prepared(kind: str, x: Tensor, w: Tensor) -> tuple[dict[str, Call], dict[str, str]]:
    """(what can be timed, why the others cannot), by name."""
    ready: dict[str, Call] = {}
    refused: dict[str, str] = {}
    for rival in RIVALS.get(kind, ()):
        if reason := missing(rival):
            refused[rival.name] = reason
            continue
        try:
            call = partial(rival.prepare(x, w), x)
            call()
            ready[rival.name] = call
        except Exception as error:  # another package's kernel: whatever it raises is its refusal
            text = str(error).strip() or type(error).__name__
            refused[rival.name] = f"{type(error).__name__}: {text.splitlines()[0][:200]}"
    return ready, refused


def _linear(w: Tensor) -> Any:
    import torch

    made = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, device=w.device, dtype=w.dtype)
    made.weight = torch.nn.Parameter(w.clone(), requires_grad=False)
    return made


def _torchao(name: str, **options: Any) -> Callable[[Tensor, Tensor], Product]:
    def prepare(x: Tensor, w: Tensor) -> Product:
        from torchao import quantization

        model = _linear(w)
        quantization.quantize_(model, getattr(quantization, name)(**options))
        return lambda x: model(x)

    return prepare


def _gemlite(name: str) -> Callable[[Tensor, Tensor], Product]:
    def prepare(x: Tensor, w: Tensor) -> Product:
        from gemlite import helper

        model = getattr(helper, name)(device=str(w.device)).from_linear(_linear(w))
        return lambda x: model(x)

    return prepare


def _bitsandbytes_nf4(x: Tensor, w: Tensor) -> Product:
    import bitsandbytes

    packed, state = bitsandbytes.functional.quantize_4bit(w, blocksize=64, quant_type="nf4")
    return lambda x: bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state)


def _bitsandbytes_int8(x: Tensor, w: Tensor) -> Product:
    import bitsandbytes
    import torch

    model = bitsandbytes.nn.Linear8bitLt(w.shape[1], w.shape[0], bias=False, has_fp16_weights=False, threshold=6.0)
    model.weight = bitsandbytes.nn.Int8Params(w.to("cpu", torch.float16), requires_grad=False, has_fp16_weights=False)
    model = model.to(w.device)
    return lambda x: model(x.to(torch.float16))


def _marlin(x: Tensor, w: Tensor) -> Product:
    from vllm.model_executor.layers.quantization.utils import marlin_utils, marlin_utils_test
    from vllm.scalar_type import scalar_types

    n, k = w.shape
    _, packed, scales = marlin_utils_test.marlin_quantize(w.T.contiguous(), scalar_types.uint4b8, 128)
    none = marlin_utils.marlin_make_empty_g_idx(w.device)
    workspace = marlin_utils.marlin_make_workspace_new(w.device)
    return lambda x: marlin_utils.apply_gptq_marlin_linear(x, packed, scales, none, workspace, scalar_types.uint4b8, n, k)


def _flashinfer(q: Tensor, cache: Tensor) -> Product:
    """Its batch decode over an FP8 cache, pages of 16 tokens, all sequences full."""
    import flashinfer
    import torch

    _, batch, hkv, tokens, dim = cache.shape
    pages = tokens // 16
    paged = cache[:, :, :, : pages * 16].reshape(2, batch, hkv, pages, 16, dim).permute(1, 3, 0, 4, 2, 5)
    paged = paged.reshape(batch * pages, 2, 16, hkv, dim).contiguous().to(torch.float8_e4m3fn)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(torch.empty(1 << 27, dtype=torch.uint8, device=q.device), "NHD")
    ends = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * pages
    places = torch.arange(batch * pages, dtype=torch.int32, device=q.device)
    last = torch.full((batch,), 16, dtype=torch.int32, device=q.device)
    wrapper.plan(ends, places, last, q.shape[1], hkv, dim, 16, q_data_type=q.dtype, kv_data_type=torch.float8_e4m3fn)
    return lambda q: wrapper.run(q, paged)


RIVALS: Mapping[str, tuple[Rival, ...]] = {
    "w4a16": (
        Rival("vLLM Marlin, group 128", "vllm", _marlin),
        Rival("torchao INT4 weight-only, group 64", "torchao", _torchao("Int4WeightOnlyConfig", group_size=64)),
    ),
    "w8a16": (
        Rival("torchao INT8 weight-only", "torchao", _torchao("Int8WeightOnlyConfig")),
        Rival("GemLite A16W8", "gemlite", _gemlite("A16W8")),
    ),
    "codebook": (Rival("bitsandbytes NF4, blocks of 64", "bitsandbytes", _bitsandbytes_nf4),),
    "w8a8": (
        Rival("torchao INT8 dynamic", "torchao", _torchao("Int8DynamicActivationInt8WeightConfig")),
        Rival("GemLite A8W8 INT8 dynamic", "gemlite", _gemlite("A8W8_int8_dynamic")),
    ),
    "fp8": (
        Rival("torchao FP8 dynamic", "torchao", _torchao("Float8DynamicActivationFloat8WeightConfig")),
        Rival("GemLite A8W8 FP8 dynamic", "gemlite", _gemlite("A8W8_fp8_dynamic")),
    ),
    "llm_int8": (Rival("bitsandbytes LLM.int8()", "bitsandbytes", _bitsandbytes_int8),),
    "attention": (Rival("FlashInfer decode, FP8 cache", "flashinfer", _flashinfer),),
}
