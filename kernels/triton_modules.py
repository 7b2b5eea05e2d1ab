"""The Triton kernels as transformers takes them: linears of a quantized checkpoint, an attention, a static cache.

`linear_of` reads compressed-tensors, `int-quantized` (W8A8), `float-quantized` (FP8 W8A8) and `pack-quantized` (4 bits in groups;
8 in groups or per channel, symmetric), GPTQ's INT4, and bitsandbytes' NF4 and INT8 (LLM.int8()).
`Layer` is one layer of a transformers `Cache`: buffers for `capacity` tokens, written at `Places`, which live on the device, so
that a CUDA graph of a decode step holds. A first prefill attends its own fresh keys; all else reads what is stored.
`attention` is registered with transformers' AttentionInterface under NAME. Nothing of this ever ran on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from . import bitsandbytes_nf4
from .rivals import Integers

if TYPE_CHECKING:
    from .triton_decode_attention import Cached

Tensor = Any
NAME = "quantadvisor_triton"
CACHES = {"kvint8": "int8", "kvint4": "int4", "kvfp8": "fp8", "kvturbo": "turbo"}
"""Option -> format of the cache; none of them: 16 bits."""
SCHEMES = ("int-quantized", "float-quantized", "pack-quantized")
BITSANDBYTES, GPTQ = "bitsandbytes", "gptq"
MARKS = (".weight_scale", ".qweight", ".SCB", ".weight.quant_map")
"""Ends of the names of tensors that quantized linears alone have: compressed-tensors, GPTQ, bitsandbytes' INT8 and 4 bits."""


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint with that `quantization_config` has no kernel here; None: it has. An empty one is 16 bits."""
    if not config:
        return None
    method = config.get("quant_method")
    if method in UNREADABLE:
        return UNREADABLE[method](config)
    if method != "compressed-tensors":
        mend = ": advisor convert FOLDER --format gptq" if method == "awq" else ""
        return f"quantized by {method!r}; the triton runtime reads compressed-tensors, {' and '.join(UNREADABLE)}{mend}"
    if config.get("format") not in SCHEMES:
        return f"compressed-tensors format {config.get('format')!r}; the triton runtime reads {', '.join(SCHEMES)}"
    groups = list(config.get("config_groups", {}).values())
    if config["format"] == "pack-quantized" and len({packing(one["weights"]) for one in groups}) > 1:
        return "weights of several widths or group sizes; one for all linears is read"
    for group in groups:
        weights, inputs = group["weights"], group.get("input_activations")
        if config["format"] == "pack-quantized":
            if reason := unpackable(weights):
                return reason
        elif not weights.get("symmetric", True):
            return "asymmetric 8-bit weights; the triton runtime reads symmetric ones"
        elif not (
            weights.get("strategy") == "channel" and inputs and inputs.get("dynamic") and inputs.get("strategy") == "token"
        ):
            return "8-bit weights are read per channel, with activations per token and dynamic"
    return None


def packing(weights: Mapping[str, Any]) -> tuple[int, int]:
    """(bits, group size, 0 per channel) of packed weights."""
    return int(weights["num_bits"]), 0 if weights.get("strategy") == "channel" else int(weights.get("group_size") or 0)


def unpackable(weights: Mapping[str, Any]) -> str | None:
    """Why packed weights have no kernel here."""
    bits, group = packing(weights)
    if bits == 8 and not weights.get("symmetric", True):
        return "asymmetric 8-bit weights; the triton runtime reads symmetric ones"
    if bits not in (4, 8) or (group not in (32, 64, 128) and not (bits == 8 and weights.get("strategy") == "channel")):
        return f"{bits} bits in groups of {group or None}; INT4 in 32, 64 or 128 is read, INT8 also per channel"
    return None


def gptq_unreadable(config: Mapping[str, Any]) -> str | None:
    bits, group = config.get("bits"), config.get("group_size")
    if config.get("desc_act"):
        return "columns in act-order; our kernel takes groups of neighbours"
    return None if bits == 4 and group in (32, 64, 128) else f"{bits} bits in groups of {group}; INT4 in 32, 64 or 128 is read"


def bitsandbytes_unreadable(config: Mapping[str, Any]) -> str | None:
    if config.get("load_in_8bit"):
        from .triton_llm_int8 import THRESHOLD

        threshold = float(config.get("llm_int8_threshold", THRESHOLD))
        return None if threshold == THRESHOLD else f"outliers from {threshold:g} on; our kernel takes them from {THRESHOLD:g}"
    kind, storage = config.get("bnb_4bit_quant_type", "fp4"), config.get("bnb_4bit_quant_storage", "uint8")
    return None if (kind, storage) == ("nf4", "uint8") else f"bitsandbytes' {kind} in {storage}; NF4 in bytes is read, and INT8"


UNREADABLE: Mapping[Any, Callable[[Mapping[str, Any]], str | None]] = {
    GPTQ: gptq_unreadable,
    BITSANDBYTES: bitsandbytes_unreadable,
}
"""quant_method -> why one of its checkpoints has no kernel here."""


def needed(config: Mapping[str, Any], options: tuple[str, ...]) -> list[str]:
    """Names, as `triton_subjects.py` has them, of the kernels that a checkpoint and a cache take."""
    found = [f"decode-attention-{CACHES[one]}" for one in options]
    if config.get("quant_method") == BITSANDBYTES:
        return [LLM_INT8 if config.get("load_in_8bit") else NF4, *found]
    if config.get("quant_method") == GPTQ:
        return [int4(config["group_size"], symmetric=bool(config.get("sym"))), *found]
    if config.get("format") == "pack-quantized":
        weights = [one["weights"] for one in config["config_groups"].values()]
        kinds = {f"{weight_only(*packing(one))}{'' if one.get('symmetric', True) else '-asymmetric'}" for one in weights}
        return [*sorted(kinds), *found]
    return [*({"int-quantized": ["w8a8"], "float-quantized": ["fp8"]}.get(config.get("format", ""), [])), *found]


LLM_INT8, NF4 = "llm-int8", "codebook-nf4"
"""Kernels' names in `advisor selfcheck`."""


