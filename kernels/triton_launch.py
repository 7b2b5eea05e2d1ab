"""What the Triton kernels share: tiles, split-K, nibbles in pairs of groups, exact integers as floats, cases to compile.

Nothing here or in the other `triton_*` files ever ran on a GPU. What holds rests on the interpreter (numbers) and on code
compiled ahead of time (`triton_compile.py`); no speed is claimed. `@triton.jit` stands at module level, so these modules
load triton: import them inside functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import triton
import triton.language as tl

from .triton_tuning import Sizes, chosen

Tensor = Any
"""torch.Tensor; torch loads in functions only."""

LAUNCH = {"enable_fp_fusion": True}
"""Said aloud: triton 3.9 fuses a * b + c by default and later versions do not, and numbers shall not change with that."""
MOST_SPLITS = 16
MAGIC = tl.constexpr(0x4B000000)
"""Bits of 2^23 as float32, whose last mantissa bit is worth 1: or-ing in an integer below 2^23 adds it, exactly."""


@dataclass(frozen=True)
class Tile:
    """What one program computes, [m, n], with k codes a step; warps and pipeline stages."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3

    @property
    def label(self) -> str:
        return f"{self.m}x{self.n}x{self.k}-w{self.warps}-s{self.stages}"

    @property
    def launch(self) -> dict[str, Any]:
        return {"num_warps": self.warps, "num_stages": self.stages, **LAUNCH}


@dataclass(frozen=True)
class Case:
    """One compilation: the kernel as a launch specialises it, and the number type its matrix instruction must have."""

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    matrix: str | None
    """bf16, fp16, int8, fp8, several joined by "+", or None where nothing is multiplied."""
    unaligned: tuple[str, ...] = ()
    """Integers that need not be multiples of 16; all others must be, or the launch compiles another variant."""


def capability(x: Tensor) -> int:
    """90 for sm_90; 80 for a CPU tensor, which only the interpreter takes."""
    import torch

    if not x.is_cuda:
        return 80
    major, minor = torch.cuda.get_device_capability(x.device)
    return int(10 * major + minor)


COMPILED = {75: 80, 86: 89, 87: 80, 103: 100, 121: 120}
"""Where no code was compiled here: the target whose shared memory and instructions fit. Others stand for themselves."""


def target(x: Tensor) -> int:
    """The target whose tiles are taken on x's device."""
    return COMPILED.get(capability(x), capability(x))


