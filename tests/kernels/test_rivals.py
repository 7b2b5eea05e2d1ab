"""Other packages' kernels: who is absent, who raises, who is ready. None of them ever ran here."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from quantadvisor.kernels import rivals
from quantadvisor.kernels.rivals import GEMLITE, MARLIN, RIVALS, Integers, Rival, prepared, rivals_of
from quantadvisor.kernels.triton_subjects import COMPILED


def test_each_is_ready_or_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(x: Any, w: Any) -> Any:
        raise RuntimeError("needs sm_90\nand more")

    def fails_when_called(x: Any, w: Any) -> Any:
        return lambda x: 1 / 0

    there = {"w8a8": (
        Rival("absent", "no_such_package", raises),
        Rival("raises", "torch", raises),
        Rival("fails", "torch", fails_when_called),
        Rival("ready", "torch", lambda x, w: lambda x: x @ w.T),
    )}  # fmt: skip
    monkeypatch.setattr(rivals, "RIVALS", there)
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    ready, refused = prepared("w8a8", x, w)
    assert torch.equal(ready["ready"](), x @ w.T)
    assert refused == {
        "absent": "no_such_package is not installed",
        "raises": "RuntimeError: needs sm_90",
        "fails": "ZeroDivisionError: division by zero",
    }
    assert prepared("unknown", x, w) == ({}, {})


def test_every_package_of_the_issue_is_asked() -> None:
    packages = {rival.package for found in rivals.RIVALS.values() for rival in found}
    assert packages == {"vllm", "torchao", "gemlite", "bitsandbytes", "flashinfer"}
    found = {rival for kernel in COMPILED for rival in rivals_of(kernel)}
    assert found == {rival for kind, each in RIVALS.items() if kind != "attention" for rival in each}


def drawn(group: int, *, asymmetric: bool, n: int = 40, k: int = 256) -> tuple[torch.Tensor, Integers]:
    torch.manual_seed(group)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    scales = (torch.rand(n, k // group) + 0.5).div(64).to(torch.bfloat16)
    zeros = torch.randint(0, 16, scales.shape, dtype=torch.uint8) if asymmetric else None
    return torch.randn(3, k).to(torch.bfloat16), Integers(codes, scales, zeros, group)


def test_whoever_takes_integers_gets_ours_and_must_multiply_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(x: torch.Tensor, w: Integers) -> Any:
        return lambda x: (x.float() @ w.values().T).to(x.dtype)

    def rounded_again(x: torch.Tensor, w: Integers) -> Any:
        """In groups of 128 of its own."""
        blocks = w.values().reshape(len(w.codes), -1, 128)
        scales = blocks.abs().amax(-1, keepdim=True) / 7
        return lambda x: (x.float() @ ((blocks / scales).round() * scales).reshape(w.codes.shape).T).to(x.dtype)

    def no_number(x: torch.Tensor, w: Integers) -> Any:
        return lambda x: x @ w.values().T.to(x.dtype) * float("nan")

    made = {"exact": exact, "again": rounded_again, "none": no_number}
    there = tuple(Rival(name, "torch", prepare, of_integers=True) for name, prepare in made.items())
    monkeypatch.setattr(rivals, "RIVALS", {"w4a16": (*there, Rival("elsewhere", "no_such_package", exact))})
    x, w = drawn(64, asymmetric=True)
    ready, refused = prepared("w4a16", x, w.values().to(x.dtype), w, "torch")
    assert list(ready) == ["exact"]
    assert set(refused) == {"again", "none"}  # of one package alone
    assert all("its product of the same integers is off by" in reason for reason in refused.values())
    ready, refused = prepared("w4a16", x, w.values().to(x.dtype))
    assert not ready
    assert refused["exact"] == "ValueError: it takes INT4 weights in groups"


def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of what `_marlin` calls: tiles of 64 x 128, and a product that reads GPTQ's words as that layout says."""

    def filled(one: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        return torch.nn.functional.pad(one, (0, columns - one.shape[1], 0, rows - one.shape[0]))

    def product(
        input: torch.Tensor, *, weight: torch.Tensor, weight_scale: torch.Tensor, weight_zp: torch.Tensor, workspace: None,
        wtype: str, output_size_per_partition: int, input_size_per_partition: int,
    ) -> torch.Tensor:  # fmt: skip
        assert weight.dtype == torch.int32 and weight_scale.dtype == input.dtype
        codes = torch.stack([(weight >> 4 * i) & 15 for i in range(8)], 1).reshape(-1, weight.shape[1])
        group = len(codes) // len(weight_scale)
        middle = weight_zp.repeat_interleave(group, 0) if wtype == "uint4" else 8
        w = (codes - middle).to(input.dtype) * weight_scale.repeat_interleave(group, 0)
        return (input.float() @ w[:input_size_per_partition, :output_size_per_partition].float()).to(input.dtype)

    def supported(number: str, group: int, has_zp: bool) -> None:
        if group not in (-1, 32, 64, 128) or (number == "uint4") != has_zp:
            raise ValueError(f"group {group} is not supported")

    utils = SimpleNamespace(
        verify_marlin_supported=supported,
        marlin_padded_nk=lambda n, k, group: (-(-n // 64) * 64, -(-k // 128) * 128),
        marlin_pad_qweight=lambda q, n, k, wide, deep: filled(q, deep // 8, wide),
        marlin_pad_scales=lambda s, n, k, wide, deep, group: filled(s, deep // group, wide),
        marlin_permute_scales=lambda s, size_k, size_n, group_size: s,
        marlin_zero_points=lambda z, size_k, size_n, num_bits: z,
        marlin_make_empty=lambda device: torch.empty(0),
        apply_gptq_marlin_linear=product,
    )
    operations = SimpleNamespace(gptq_marlin_repack=lambda q, size_k, size_n, num_bits: q)
    types = SimpleNamespace(scalar_types=SimpleNamespace(uint4="uint4", uint4b8="uint4b8"))
    folders = ["vllm", "vllm.model_executor", "vllm.model_executor.layers", "vllm.model_executor.layers.quantization"]
    folders.append(f"{folders[-1]}.utils")
    for name in folders:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["vllm"], "_custom_ops", operations, raising=False)
    monkeypatch.setattr(sys.modules[folders[-1]], "marlin_utils", utils, raising=False)
    monkeypatch.setitem(sys.modules, "vllm.scalar_type", types)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_marlin_gets_our_integers_in_the_declared_groups(monkeypatch: pytest.MonkeyPatch, group: int, asymmetric: bool) -> None:
    """N = 40 is no whole tile, and K of 384 or 320 one of Marlin's or not."""
    vllm(monkeypatch)
    (rival,) = (one for one in RIVALS["w4a16"] if one.name == MARLIN)
    x, w = drawn(group, asymmetric=asymmetric, k=384 if group == 128 else 320)
    product = rivals.product_of(rival, x, w.values().to(x.dtype), w)
    assert rivals.distance(product(x[:1]), x[:1].float() @ w.values().T) < rivals.SAME
    w.codes[:, 7] ^= 8  # what it was not given
    assert rivals.distance(product(x), x.float() @ w.values().T) > rivals.SAME


def test_marlin_refuses_other_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm(monkeypatch)
    x, w = drawn(16, asymmetric=False)
    with pytest.raises(ValueError, match="group 16 is not supported"):
        rivals.product_of(RIVALS["w4a16"][0], x, x, w)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_gemlite_gets_our_integers_as_hqq_has_them(monkeypatch: pytest.MonkeyPatch, asymmetric: bool) -> None:
    def from_weights(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, group: int) -> Any:
        assert (codes.dtype, scales.dtype, zeros.dtype, bits) == (torch.uint8, torch.bfloat16, torch.bfloat16, 4)
        scales, zeros = (one.float().repeat_interleave(group, 1) for one in (scales, zeros))
        return lambda x: (x.float() @ ((codes - zeros) * scales).T).to(x.dtype)

    helper = SimpleNamespace(A16Wn=lambda device: SimpleNamespace(from_weights=from_weights))
    monkeypatch.setitem(sys.modules, "gemlite", SimpleNamespace(helper=helper))
    (rival,) = (one for one in RIVALS["w4a16"] if one.name == GEMLITE)
    x, w = drawn(64, asymmetric=asymmetric)
    product = rivals.product_of(rival, x, w.values().to(x.dtype), w)
    assert rivals.distance(product(x[:1]), x[:1].float() @ w.values().T) < rivals.SAME


MARLIN_UTILS = "model_executor/layers/quantization/utils/marlin_utils.py"
INSTALLED = sorted(Path(f"{sys.prefix}-vllm").glob(f"lib/python*/site-packages/vllm/{MARLIN_UTILS}"))


@pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed beside this environment: make runtime-vllm")
def test_what_marlin_is_called_with_is_what_vllm_has() -> None:
    """The names and arguments of `_marlin`, by vLLM's source: its functions run on a GPU alone."""
    package = INSTALLED[0].parents[4]
    known = {
        node.name: [one.arg for one in node.args.args]
        for file in (INSTALLED[0], package / "_custom_ops.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    called = [
        node
        for node in ast.walk(ast.parse(Path(rivals.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("marlin_utils", "_custom_ops")
    ]
    assert len(called) == 8
    for node in called:
        assert isinstance(node.func, ast.Attribute)
        accepted = known[node.func.attr]
        assert len(node.args) <= len(accepted)
        assert {one.arg for one in node.keywords} <= set(accepted), node.func.attr
    product = {
        "weight",
        "weight_scale",
        "weight_zp",
        "workspace",
        "wtype",
        "output_size_per_partition",
        "input_size_per_partition",
    }
    assert product < set(known["apply_gptq_marlin_linear"])
    assert known["apply_gptq_marlin_linear"][0] == "input"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_names_exist() -> None:
    import bitsandbytes

    assert callable(bitsandbytes.functional.quantize_4bit)
    assert callable(bitsandbytes.matmul_4bit)
    assert callable(bitsandbytes.nn.Linear8bitLt)
