"""Other packages' kernels of the same kind, for `advisor selfcheck` to time beside ours where they are installed.

Written against the documented interfaces and never run on a GPU: what raises is reported with its reason and compared with
nothing. Packages are imported inside functions; packing and set-up happen in `prepare`, before anything is timed.
A package that quantizes by itself takes 16-bit weights; one that takes INT4 in groups gets our very integers, and is held to
their product.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import timing_cache

Tensor = Any
Call = Callable[[], Any]
Product = Callable[[Tensor], Tensor]
SAME = 2.0**-7
"""Largest |theirs - ours| / |ours| (Frobenius): twice the rounding of bfloat16 to either side; other codes are off by more."""


@dataclass(frozen=True)
class Integers:
    """INT4 weights in groups along K: codes uint8 [N, K] below 16, scales [N, groups] in 16 bits, zero points uint8
    [N, groups], or None where all are 8."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int

    def values(self) -> Tensor:
        """float32 [N, K]: what they stand for, exactly."""
        middle = 8.0 if self.zeros is None else self._spread(self.zeros)
        return (self.codes.float() - middle) * self._spread(self.scales)

    def _spread(self, one: Tensor) -> Tensor:
        return one.float().repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]


@dataclass(frozen=True)
class Rival:
    name: str
    package: str
    prepare: Callable[[Tensor, Any], Product]
    """(x [M, K], w [N, K] in 16 bits) -> its product with any such x; for attention (q [B, H, D], keys and values
    [2, B, HKV, S, D]) -> attention of any such q."""
    of_integers: bool = False
    """`prepare` takes our `Integers` in w's place."""


def missing(rival: Rival, python: str = sys.executable) -> str | None:
    """Why an interpreter does not have the package."""
    if python != sys.executable:
        return None if timing_cache.versions(rival.package, python) else f"{rival.package} is not installed in {python}"
    return None if importlib.util.find_spec(rival.package) else f"{rival.package} is not installed"


def rivals_of(kernel: str) -> tuple[Rival, ...]:
    """Of a kernel by its name in `advisor selfcheck`, which may end in its groups."""
    return RIVALS.get(kernel) or RIVALS.get(kernel.partition("-")[0], ())


def prepared(
    kind: str, x: Tensor, w: Tensor, integers: Integers | None = None, package: str | None = None
) -> tuple[dict[str, Call], dict[str, str]]:
    """(what can be timed, why the others cannot), by name; of one `package` alone where it is given."""
    ready: dict[str, Call] = {}
    refused: dict[str, str] = {}
    for rival in RIVALS.get(kind, ()):
        if package not in (None, rival.package):
            continue
        if reason := missing(rival):
            refused[rival.name] = reason
            continue
        try:
            call = partial(product_of(rival, x, w, integers), x)
            call()
            ready[rival.name] = call
        except Exception as error:  # another package's kernel: whatever it raises is its refusal
            text = str(error).strip() or type(error).__name__
            refused[rival.name] = f"{type(error).__name__}: {text.splitlines()[0][:200]}"
    return ready, refused


def product_of(rival: Rival, x: Tensor, w: Tensor, integers: Integers | None) -> Product:
    """Its product with any such x; ValueError where it takes integers and there are none, or their product is another one."""
    if not rival.of_integers:
        return rival.prepare(x, w)
    if integers is None:
        raise ValueError("it takes INT4 weights in groups")
    product = rival.prepare(x, integers)
    if (off := distance(product(x), x.float() @ integers.values().T)) > SAME:
        raise ValueError(f"its product of the same integers is off by {off:.2g}, more than {SAME:.2g}")
    return product


def distance(found: Tensor, true: Tensor) -> float:
    """|found - true| / |true| (Frobenius); infinite where it is no number, or of another shape."""
    if found.shape != true.shape:
        return math.inf
    off = float((found.float() - true.float()).norm() / true.float().norm())
    return off if math.isfinite(off) else math.inf


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