def weight_only(bits: int, group: int) -> str:
    """The kernel's name in `advisor selfcheck`."""
    return f"w{bits}a16-g{group}" if group else f"w{bits}a16"


def int4(group: int, *, symmetric: bool) -> str:
    return f"{weight_only(4, group)}{'' if symmetric else '-asymmetric'}"


@dataclass(frozen=True)
class Made:
    """One of our products on a linear's stored weights w: [N, K]."""

    run: Callable[[Tensor], Tensor]
    kernel: str
    name: str
    """In `advisor selfcheck`."""
    sizes: tuple[int, int]
    problem: tuple[str, int, int] | None
    """What its configuration is timed as on a new GPU: name, N, K; None where there is the static choice alone."""
    dense: Callable[[], Tensor]
    """w in bfloat16, for another package's quantizer."""
    integers: Integers | None = None
    """INT4 as stored, for a package that takes it."""


def linear_of(tensors: Mapping[str, Tensor], config: Mapping[str, Any], bias: Tensor | None, dtype: Any) -> Any:
    """tensors: of one linear, by their names behind its own; `config`: the checkpoint's `quantization_config`, which `refusal`
    passes; `dtype`: the model's. ValueError for what only the tensors show to have no kernel."""
    import torch

    class Linear(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """y = x @ w.T + bias; x: [..., K]. `products`: M -> what computes about there; ours, or what `triton_products` took."""

        def __init__(self, made: Made) -> None:
            super().__init__()
            self.kernel, self.name, self.sizes, self.problem, self.dense, self.integers = (
                made.kernel, made.name, made.sizes, made.problem, made.dense, made.integers,
            )  # fmt: skip
            self.products = {1: made.run}

        def product(self, rows: int) -> Callable[[Tensor], Tensor]:
            """That of the nearest M, by their ratio."""
            return self.products[min(self.products, key=lambda m: max(m / rows, rows / m))]

        def forward(self, x: Tensor) -> Tensor:
            flat = x.reshape(-1, x.shape[-1]).contiguous()
            y = self.product(len(flat))(flat)
            y = y.reshape(*x.shape[:-1], y.shape[-1])
            return y if bias is None else y + bias

    return Linear(_made(tensors, config, dtype))


def _made(tensors: Mapping[str, Tensor], config: Mapping[str, Any], dtype: Any) -> Made:
    import torch

    from . import triton_w8a8, triton_w8a16

    if config["quant_method"] == BITSANDBYTES:
        return _llm_int8(tensors) if config.get("load_in_8bit") else _nf4(tensors, dtype)
    if config["quant_method"] == GPTQ:
        return _int4(gptq_integers(tensors, config), dtype)
    if config["format"] != "pack-quantized":
        weight = tensors["weight"].contiguous()
        row_scales = tensors["weight_scale"].float().reshape(-1).contiguous()
        kind = "w8a8" if weight.dtype == torch.int8 else "fp8"
        return Made(
            lambda x: triton_w8a8.w8a8(*triton_w8a8.quantize(x, weight.dtype), weight, row_scales, x.dtype),
            kind, kind, tuple(weight.shape), (kind, *weight.shape),
            lambda: (weight.float() * row_scales[:, None]).to(torch.bfloat16),
        )  # fmt: skip
    bits, group = packing(next(iter(config["config_groups"].values()))["weights"])
    codes, scales = unpacked(tensors["weight_packed"], bits), tensors["weight_scale"]
    if bits == 8:
        codes, name = codes[:, : int(tensors["weight_shape"][1])], weight_only(bits, group)
        signed, columns = (codes.to(torch.int16) - 128).to(torch.int8).contiguous(), exactly(scales, dtype).T.contiguous()
        return Made(
            lambda x: triton_w8a16.w8a16(x, signed, columns, group),
            "w8a16", name, tuple(signed.shape), (f"w8a16-g{group}", *signed.shape), lambda: spread(signed.float(), scales, group),
        )  # fmt: skip
    words = tensors.get("weight_zero_point")
    zeros = None if words is None else unpacked(words.T)[:, : len(codes)].T.contiguous()
    return _int4(Integers(codes, scales, zeros, group), dtype)


def _int4(given: Integers, dtype: Any) -> Made:
    import torch

    from . import triton_w4a16

    w, rows, zeros = triton_w4a16.pack(given.codes, exactly(given.scales, dtype), given.zeros, given.group)
    (n, k), name = given.codes.shape, int4(given.group, symmetric=given.zeros is None)
    return Made(
        lambda x: triton_w4a16.w4a16(x, w, rows, zeros, given.group),
        "w4a16", name, (n, k), (f"w4a16-g{given.group}", n, k), lambda: given.values().to(torch.bfloat16), given,
    )  # fmt: skip


def exactly(scales: Tensor, dtype: Any) -> Tensor:
    """In the model's type, as kernels are compiled, unless that would round them: they read any."""
    import torch

    same = scales.to(dtype)
    return same if torch.equal(same.to(scales.dtype), scales) else scales


def gptq_integers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Integers:
    """GPTQ's INT4, as methods/formats/gptq.py has its layout; ValueError for act-order, and zero points other than 8 where the
    checkpoint says that it is symmetric."""
    import torch

    group = int(config["group_size"])
    codes, zeros = unpacked(tensors["qweight"].T), unpacked(tensors["qzeros"])[:, : tensors["qweight"].shape[1]].T
    if (config.get("checkpoint_format") or config.get("format")) != "gptq_v2":
        zeros = (zeros + 1) & 15
    places = tensors.get("g_idx")
    if places is not None and not torch.equal(places.long(), torch.arange(codes.shape[1], device=codes.device) // group):
        raise ValueError("GPTQ with columns in act-order; groups of neighbours are read")
    if config.get("sym") and not bool((zeros == 8).all()):
        raise ValueError("GPTQ that says it is symmetric, with zero points other than 8")
    return Integers(codes, tensors["scales"].T.contiguous(), None if config.get("sym") else zeros.contiguous(), group)


def _llm_int8(tensors: Mapping[str, Tensor]) -> Made:
    """bitsandbytes' INT8: SCB is max|w| of each row. ValueError for rows that lie in another order."""
    from . import triton_llm_int8

    if "weight_format" in tensors and int(tensors["weight_format"]):
        raise ValueError("INT8 weights in a layout of one GPU; rows as they are (weight_format 0) are read")
    weight, scales = tensors["weight"].contiguous(), (tensors["SCB"].float() / 127).contiguous()
    return Made(
        lambda x: triton_llm_int8.llm_int8(triton_llm_int8.decompose(x), weight, scales),
        LLM_INT8, LLM_INT8, tuple(weight.shape), None, lambda: spread(weight.float(), scales[:, None], 0),
    )  # fmt: skip


def _nf4(tensors: Mapping[str, Tensor], dtype: Any) -> Made:
    """ValueError where its flat blocks are not whole ones of each row, of a size that is compiled."""
    import torch

    from . import triton_codebook

    device, book = tensors["weight"].device, tensors["weight.quant_map"].float()
    found = bitsandbytes_nf4.restored({name: one.cpu().numpy() for name, one in tensors.items()})
    (n, k), block = found.codes.shape, found.codes.size // len(found.absmax)
    if block not in (32, 64, 128) or k % block:
        raise ValueError(f"NF4 in blocks of {block} over rows of {k}; whole ones of 32, 64 or 128 are read")
    codes, absmax = torch.from_numpy(found.codes).to(device), torch.from_numpy(found.absmax).reshape(n, -1).to(device)
    w, rows = triton_codebook.pack(codes, absmax.to(dtype), block)
    return Made(
        lambda x: triton_codebook.codebook_product(x, w, book, rows, block),
        "codebook", NF4, (n, k), None, lambda: spread(book[codes.long()], absmax, block),
    )  # fmt: skip


def spread(w: Tensor, scales: Tensor, group: int) -> Tensor:
    """w: float32 [N, K] in units of scales [N, groups] (`group` 0: a scale a channel) -> bfloat16"""
    import torch

    each = scales.float().repeat_interleave(group or w.shape[1], 1)[:, : w.shape[1]]
    return (w * each).to(torch.bfloat16)


def unpacked(packed: Tensor, bits: int = 4) -> Tensor:
    """int32 [N, K bits / 32], codes from the lowest bits up -> uint8 [N, K], half of their range standing for zero."""
    import torch

    shifts = torch.arange(0, 32, bits, device=packed.device)
    codes = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.reshape(len(packed), -1).to(torch.uint8)


@dataclass
class Places:
    """Where this step writes, on the device: int64 [q] along the tokens, and int32 [B], tokens held after it."""

    at: Tensor
    lengths: Tensor
    fresh: bool = False
    """The first tokens of a sequence: they attend what they bring."""
    seen: int = 0
    """Tokens held after the step, as the host knows them; a decode step in a graph does not look."""


@dataclass(frozen=True)
class Stored:
    """What a layer's cache gives to `attention` in place of a tensor."""

    cached: Cached
    places: Places


def layer_of(kind: str, places: Places, batch: int, capacity: int) -> Any:
    """One layer of a transformers Cache; kind: "16 bit" or a format of `triton_decode_attention`."""
    from transformers.cache_utils import CacheLayerMixin

    class Layer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
        """keys and values: `Cached` with buffers of `capacity` tokens, or plain 16-bit buffers."""

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            self.keys, self.values = (room(kind, one, batch, capacity) for one in (key_states, value_states))
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            for held, new in ((self.keys, key_states), (self.values, value_states)):
                for buffer, piece in zip(parts(held), parts(quantized(kind, new, held)), strict=True):
                    buffer.index_copy_(2, places.at, piece)
            if places.fresh:
                return key_states, value_states
            return Stored(self.keys, places), Stored(self.values, places)

        def repeat(self, times: int) -> None:
            """Every row gets a copy of its own."""
            self.keys, self.values = (
                with_parts(one, [p.repeat_interleave(times, 0) for p in parts(one)]) for one in (self.keys, self.values)
            )

        def get_seq_length(self) -> int:
            return places.seen

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return places.seen + query_length, 0

        def get_max_cache_shape(self) -> int:
            return capacity

    return Layer()


def quantized(kind: str, x: Tensor, like: Any) -> Any:
    """x: [B, H, q, D] as the cache stores it; `like` brings the tables of turbo."""
    from . import triton_decode_attention as kernel

    if kind == "16 bit":
        return x
    if kind == "turbo":
        return kernel.quantize_turbo(x, like.codebook, like.turn)
    return {"int8": kernel.quantize_int8, "int4": kernel.quantize_int4, "fp8": kernel.quantize_fp8}[kind](x)


def room(kind: str, x: Tensor, batch: int, capacity: int) -> Any:
    """Empty buffers for keys or values like x: [B, H, q, D]."""
    import torch

    from .triton_decode_attention import Cached
    from .turbo_tables import codebook, rotation

    like = None
    if kind == "turbo":
        tables = (torch.from_numpy(codebook(4)).float(), rotation(x.shape[-1]))
        like = Cached("turbo", x, x, codebook=tables[0].to(x.device), turn=tables[1].to(x.device))
    one = quantized(kind, x[:, :, :1], like)
    sizes = [(batch, part.shape[1], capacity, *part.shape[3:]) for part in parts(one)]
    return with_parts(one, [part.new_zeros(size) for part, size in zip(parts(one), sizes, strict=True)])


def parts(one: Any) -> list[Tensor]:
    """The tensors [B, H, tokens, …] of a cache, FP8 as bytes, which more of torch can move; turbo's tables are not among them."""
    import torch

    if not hasattr(one, "codes"):
        return [one]
    if one.format == "fp8":
        return [one.codes.view(torch.uint8)]
    return [one.codes, one.scales, *([] if one.zeros is None else [one.zeros])]


def with_parts(one: Any, new: list[Tensor]) -> Any:
    """The cache with other tensors in their places."""
    import torch

    if not hasattr(one, "codes"):
        return new[0]
    if one.format == "fp8":
        return replace(one, codes=new[0].view(torch.float8_e4m3fn))
    return replace(one, **dict(zip(("codes", "scales", "zeros"), new, strict=False)))


def unlike(config: Mapping[str, Any]) -> str | None:
    """Why a model with that `config.json` attends otherwise than `attention` does, to every token before; None: it does not."""
    other = sorted({*(config.get("layer_types") or ())} - {"full_attention"})
    window = config.get("sliding_window") if config.get("use_sliding_window") is not False else None
    found = f"layers of {other[0]}" if other else ""
    if not found and not config.get("layer_types") and window:
        found = f"a sliding window of {window} tokens"
    if not found and config.get("attn_logit_softcapping"):
        found = "a soft cap of its scores"
    return f"the triton runtime attends to every token before, and this model has {found}" if found else None


def attention(
    module: Any, query: Tensor, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, HQ, q, D] -> [B, q, HQ, D]."""
    import torch

    from . import triton_decode_attention as kernel

    sdpa = torch.nn.functional.scaled_dot_product_attention
    if not isinstance(key, Stored):
        fresh = sdpa(query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=True)
        return fresh.transpose(1, 2), None
    places, held_keys, held_values = key.places, key.cached, value.cached
    if hasattr(held_keys, "codes") and query.shape[2] == 1:
        found = kernel.decode_attention(query[:, :, 0].contiguous(), held_keys, held_values, places.lengths, scaling=scaling)
        return found[:, None], None
    keys, values = (plain(one, query.dtype) for one in (held_keys, held_values))
    reach = torch.arange(keys.shape[2], device=query.device)[None, :] <= places.at[:, None]
    return sdpa(query, keys, values, attn_mask=reach, scale=scaling, enable_gqa=True).transpose(1, 2), None


def plain(one: Any, dtype: Any) -> Tensor:
    """A stored cache in 16 bits: what a chunk of several tokens reads, through torch."""
    from . import triton_decode_attention as kernel

    if not hasattr(one, "codes"):
        return one
    exact = kernel.dequantized(one, dtype).to(one.scales.dtype)
    return cast(Tensor, exact if one.turn is None else exact @ one.turn).to(dtype)
