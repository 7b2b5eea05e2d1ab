"""Decode attention over quantized caches against float64 softmax attention on exactly dequantized keys and values.

The bound: a score is a float32 sum of D exact products and three factors, wrong by at most e = (D + 8) 2^-24 |q| |k|, which
moves a weight by a factor of at most exp(2 e); the weight times the value's scale is rounded to q's type (u); sums over S.
float16 also loses what is below its smallest subnormal, 2^-24, half of it a term, before the division by a sum >= 1.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from quantadvisor.kernels import triton_decode_attention as kernel
from quantadvisor.kernels import turbo_tables
from quantadvisor.methods import turboquant

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FORMATS = ["int8", "int4", "fp8", "turbo"]
# The interpreter computes with numpy, which warns of NaN and infinities; the check that plants one looks at the result.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|All-NaN slice) encountered:RuntimeWarning")


def quantized(x: torch.Tensor, kind: str, dtype: Any) -> tuple[kernel.Cached, torch.Tensor, torch.Tensor]:
    """(what the kernel reads, its exact values, what multiplies the scales); turbo: in the rotated basis."""
    if kind == "int8":
        cached = kernel.quantize_int8(x)
        codes = cached.codes.double()
    elif kind == "fp8":
        cached = kernel.quantize_fp8(x, peak=x.abs().max().item())
        codes = cached.codes.double()
        return cached, codes * cached.scales.double(), codes
    elif kind == "int4":
        cached = kernel.quantize_int4(x)
        codes = nibbles(cached).double() - cached.zeros.double()[..., None]
    else:
        cached = replace(kernel.quantize_turbo(x, values_of(4), turbo_tables.rotation(x.shape[-1])), turn=None)
        codes = cached.codebook.to(dtype).double()[nibbles(cached).long()]
    return cached, codes * cached.scales.double()[..., None], codes


def nibbles(cached: kernel.Cached) -> torch.Tensor:
    return torch.cat([cached.codes & 15, cached.codes >> 4], -1)


def values_of(bits: int) -> torch.Tensor:
    return torch.from_numpy(turbo_tables.codebook(bits)).float()


def checked(found: torch.Tensor, q: torch.Tensor, k: Any, v: Any, codes: Any, lengths: torch.Tensor) -> None:
    shared, dim = q.shape[1] // k.shape[1], q.shape[2]
    k, v, codes = (one.repeat_interleave(shared, 1) for one in (k, v, codes))
    unit, single = UNIT[q.dtype], 2.0**-24
    for b, length in enumerate(lengths.tolist()):
        if not length:
            assert torch.equal(found[b], torch.zeros_like(found[b]))
            continue
        keys, values, query = k[b, :, :length], v[b, :, :length], q[b].double()
        weights = torch.softmax(torch.einsum("hd,hsd->hs", query, keys) / math.sqrt(dim), -1)
        true = torch.einsum("hs,hsd->hd", weights, values)
        sizes = torch.einsum("hs,hsd->hd", weights, values.abs())
        score = (dim + 8) * single * torch.einsum("hd,hsd->hs", query.abs(), keys.abs()).amax(-1) / math.sqrt(dim)
        inner = (unit + 2 * score[:, None] + (length + 64) * single) * sizes * (1 + unit)
        lost = 2.0**-25 * codes[b, :, :length].abs().sum(1) if q.dtype == torch.float16 else 0.0
        assert ((found[b].double() - true).abs() <= inner + lost + unit * true.abs() + 2.0**-25).all()


def problem(kind: str, heads: tuple[int, int], dim: int, tokens: int, lengths: list[int], dtype: Any) -> tuple[Any, ...]:
    torch.manual_seed(dim + tokens)
    hq, hkv = heads
    q = torch.randn(len(lengths), hq, dim).to(dtype)
    keys, k, _ = quantized(torch.randn(len(lengths), hkv, tokens, dim), kind, dtype)
    values, v, codes = quantized(torch.randn(len(lengths), hkv, tokens, dim) + 0.3, kind, dtype)
    return q, keys, values, torch.tensor(lengths, dtype=torch.int32), k, v, codes


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("heads", "dim", "tokens", "lengths", "parts"),
    [
        ((3, 1), 64, 150, [150, 1], 1),
        ((4, 2), 80, 200, [130, 200], 3),
        ((2, 2), 96, 65, [64, 65, 0], 2),
        ((8, 1), 128, 300, [299], 4),
        ((32, 1), 32, 70, [70], 2),
        ((9, 3), 64, 40, [0, 17], 5),
    ],
    ids=str,
)
def test_against_float64(kind: str, heads: tuple[int, int], dim: int, tokens: int, lengths: list[int], parts: int) -> None:
    dtype = [torch.float16, torch.bfloat16][parts % 2]
    q, keys, values, at, k, v, codes = problem(kind, heads, dim, tokens, lengths, dtype)
    checked(kernel.decode_attention(q, keys, values, at, parts=parts), q, k, v, codes, at)


@pytest.mark.parametrize("kind", FORMATS)
def test_another_scale_of_the_scores(kind: str) -> None:
    """Twice the usual one is as twice the query, to the last bit."""
    q, keys, values, at, *_ = problem(kind, (4, 2), 64, 128, [70], torch.bfloat16)
    found = kernel.decode_attention(q, keys, values, at, scaling=2 / 8)
    assert torch.equal(found, kernel.decode_attention(2 * q, keys, values, at))
    assert not torch.equal(found, kernel.decode_attention(q, keys, values, at))


@pytest.mark.parametrize("kind", FORMATS)
def test_places_beyond_the_length_are_not_read(kind: str) -> None:
    q, keys, values, at, k, v, codes = problem(kind, (4, 2), 64, 128, [70], torch.bfloat16)
    for one in (keys, values):
        one.codes[:, :, 70:] = 99
        if kind != "fp8":
            one.scales[:, :, 70:] = float("nan")
    checked(kernel.decode_attention(q, keys, values, at), q, k, v, codes, at)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")], ids=str)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_query_that_is_no_number_spoils_its_own_head_alone(kind: str, bad: float) -> None:
    q, keys, values, at, *_ = problem(kind, (4, 2), 64, 64, [64], torch.bfloat16)
    q[0, 1, 3] = bad
    found = kernel.decode_attention(q, keys, values, at)
    assert not found[0, 1].isfinite().any()
    assert found[0, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("side", ["keys", "values"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_token_that_is_no_number_spoils_the_heads_that_read_it_alone(kind: str, side: str) -> None:
    """A scale that is NaN, or infinite where it multiplies values; FP8, whose scale is everybody's, has a code for NaN."""
    q, keys, values, at, *_ = problem(kind, (4, 2), 64, 64, [64, 64], torch.bfloat16)
    one = {"keys": keys, "values": values}[side]
    if kind == "fp8":
        one.codes.view(torch.uint8)[0, 0, 5] = 0x7F
    else:
        one.scales[0, 0, 5] = float("nan") if side == "keys" else float("inf")
    found = kernel.decode_attention(q, keys, values, at, parts=2)
    assert not found[0, :2].isfinite().any()
    assert found[0, 2:].isfinite().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("kind", ["int8", "int4", "turbo"])