def _gemlite_int4(x: Tensor, w: Integers) -> Product:
    """Its A16Wn takes codes as HQQ has them: (code - zero) * scale, zeros in the type of the scales."""
    import torch
    from gemlite import helper

    scales = w.scales.to(x.dtype)
    zeros = torch.full_like(scales, 8) if w.zeros is None else w.zeros.to(x.dtype)
    model = helper.A16Wn(device=str(x.device)).from_weights(w.codes, scales, zeros, 4, w.group)
    return lambda x: model(x)


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


def _marlin(x: Tensor, w: Integers) -> Product:
    """As vLLM's own MarlinLinearKernel prepares a layer (model_executor/kernels/linear/mixed_precision/marlin.py): codes in
    GPTQ's layout, int32 [K / 8, N] with the lowest bits first along K, filled up to whole tiles."""
    import torch
    from vllm import _custom_ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.scalar_type import scalar_types

    (n, k), group = w.codes.shape, w.group
    number = scalar_types.uint4b8 if w.zeros is None else scalar_types.uint4
    marlin_utils.verify_marlin_supported(number, group, has_zp=w.zeros is not None)
    if k % group:
        raise ValueError(f"groups of {group} do not divide K = {k}")
    wide, deep = marlin_utils.marlin_padded_nk(n, k, group)
    shifts = torch.arange(0, 32, 4, device=x.device)
    words = (w.codes.T.reshape(k // 8, 8, n).long() << shifts[:, None]).sum(1)
    gptq = (words - ((words >> 31) << 32)).to(torch.int32)  # the word's own top bit is its sign
    packed = _custom_ops.gptq_marlin_repack(
        marlin_utils.marlin_pad_qweight(gptq, n, k, wide, deep), size_k=deep, size_n=wide, num_bits=4
    )

    def padded(one: Tensor) -> Tensor:
        return marlin_utils.marlin_pad_scales(one.T.contiguous(), n, k, wide, deep, group)

    scales = marlin_utils.marlin_permute_scales(padded(w.scales.to(x.dtype)), size_k=deep, size_n=wide, group_size=group)
    if w.zeros is None:
        zeros = marlin_utils.marlin_make_empty(x.device)
    else:
        zeros = marlin_utils.marlin_zero_points(padded(w.zeros.int()), size_k=deep // group, size_n=wide, num_bits=4)
    return partial(
        marlin_utils.apply_gptq_marlin_linear, weight=packed, weight_scale=scales, weight_zp=zeros, workspace=None,
        wtype=number, output_size_per_partition=n, input_size_per_partition=k,
    )  # fmt: skip


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


MARLIN = "vLLM Marlin, our integers"
GEMLITE = "GemLite A16W4, our integers"
RIVALS: Mapping[str, tuple[Rival, ...]] = {
    "w4a16": (
        Rival(MARLIN, "vllm", _marlin, of_integers=True),
        Rival("torchao INT4 weight-only, group 64", "torchao", _torchao("Int4WeightOnlyConfig", group_size=64)),
        Rival(GEMLITE, "gemlite", _gemlite_int4, of_integers=True),
    ),
    "w8a16": (
        Rival("torchao INT8 weight-only", "torchao", _torchao("Int8WeightOnlyConfig")),
        Rival("GemLite A16W8", "gemlite", _gemlite("A16W8")),
    ),
    "codebook-nf4": (Rival("bitsandbytes NF4, blocks of 64", "bitsandbytes", _bitsandbytes_nf4),),
    "w8a8": (
        Rival("torchao INT8 dynamic", "torchao", _torchao("Int8DynamicActivationInt8WeightConfig")),
        Rival("GemLite A8W8 INT8 dynamic", "gemlite", _gemlite("A8W8_int8_dynamic")),
    ),
    "fp8": (
        Rival("torchao FP8 dynamic", "torchao", _torchao("Float8DynamicActivationFloat8WeightConfig")),
        Rival("GemLite A8W8 FP8 dynamic", "gemlite", _gemlite("A8W8_fp8_dynamic")),
    ),
    "llm-int8": (Rival("bitsandbytes LLM.int8()", "bitsandbytes", _bitsandbytes_int8),),
    "attention": (Rival("FlashInfer decode, FP8 cache", "flashinfer", _flashinfer),),
}
