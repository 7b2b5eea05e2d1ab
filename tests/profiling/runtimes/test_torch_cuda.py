"""torch's side of a GPU on stand-ins for what a GPU would say: kernels by part, logits, memory, where the model is put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quantadvisor.profiling.runtimes import torch as runtime
from quantadvisor.profiling.runtimes import torch_cuda, vllm

from ...methods.conftest import write_llama

DEVICE = torch.autograd.DeviceType.CUDA
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def event(name: str, start: float, end: float, **more: Any) -> SimpleNamespace:
    """As torch.autograd.profiler_util.FunctionEvent has it; µs."""
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=span, **({"device_type": DEVICE, "is_user_annotation": False} | more))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """How often the GPU was waited for."""
    seen: list[None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append(None))
    return seen


def test_a_kernel_belongs_to_the_scope_that_it_ran_in() -> None:
    events = [
        event("ampere_bf16_s16816gemm", 0, 30),
        event("quantadvisor: linears", 0, 50, is_user_annotation=True),
        event("ampere_bf16_s16816gemm", 35, 50),
        event("quantadvisor: attention", 60, 100, is_user_annotation=True),
        event("flash_fwd_splitkv", 60, 90),
        event("reshape_and_cache_flash_kernel", 90, 100),
        event("ampere_bf16_s16816gemm", 110, 115),
        event("ProfilerStep", 0, 200, is_user_annotation=True),
        event("aten::mm", 0, 400, device_type=torch.autograd.DeviceType.CPU),
    ]
    rows = {(row["name"], row["part"]): row for row in torch_cuda.kernels(events)}
    seconds = {key: (row["count"], pytest.approx(row["time_s"])) for key, row in rows.items()}
    assert seconds == {
        ("ampere_bf16_s16816gemm", "linears"): (2, 45e-6),
        ("ampere_bf16_s16816gemm", "other"): (1, 5e-6),
        ("flash_fwd_splitkv", "attention"): (1, 30e-6),
        ("reshape_and_cache_flash_kernel", "cache"): (1, 10e-6),
    }
    assert {row["provider"] for row in rows.values()} == {"CUDA"}


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<...>>>", "attention"),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, ...>", "cache"),
        ("BatchDecodeWithPagedKVCacheKernel", "attention"),
        ("nvjet_tst_192x192_64x4_1x2_h_bz_coopB_TNN", "linears"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, ...>", "linears"),
        ("void marlin::Marlin<__nv_bfloat16, ...>", "linears"),
        ("triton_red_fused__to_copy_add_mean_mul_unified_attention_1", "other"),
        ("void vllm::act_and_mul_kernel<c10::BFloat16, ...>", "other"),
    ],
)
def test_in_a_graph_a_kernels_name_tells_its_part(kernel: str, part: str) -> None:
    """No function of the model is called there; outside of graphs a kernel without a scope stays other."""
    assert [row["part"] for row in torch_cuda.kernels([event(kernel, 0, 30)], by_name=True)] == [part]
    if part != "cache":
        assert [row["part"] for row in torch_cuda.kernels([event(kernel, 0, 30)])] == ["other"]


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@no_gpu
def test_products_of_codes_are_told_from_plain_ones(monkeypatch: pytest.MonkeyPatch, waits: list[None]) -> None:
    names = ("marlin::Marlin", "cutlass_80_tensorop_s8_i16832gemm", "ampere_bf16_s16816gemm", "flash_fwd_e4m3")
    rows = torch_cuda.kernels([event(name, i, i + 1) for i, name in enumerate(names)], by_name=True)
    monkeypatch.setattr(torch_cuda, "kernels", lambda *_, **__: rows)
    found = torch_cuda.observe(lambda: None, 1, None)["operators"]
    assert {row["name"]: (row["linear"], row["quantized"]) for row in found} == dict(
        zip(names, [(True, True), (True, True), (True, False), (False, False)], strict=True)
    )


@pytest.mark.parametrize(
    ("kernel", "number"),
    [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bfloat16"),
        ("cutlass::gemm::e4m3", "fp8"),
        ("cutlass_80_tensorop_s8_i16832gemm", "int8"),
        ("ampere_h16816gemm_256x128_tn", "float16"),
        ("triton_poi_fused_mul", ""),
    ],
)
def test_a_kernels_name_tells_its_number_type_or_nothing(kernel: str, number: str) -> None:
    assert torch_cuda.precision(kernel) == number


def test_scopes_are_marked_in_a_profile_and_taken_off_again() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
    given = torch.randn(2, 8)
    plain = model(given)
    where = [(model[0], "forward", "linears"), (torch.nn.functional, "gelu", "attention")]
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch_cuda.scopes(where), torch.profiler.profile(activities=cpu) as profile:
        assert torch.equal(model(given), plain)
    names = [one.name for one in profile.events()]
    assert names.count("quantadvisor: linears") == names.count("quantadvisor: attention") == 1
    assert "forward" not in vars(model[0])
    with torch.profiler.profile(activities=cpu) as profile:
        model(given)
    assert not [one for one in profile.events() if one.name.startswith(torch_cuda.SCOPE)]


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@no_gpu
def test_where_the_profiler_sees_no_gpu_nothing_is_made_up(waits: list[None]) -> None:
    seen = torch_cuda.observe(lambda: torch.zeros(4) + 1, 3, [])
    assert len(seen["walls_s"]) == 3
    assert len(waits) >= 6
    assert (seen["operators"], seen["other_s"]) == ([], seen["wall_s"])
    assert "eager" in seen["notes"][0]
    assert "not taken apart" in seen["notes"][-1]
    assert "eager" not in torch_cuda.observe(lambda: torch.zeros(4), 1, None)["notes"][0]


def test_logits_are_waited_for_and_stay_until_they_are_asked_for(waits: list[None]) -> None:
    rows = torch.tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 1.0]], dtype=torch.bfloat16)
    logits = torch_cuda.Logits(rows)
    assert len(waits) == 1
    assert logits.argmax(-1)[:, None].astype(np.int64).tolist() == [[1], [0]]
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(np.asarray(logits), rows.float().numpy())


def test_memory_is_the_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 8)
    assert torch_cuda.allocated() == (5, 8)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch, waits: list[None]) -> Callable[[], dict[str, Any]]:
    """What from_pretrained is asked for; the model then comes to lie on the CPU."""
    import transformers

    asked: dict[str, Any] = {}
    shipped = transformers.AutoModelForCausalLM.from_pretrained

    def load(path: str, **settings: Any) -> Any:
        asked.update(settings)
        settings.pop("device_map", None)
        return shipped(path, **settings)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: asked.update(reset=True))
    return lambda: asked


def test_the_model_is_loaded_onto_the_first_gpu(tmp_path: Path, placed: Callable[[], dict[str, Any]]) -> None:
    folder = write_llama(tmp_path / "hf")
    session = runtime.open_session(str(folder), ("cuda",), 1)
    assert (placed()["device_map"], placed()["reset"], session.device) == ({"": 0}, True, "cuda")
    placed().clear()
    session = runtime.open_session(str(folder), (), 1)
    assert ("device_map" in placed(), "reset" in placed(), session.device, session.allocated()) == (False, False, "cpu", None)


def test_vllms_pool_is_a_share_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody says how much traffic is to come."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    found = vllm.settings_of(("cuda",))
    assert (found["kv_cache_memory_bytes"], found["gpu_memory_utilization"]) == (20 << 30, 0.25)
    assert vllm.settings_of(("cuda", "pool=4096"))["kv_cache_memory_bytes"] == 4096