def splits_of(processors: int, programs: int, steps: int) -> int:
    """Parts of K, so that a small M fills the GPU: two programs a multiprocessor, at least two steps a part."""
    return max(1, min(2 * processors // max(programs, 1), steps // 2, MOST_SPLITS))


Grid = tuple[int, int, int]
"""Tiles of N, tiles of M, parts of K"""


def planned(
    kernel: str, x: Tensor, sizes: Sizes, usual: Tile, tile: Tile | None, splits: int | None, *, halves: int = 1
) -> tuple[Tile, Grid]:
    """What a product is launched with: what the caller says, else what was timed best for it on x's device
    (`triton_tuning.py`), else the `usual` tile and as many parts as fill the GPU. A step takes halves * tile.k of K."""
    m, n, k = sizes
    best = chosen(kernel, sizes, x) if tile is None and splits is None else None
    tile, splits = best or (tile or usual, splits)
    tiles = triton.cdiv(n, tile.n), triton.cdiv(m, tile.m)
    return tile, (*tiles, splits or splits_of(processors(x), tiles[0] * tiles[1], triton.cdiv(k, halves * tile.k)))


def processors(x: Tensor) -> int:
    """Multiprocessors of x's device; 8 in the interpreter."""
    import torch

    return int(torch.cuda.get_device_properties(x.device).multi_processor_count) if x.is_cuda else 8


def check(*tensors: Tensor) -> None:
    """Refuse what the kernels' 32-bit offsets and unit strides would read wrongly."""
    for one in tensors:
        if one.numel() >= 1 << 31:
            raise ValueError(f"tensor {tuple(one.shape)} has 2^31 elements or more: offsets are 32 bits; split it")
        if not one.is_contiguous():
            raise ValueError(f"tensor {tuple(one.shape)} has strides {one.stride()}: call contiguous() first")


def sixteen_bit(x: Tensor) -> None:
    import torch

    if x.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"x is {x.dtype}; these kernels take float16 or bfloat16")


def pack_pairs(codes: Tensor, group: int) -> Tensor:
    """codes: uint8 [N, K] below 16 -> bytes [N, pairs * group], two groups a run of bytes: low nibbles 2p, high 2p + 1.

    Both halves of a byte then meet the same column of scales in two plain products, without moving nibbles between
    lanes. K is filled up with zero codes to whole pairs.
    """
    import torch

    n, k = codes.shape
    pairs = -(-k // (2 * group))
    full = torch.nn.functional.pad(codes, (0, pairs * 2 * group - k)).reshape(n, pairs, 2, group)
    return (full[:, :, 0] | (full[:, :, 1] << 4)).reshape(n, pairs * group).contiguous()


def pack_groups(values: Tensor, pairs: int) -> Tensor:
    """Scales or zero points: [N, groups] -> [2 * pairs, N], filled up with zeros."""
    import torch

    return torch.nn.functional.pad(values, (0, 2 * pairs - values.shape[1])).T.contiguous()


@triton.jit
def unsigned_float(q, zero, dtype: tl.constexpr):
    """q - zero for q: uint8 and zero: float32 integers below 256, without a convert instruction; exact in `dtype`."""
    biased = (q.to(tl.int32) | MAGIC).to(tl.float32, bitcast=True)
    return (biased - (8388608.0 + zero)).to(dtype)


@triton.jit
def signed_float(q, dtype: tl.constexpr):
    """q: int8 as `dtype`, exactly: the sign bit is flipped and 128 taken off again."""
    biased = ((q.to(tl.int32) + 128) | MAGIC).to(tl.float32, bitcast=True)
    return (biased - 8388736.0).to(dtype)


@triton.jit(do_not_specialize=["SIZE"])
def add_splits_kernel(partial, y, SIZE, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """partial: float32 [SPLITS, SIZE] -> y: [SIZE], always in the same order, so that results repeat."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial + split * SIZE + at, mask=at < SIZE, other=0.0)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=at < SIZE)


def output(x: Tensor, m: int, n: int, splits: int, dtype: Any) -> tuple[Tensor, Tensor]:
    """(y, where the kernel writes): y itself, or float32 [splits, M, N]; both within 32-bit offsets."""
    import torch

    y = torch.empty((m, n), dtype=dtype, device=x.device)
    written = y if splits == 1 else torch.empty((splits, m, n), dtype=torch.float32, device=x.device)
    check(written)
    return y, written


def finished(y: Tensor, written: Tensor, splits: int) -> Tensor:
    """y, with the parts of K summed."""
    if splits > 1 and y.numel():
        block = 1024
        add_splits_kernel[(-(-y.numel() // block),)](written, y, y.numel(), SPLITS=splits, BLOCK=block, **LAUNCH)
    return y


def in_fp16(case: Case) -> Case:
    """As it is launched for a model in float16."""
    signature = {name: kind.replace("bf16", "fp16") for name, kind in case.signature.items()}
    matrix = case.matrix and case.matrix.replace("bf16", "fp16")
    return replace(case, name=f"{case.name}-fp16", signature=signature, matrix=matrix)


def cases(sm: int) -> list[Case]:
    signature = {"partial": "*fp32", "y": "*bf16", "SIZE": "i32"}
    return [Case("launch/add-splits", add_splits_kernel, signature, {"SPLITS": 8, "BLOCK": 1024}, 4, 3, None, ("SIZE",))]
