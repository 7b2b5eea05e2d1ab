"""Every product kernel against float64, over odd shapes, all group sizes, tails, splits and what is not a number.

Inputs are exact in their own formats, so the bound of `close` holds: float32 sums and the rounding of the output.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from quantadvisor.kernels import triton_codebook, triton_w4a16, triton_w8a8, triton_w8a16
from quantadvisor.kernels.triton_launch import Tile, pack_pairs

SHAPES = [(1, 40, 192), (17, 33, 200), (5, 65, 72)]
GROUPS = [32, 64, 128]
HALF = [torch.bfloat16, torch.float16]
Close = Callable[..., None]
# The interpreter computes with numpy, which warns of NaN and infinities; the checks that plant them look at the results.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def grouped(scales: torch.Tensor, group: int, k: int) -> torch.Tensor:
    """[N, groups] -> [N, K]"""
    return scales.repeat_interleave(group, 1)[:, :k]


def drawn(m: int, n: int, k: int, group: int, dtype: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, codes below 16, scales and zero points."""
    torch.manual_seed(m + n + k + group)
    groups = -(-k // group)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    scales = (torch.rand(n, groups) + 0.5).div(16).to(dtype)
    return torch.randn(m, k).to(dtype), codes, scales, torch.randint(0, 16, (n, groups), dtype=torch.uint8)


def exact(close: Close, found: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> None:
    close(found, x.double() @ w.double().T, x.double().abs() @ w.double().abs().T, x.shape[1])


@pytest.mark.parametrize(("group", "asymmetric", "splits"), list(product(GROUPS, [False, True], [1, 3])))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w4a16(close: Close, shape: tuple[int, int, int], group: int, asymmetric: bool, splits: int) -> None:
    m, n, k = shape
    x, codes, scales, zeros = drawn(m, n, k, group, HALF[m % 2])
    w = (codes.double() - (grouped(zeros.double(), group, k) if asymmetric else 8)) * grouped(scales.double(), group, k)
    packed = triton_w4a16.pack(codes, scales, zeros if asymmetric else None, group)
    found = triton_w4a16.w4a16(x, *packed, group, splits=splits, tile=Tile(16, 64, group))
    exact(close, found, x, w)


@pytest.mark.parametrize("dtype", HALF)
def test_w4a16_in_both_types_with_its_own_tile(close: Close, dtype: Any) -> None:
    x, codes, scales, _ = drawn(61, 130, 256, 64, dtype)
    found = triton_w4a16.w4a16(x, *triton_w4a16.pack(codes, scales, None, 64), 64)
    exact(close, found, x, (codes.double() - 8) * grouped(scales.double(), 64, 256))


def test_nibbles_lie_in_pairs_of_groups() -> None:
    codes = torch.arange(2 * 48, dtype=torch.uint8).reshape(2, 48) % 16
    bytes_ = pack_pairs(codes, 32)
    assert bytes_.shape == (2, 32)
    assert torch.equal(bytes_ & 15, codes[:, :32])
    assert torch.equal(bytes_[:, :16] >> 4, codes[:, 32:])
    assert not (bytes_[:, 16:] >> 4).any()


@pytest.mark.parametrize(("group", "splits"), list(product([0, *GROUPS], [1, 3])))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w8a16(close: Close, shape: tuple[int, int, int], group: int, splits: int) -> None:
    m, n, k = shape
    x, _, scales, _ = drawn(m, n, k, group or k, HALF[m % 2])
    q = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    scales = scales / 8
    found = triton_w8a16.w8a16(x, q, scales.T.contiguous(), group, splits=splits, tile=Tile(16, 64, group or 64))
    exact(close, found, x, q.double() * grouped(scales.double(), group or k, k))


@pytest.mark.parametrize("name", ["nf4", "fp4", "quantile", "dynamic"])
@pytest.mark.parametrize(("shape", "group"), list(zip(SHAPES, GROUPS, strict=True)), ids=str)
def test_codebook(close: Close, shape: tuple[int, int, int], group: int, name: str) -> None:
    m, n, k = shape
    x, codes, scales, _ = drawn(m, n, k, group, HALF[m % 2])
    values = {
        "nf4": triton_codebook.NF4,
        "fp4": triton_codebook.FP4,
        "quantile": triton_codebook.quantile_codebook(torch.randn(1000).numpy()),
        "dynamic": triton_codebook.dynamic_codebook(),
    }[name]
    codebook = torch.tensor(values)
    w = codebook.to(x.dtype).double()[codes.long()] * grouped(scales.double(), group, k)
    packed, rows = triton_codebook.pack(codes, scales, group)
    for splits in (1, 2):
        exact(close, triton_codebook.codebook_product(x, packed, codebook, rows, group, splits=splits), x, w)


def test_codebooks_have_sixteen_ordered_values() -> None:
    for values in (triton_codebook.NF4, triton_codebook.dynamic_codebook()):
        assert len(set(values)) == 16
        assert list(values) == sorted(values)
        assert 0.0 in values
        assert max(values) == 1.0


def test_groups_without_a_value_are_zero(close: Close) -> None:
    x, codes, scales, _ = drawn(3, 40, 128, 32, torch.bfloat16)
    scales[:, 1] = 0
    found = triton_w4a16.w4a16(x, *triton_w4a16.pack(codes, scales, None, 32), 32, splits=2)
    exact(close, found, x, (codes.double() - 8) * grouped(scales.double(), 32, 128))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("shape", [(1, 40, 192), (17, 33, 200), (70, 130, 129)], ids=str)
def test_w8a8(close: Close, shape: tuple[int, int, int], splits: int) -> None:
    m, n, k = shape
    torch.manual_seed(m)
    x, w = (torch.randint(-128, 128, size, dtype=torch.int8) for size in ((m, k), (n, k)))
    a, b = torch.rand(m) + 0.5, torch.rand(n) / k
    found = triton_w8a8.w8a8(x, a, w, b, torch.float32, splits=splits)
    exact_sum = (x.double() @ w.double().T) * a.double()[:, None] * b.double()
    close(found, exact_sum, exact_sum.abs() if splits == 1 else _sizes(x, w, a, b), splits)


def _sizes(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (x.double().abs() @ w.double().abs().T) * a.double()[:, None] * b.double()


@pytest.mark.parametrize(("m", "k"), [(1, 64), (5, 1000), (3, 2049)])
def test_int8_codes_are_bit_exact(m: int, k: int) -> None:
    torch.manual_seed(k)
    x = torch.randn(m, k).to(torch.bfloat16)
    x[0, ::7] = 0.5  # codes that end in a half
    x[0, 0] = 127
    q, scales = triton_w8a8.quantize(x, torch.int8)
    assert torch.equal(scales, x.float().abs().amax(1) / 127)
    assert torch.equal(q, (x.float() / scales[:, None]).round().to(torch.int8))


@pytest.mark.parametrize(("m", "k"), [(1, 64), (5, 1000)])
def test_fp8_codes_are_bit_exact(m: int, k: int) -> None:
    torch.manual_seed(k)
    x = torch.randn(m, k).to(torch.bfloat16)
    q, scales = triton_w8a8.quantize(x, torch.float8_e4m3fn)
    assert torch.equal(scales, x.float().abs().amax(1) / 448)
    assert torch.equal(q.float(), (x.float() / scales[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_rows_of_zeros_and_of_no_numbers(dtype: Any) -> None:
    x = torch.randn(5, 96).to(torch.bfloat16)
    x[1] = 0
    x[2, 3], x[3, 7] = float("inf"), float("nan")
    q, scales = triton_w8a8.quantize(x, dtype)
    w = torch.randint(-8, 8, (40, 96)).to(dtype)
    found = triton_w8a8.w8a8(q, scales, w, torch.ones(40), torch.float32)
    assert torch.equal(found[1], torch.zeros(40))
    assert found[2:4].isnan().all()
    assert found[[0, 4]].isfinite().all()


def test_infinite_activations_stay_in_their_row() -> None:
    x, codes, scales, _ = drawn(3, 40, 128, 32, torch.float16)
    x[1, 5] = float("inf")
    packed, rows = triton_codebook.pack(codes, scales, 32)
    for found in (
        triton_w4a16.w4a16(x, *triton_w4a16.pack(codes, scales, None, 32), 32),
        triton_w8a16.w8a16(x, codes.to(torch.int8), scales.T.contiguous(), 32),
        triton_codebook.codebook_product(x, packed, torch.tensor(triton_codebook.NF4), rows, 32),
    ):
        assert not found[1].isfinite().any()
        assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)
def test_scales_of_weights_that_are_no_numbers_stay_in_their_column(bad: float) -> None:
    x, codes, scales, zeros = drawn(3, 40, 128, 32, torch.bfloat16)
    scales[7, 2] = bad
    packed, rows = triton_codebook.pack(codes, scales, 32)
    of_channels = torch.ones(40)
    of_channels[7] = bad
    signed, eight = codes.to(torch.int8), x.to(torch.float8_e4m3fn)
    for found in (
        triton_w4a16.w4a16(x, *triton_w4a16.pack(codes, scales, None, 32), 32, splits=2),
        triton_w4a16.w4a16(x, *triton_w4a16.pack(codes, scales, zeros, 32), 32),
        triton_w8a16.w8a16(x, signed, scales.T.contiguous(), 32),
        triton_w8a16.w8a16(x, signed, of_channels[None].to(torch.bfloat16), 0, splits=2),
        triton_codebook.codebook_product(x, packed, torch.tensor(triton_codebook.NF4), rows, 32),
        triton_w8a8.w8a8(*triton_w8a8.quantize(x, torch.int8), signed, of_channels, torch.bfloat16),
        triton_w8a8.w8a8(eight, torch.ones(3), signed.to(torch.float8_e4m3fn), of_channels, torch.bfloat16, splits=2),
    ):
        assert not found[:, 7].isfinite().any()
        assert found[:, torch.arange(40) != 7].isfinite().all()


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("shape", [(1, 40, 192), (17, 33, 200), (70, 130, 129)], ids=str)
def test_fp8(close: Close, shape: tuple[int, int, int], splits: int) -> None:
    m, n, k = shape
    torch.manual_seed(m)
    x, w = (torch.randn(size).to(torch.float8_e4m3fn) for size in ((m, k), (n, k)))
    a, b = torch.rand(m) + 0.5, torch.rand(n) / k
    found = triton_w8a8.w8a8(x, a, w, b, torch.bfloat16, splits=splits)
    true = (x.double() @ w.double().T) * a.double()[:, None] * b.double()
    close(found, true, (x.double().abs() @ w.double().abs().T) * a.double()[:, None] * b.double(), k + splits)


def test_no_rows_give_no_rows() -> None:
    x, codes, scales, _ = drawn(0, 40, 64, 32, torch.bfloat16)
    assert triton_w4a16.w4a16(x, *triton_w4a16.pack(codes, scales, None, 32), 32).shape == (0, 40)
    assert triton_w8a16.w8a16(x, codes.to(torch.int8), scales.T.contiguous(), 32).shape == (0, 40)
    packed, rows = triton_codebook.pack(codes, scales, 32)
    assert triton_codebook.codebook_product(x, packed, torch.tensor(triton_codebook.NF4), rows, 32).shape == (0, 40)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        q, of_rows = triton_w8a8.quantize(x, dtype)
        w = codes.to(torch.int8).to(dtype)
        assert triton_w8a8.w8a8(q, of_rows, w, torch.ones(40), torch.bfloat16).shape == (0, 40)


def test_memory_around_the_tensors_is_left_alone(close: Close) -> None:
    """Every tensor lies between NaNs (or 255s): none may be read into a result, none may change."""
    x, codes, scales, _ = drawn(5, 33, 72, 32, torch.bfloat16)
    w, s, _ = triton_w4a16.pack(codes, scales, None, 32)
    fenced = [_fenced(one) for one in (x, w, s)]
    found = triton_w4a16.w4a16(*(inner for inner, _ in fenced), None, 32, splits=2)
    exact(close, found, x, (codes.double() - 8) * grouped(scales.double(), 32, 72))
    for (_, outer), one in zip(fenced, (x, w, s), strict=True):
        edge = torch.cat([outer[:4096], outer[4096 + one.numel() :]]).float()
        assert edge.isnan().all() if one.is_floating_point() else (edge == 255).all()


def _fenced(one: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    outer = torch.full((one.numel() + 2 * 4096,), float("nan") if one.is_floating_point() else 255, dtype=one.dtype)
    outer[4096 : 4096 + one.numel()] = one.flatten()
    return outer[4096 : 4096 + one.numel()].view(one.shape), outer


def test_misfits_are_refused() -> None:
    x, codes, scales, _ = drawn(2, 40, 128, 32, torch.bfloat16)
    w, s, _ = triton_w4a16.pack(codes, scales, None, 32)
    with pytest.raises(ValueError, match="do not fit group 64"):
        triton_w4a16.w4a16(x, w, s, None, 64)
    with pytest.raises(TypeError, match="float16 or bfloat16"):
        triton_w4a16.w4a16(x.float(), w, s, None, 32)
    with pytest.raises(ValueError, match="contiguous"):
        triton_w4a16.w4a16(x[:, ::2], w, s, None, 32)
    with pytest.raises(ValueError, match="overflow"):
        k = 1 << 17
        triton_w8a8.w8a8(*_int8(1, k), *_int8(1, k), torch.float32)
    with pytest.raises(ValueError, match=r"float8_e4m3fn.* do not fit"):
        triton_w8a8.w8a8(*_int8(1, 64), torch.zeros(1, 64, dtype=torch.float8_e4m3fn), torch.ones(1), torch.float32)


def _int8(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, k, dtype=torch.int8), torch.ones(rows)