def test_a_key_without_bound_is_attended_to_not_at_all_or_is_no_number(kind: str) -> None:
    """Its score is an infinity by the sign of q k: exp(-inf) is 0, as if the token were not there; softmax of +inf is NaN."""
    torch.manual_seed(1)
    q = torch.randn(1, 16, 64).to(torch.bfloat16)
    (keys, k, codes), (values, v, v_codes) = (quantized(torch.randn(1, 1, 40, 64), kind, q.dtype) for _ in range(2))
    keys.scales[0, 0, 39] = float("inf")
    found = kernel.decode_attention(q, keys, values, torch.tensor([40], dtype=torch.int32), parts=1)
    without = q[0].double() @ codes[0, 0, 39] < 0
    assert 0 < without.sum() < 16
    assert torch.equal(found[0].isfinite().all(-1), without)
    checked(found[:, without], q[:, without], k[:, :, :39], v[:, :, :39], v_codes[:, :, :39], torch.tensor([39]))


@pytest.mark.parametrize("kind", FORMATS)
def test_no_sequences_and_no_tokens(kind: str) -> None:
    q, keys, values, at, *_ = problem(kind, (4, 2), 64, 8, [8, 8], torch.bfloat16)

    def part(one: kernel.Cached, batch: int, tokens: int) -> kernel.Cached:
        scales = one.scales if kind == "fp8" else one.scales[:batch, :, :tokens].contiguous()
        zeros = None if one.zeros is None else one.zeros[:batch, :, :tokens].contiguous()
        return replace(one, codes=one.codes[:batch, :, :tokens].contiguous(), scales=scales, zeros=zeros)

    none = kernel.decode_attention(q[:0], part(keys, 0, 8), part(values, 0, 8), at[:0])
    assert none.shape == (0, 4, 64)
    empty = kernel.decode_attention(q, part(keys, 2, 0), part(values, 2, 0), torch.zeros_like(at))
    assert torch.equal(empty, torch.zeros_like(q))


