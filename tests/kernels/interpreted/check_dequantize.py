"""Dequantized weights, bit for bit: float64 products of integers and scales, rounded once to 16 bits."""

from itertools import product
from typing import Any

import pytest
import torch

from quantadvisor.kernels import triton_codebook, triton_dequantize, triton_w4a16

SHAPES = [(40, 192), (65, 200), (3, 72), (1, 31)]
HALF = [torch.bfloat16, torch.float16]


def grouped(values: torch.Tensor, group: int, k: int) -> torch.Tensor:
    """[N, groups] -> float64 [N, K]"""
    return values.double().repeat_interleave(group, 1)[:, :k]


def drawn(n: int, k: int, group: int, dtype: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(n + k + group)
    groups = -(-k // group)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    return codes, torch.randn(n, groups).div(16).to(dtype), torch.randint(0, 16, (n, groups), dtype=torch.uint8)


def rounded_once(exact: torch.Tensor, dtype: Any) -> torch.Tensor:
    """float64 -> dtype; the products here fit float32, through which torch goes."""
    assert torch.equal(exact.float().double(), exact)
    return exact.to(dtype)


@pytest.mark.parametrize(("group", "asymmetric"), list(product([32, 64, 128], [False, True])))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int4(shape: tuple[int, int], group: int, asymmetric: bool) -> None:
    dtype = HALF[shape[0] % 2]
    codes, scales, zeros = drawn(*shape, group, dtype)
    exact = (codes.double() - (grouped(zeros, group, shape[1]) if asymmetric else 8)) * grouped(scales, group, shape[1])
    packed = triton_w4a16.pack(codes, scales, zeros if asymmetric else None, group)
    assert torch.equal(triton_dequantize.dequantize_int4(*packed, group, shape[1]), rounded_once(exact, dtype))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codebook(shape: tuple[int, int], group: int) -> None:
    dtype = HALF[shape[0] % 2]
    codes, scales, _ = drawn(*shape, group, dtype)
    values = torch.tensor(triton_codebook.NF4)
    exact = values.to(dtype).double()[codes.long()] * grouped(scales, group, shape[1])
    packed = triton_codebook.pack(codes, scales, group)
    found = triton_dequantize.dequantize_codebook(packed[0], values, packed[1], group, shape[1])
    assert torch.equal(found, rounded_once(exact, dtype))


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8(shape: tuple[int, int], group: int) -> None:
    n, k = shape
    dtype = HALF[n % 2]
    _, scales, _ = drawn(n, k, group or k, dtype)
    w = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    exact = w.double() * grouped(scales, group or k, k)
    assert torch.equal(triton_dequantize.dequantize_int8(w, scales.T.contiguous(), group), rounded_once(exact, dtype))


def written(kind: str, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """codes: [N, K] by that kernel, in groups of 32, "int8-channel" with the first scale of each row."""
    k = codes.shape[1]
    if kind == "codebook":
        packed, rows = triton_codebook.pack(codes, scales, 32)
        return triton_dequantize.dequantize_codebook(packed, torch.tensor(triton_codebook.NF4), rows, 32, k)
    if kind.startswith("int8"):
        rows, group = (scales[:, :1], 0) if kind == "int8-channel" else (scales, 32)
        return triton_dequantize.dequantize_int8(codes.to(torch.int8), rows.T.contiguous(), group)
    packed = triton_w4a16.pack(codes, scales, zeros if kind == "int4-asymmetric" else None, 32)
    return triton_dequantize.dequantize_int4(*packed, 32, k)


KINDS = ["int4", "int4-asymmetric", "codebook", "int8", "int8-channel"]
BAD = {"inf": torch.isposinf, "-inf": torch.isneginf, "nan": torch.isnan}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_is_no_number_spoils_its_group_alone(kind: str, bad: str) -> None:
    codes, scales, zeros = drawn(4, 128, 32, torch.bfloat16)
    codes[:], zeros[:] = 9, 3
    group = 0 if kind == "int8-channel" else 1
    scales[2, group] = float(bad)
    found = written(kind, codes, scales, zeros)
    spoilt = torch.zeros(4, 128, dtype=torch.bool)
    spoilt[2, slice(None) if kind == "int8-channel" else slice(32, 64)] = True
    assert torch.equal(BAD[bad](found), spoilt)
    assert torch.equal(found.isfinite(), ~spoilt)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_rows(kind: str) -> None:
    assert written(kind, *drawn(0, 64, 32, torch.bfloat16)).shape == (0, 64)


def test_misfits_are_refused() -> None:
    codes, scales, _ = drawn(8, 128, 32, torch.bfloat16)
    w, s, _ = triton_w4a16.pack(codes, scales, None, 32)
    with pytest.raises(ValueError, match="do not fit K = 200"):
        triton_dequantize.dequantize_int4(w, s, None, 32, 200)
    with pytest.raises(TypeError, match="float16 or bfloat16"):
        triton_dequantize.dequantize_int4(w, s.float(), None, 32, 128)
    with pytest.raises(ValueError, match="16 float32 values"):
        triton_dequantize.dequantize_codebook(w, torch.ones(8), s, 32, 128)