def test_what_does_not_fit_is_refused() -> None:
    q, keys, values, at, *_ = problem("int8", (4, 2), 64, 64, [64], torch.bfloat16)
    with pytest.raises(ValueError, match="do not fit"):
        kernel.decode_attention(q[:, :3].contiguous(), keys, values, at)
    with pytest.raises(ValueError, match=r"values .* int4 do not fit"):
        kernel.decode_attention(q, keys, kernel.quantize_int4(torch.randn(1, 2, 64, 64)), at)


@pytest.mark.parametrize("sm", [80, 90])
def test_e4m3_is_read_exactly_by_bits_and_by_the_targets_conversion(monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    """All 256 codes as values under a weight of 1: one token, whose value comes out as it is."""
    monkeypatch.setattr(kernel, "target", lambda _: sm)
    codes = torch.arange(256, dtype=torch.uint8).reshape(2, 1, 1, 128).view(torch.float8_e4m3fn)
    one = torch.ones(1)
    values, keys = kernel.Cached("fp8", codes, one), kernel.Cached("fp8", torch.zeros_like(codes), one)
    for dtype in (torch.bfloat16, torch.float16):
        q = torch.zeros(2, 1, 128, dtype=dtype)
        found = kernel.decode_attention(q, keys, values, torch.ones(2, dtype=torch.int32))
        assert torch.equal(found.float().nan_to_num(777), codes.float().reshape(2, 1, 128).nan_to_num(777))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_turbo_codes_are_those_of_the_method(bits: int) -> None:
    torch.manual_seed(bits)
    x, turn = torch.randn(2, 3, 50, 64), turbo_tables.rotation(64)
    x[0, 0, 0] = 0
    cached = kernel.quantize_turbo(x, values_of(bits), turn)
    norms, codes = turboquant.encode(x, bits, turn)
    assert torch.equal(nibbles(cached), codes.to(torch.uint8))
    assert torch.equal(cached.scales, norms[..., 0] / 8)


@pytest.mark.parametrize("dtype", UNIT)
def test_turbo_in_the_basis_of_the_model(dtype: Any) -> None:
    """Against attention over what methods/turboquant.py decodes. Beyond the bound in the rotated basis: q' and the codebook
    are rounded to q's type, which moves scores by at most 2 u |q| |k| / sqrt(D), and the codebook's rounding values by u."""
    torch.manual_seed(5)
    dim, tokens, turn = 64, 90, turbo_tables.rotation(64)
    q, k, v = torch.randn(1, 4, dim).to(dtype), torch.randn(1, 2, tokens, dim), torch.randn(1, 2, tokens, dim)
    cached = [kernel.quantize_turbo(one, values_of(4), turn) for one in (k, v)]
    found = kernel.decode_attention(q, *cached, torch.tensor([tokens], dtype=torch.int32))[0].double()
    keys, values = (turboquant.decode(*turboquant.encode(one, 4, turn), 4, turn)[0].double() for one in (k, v))
    keys, values = keys.repeat_interleave(2, 0), values.repeat_interleave(2, 0)
    weights = torch.softmax(torch.einsum("hd,hsd->hs", q[0].double(), keys) / math.sqrt(dim), -1)
    true = torch.einsum("hs,hsd->hd", weights, values)
    unit, single = UNIT[dtype], 2.0**-24
    score = (2 * unit + (dim + 16) * single) * (q[0].double().norm(dim=-1) * keys.norm(dim=-1).amax(-1)) / math.sqrt(dim)
    length = torch.einsum("hs,hs->h", weights, values.norm(dim=-1))  # of a vector that no rotation makes longer
    allowed = (2 * unit + 2 * score + (tokens + 2 * dim) * single) * length
    assert ((found - true).norm(dim=-1) <= allowed * (1 + unit) + unit * true.norm(dim=-1)).all()
    assert (found - true).norm() > 0
