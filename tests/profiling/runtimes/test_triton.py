"""What the triton runtime refuses, and why. Its sessions run in tests/kernels/interpreted/check_triton_runtime.py."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantadvisor.documents import KernelCheck, SelfCheck
from quantadvisor.kernels import gpu_timing, selfcheck_record
from quantadvisor.kernels.triton_modules import needed, refusal, unpacked
from quantadvisor.methods.formats.bitsandbytes import settings
from quantadvisor.methods.formats.compressed import FP8, W8A8
from quantadvisor.profiling import gpu_peaks
from quantadvisor.profiling import selfcheck_child as child
from quantadvisor.profiling.runtimes import nvidia, triton

NO_GPU = not torch.cuda.is_available()
PACKED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 64}}},
}


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
BITS, INT8 = settings("nf4", double=True), settings("int8", double=False)


def weights(**change: Any) -> dict[str, Any]:
    group = {"weights": PACKED["config_groups"]["group_0"]["weights"] | change}
    return PACKED | {"config_groups": {"group_0": group}}


MIXED = PACKED | {"config_groups": {str(bits): weights(num_bits=bits)["config_groups"]["group_0"] for bits in (4, 8)}}


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_what_can_be_done() -> None:
    reason = triton.refuse(None, (), ())
    assert reason is not None
    assert "needs an NVIDIA GPU" in reason
    assert "never run on one" in reason
    assert "advisor selfcheck --interpreted" in reason


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
def test_a_driver_older_than_torch_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "torch_built_for", lambda: "13.0")
    monkeypatch.setattr(nvidia, "cuda_of_driver", lambda: "12.4")
    said = f"the NVIDIA driver runs CUDA up to 12.4, torch {torch.__version__} is built for CUDA 13.0: update the driver"
    assert f"needs an NVIDIA GPU: {said}" in str(triton.refuse(None, (), ()))
    assert child.answer({"probe": "list", "interpreted": False}) == gpu_peaks.answer() == {"failed": said}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The GPUs that this process sees, to be changed; nothing was checked on any."""
    names = ["Made-up GPU, sm_90"]
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(gpu_timing, "gpu_name", lambda number: names[number])
    return names


def passed(*kernels: str) -> None:
    checks = tuple(KernelCheck(name=name, shape="M 1", right=True) for name in kernels)
    versions = gpu_timing.versions()
    selfcheck_record.keep(SelfCheck(proof="gpu", device="Made-up GPU, sm_90", versions=versions, note="", kernels=checks))


def test_with_a_gpu_its_kernels_must_have_passed_there(seen: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": W8A8}))
    assert "never checked on Made-up GPU" in str(triton.refuse(str(tmp_path), ("kvint8",), ()))
    passed("w8a8", "decode-attention-int8")
    assert triton.refuse(str(tmp_path), ("kvint8",), ()) is None
    assert "decode-attention-int4 was not checked" in str(triton.refuse(str(tmp_path), ("kvint4",), ()))


def test_of_several_gpus_the_one_that_a_session_sees_decides(seen: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": W8A8}))
    passed("w8a8")
    seen.insert(0, "Other GPU, sm_80")
    assert triton.refuse(str(tmp_path), (), ()) is None
    seen.pop()
    with pytest.raises(ValueError, match="never checked on Other GPU, sm_80: advisor selfcheck"):
        triton.open_session(str(tmp_path), (), 1)


@pytest.mark.parametrize("options", [("kvint2",), ("kvint8", "kvint4")])
def test_options_that_it_does_not_have(options: tuple[str, ...]) -> None:
    reason = triton.refuse(None, options, ())
    assert reason is not None
    assert options[-1] in reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quant_method": "awq"}, "reads compressed-tensors, gptq and bitsandbytes: advisor convert FOLDER --format gptq"),
        ({"quant_method": "hqq"}, "quantized by 'hqq'"),
        (GPTQ | {"desc_act": True}, "act-order"),
        (GPTQ | {"bits": 8}, "8 bits in groups of 64"),
        (GPTQ | {"group_size": -1}, "groups of -1"),
        (BITS | {"bnb_4bit_quant_type": "fp4"}, "bitsandbytes' fp4"),
        (BITS | {"bnb_4bit_quant_storage": "bfloat16"}, "NF4 in bytes is read"),
        (INT8 | {"llm_int8_threshold": 4.0}, "outliers from 4 on; our kernel takes them from 6"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        (W8A8 | {"config_groups": {"group_0": {"weights": {"num_bits": 8, "symmetric": False}}}}, "asymmetric 8-bit"),
        (weights(num_bits=8, symmetric=False), "asymmetric 8-bit"),
        (weights(num_bits=2), "2 bits in groups of 64"),
        (weights(strategy="channel"), "4 bits in groups of None"),
        (MIXED, "several widths"),
        (weights(group_size=48), "groups of 48"),
        (W8A8 | {"config_groups": {"group_0": {"weights": {"num_bits": 8, "strategy": "tensor"}}}}, "per channel"),
    ],
)
def test_checkpoints_without_a_kernel(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    said = triton.refuse(str(tmp_path), (), ())
    assert said is not None
    assert reason in said


def test_checkpoints_with_one() -> None:
    assert refusal({}) is None
    assert refusal(W8A8) is None
    assert refusal(FP8["channel"]) is None
    assert all("per channel" in str(refusal(FP8[kind])) for kind in ("tensor", "static", "block"))
    assert refusal(PACKED) is refusal(weights(symmetric=False)) is None
    assert refusal(BITS) is refusal(INT8) is refusal(GPTQ) is None
    assert refusal(weights(num_bits=8)) is refusal(weights(num_bits=8, strategy="channel", group_size=None)) is None


def test_the_kernels_that_must_have_passed() -> None:
    assert needed(FP8["channel"], ("kvturbo",)) == ["fp8", "decode-attention-turbo"]
    assert needed(PACKED, ()) == ["w4a16-g64"]
    assert needed(BITS, ("kvint8",)) == ["codebook-nf4", "decode-attention-int8"]
    assert needed(INT8, ()) == ["llm-int8"]
    assert needed(GPTQ, ()) == ["w4a16-g64"]
    assert needed(GPTQ | {"sym": False}, ()) == ["w4a16-g64-asymmetric"]
    assert needed(weights(symmetric=False), ()) == ["w4a16-g64-asymmetric"]
    assert needed(weights(num_bits=8), ()) == ["w8a16-g64"]
    assert needed(weights(num_bits=8, strategy="channel"), ()) == ["w8a16"]


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "no config.json" in str(triton.refuse(str(tmp_path), (), ()))


def test_codes_come_out_of_words_from_the_lowest_bits_up() -> None:
    """The highest nibble is the sign bit of the word."""
    codes = torch.arange(16).repeat(2)[None]
    words = sum(codes[:, i::8] << 4 * i for i in range(8))
    assert torch.equal(unpacked(torch.as_tensor(words).to(torch.int32)), codes.to(torch.uint8))
    eight = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    assert torch.equal(unpacked(eight.view(torch.int32), 8), eight)


def test_a_captured_step_is_timed_by_cuda_events(monkeypatch: pytest.MonkeyPatch) -> None:
    session = triton.TritonSession.__new__(triton.TritonSession)
    session.graph = None
    assert session.replays() == []
    session.graph = SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(gpu_peaks, "event_seconds", lambda _: [1e-3, 9e-3, 2e-3])
    assert session.replays() == ["a replay of its CUDA graph takes 2.00e-03 s by CUDA events"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"sliding_window": 4096}, "a sliding window of 4096 tokens"),
        ({"sliding_window": 4096, "layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ({"attn_logit_softcapping": 50.0}, "a soft cap of its scores"),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"sliding_window": 4096, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": None, "attention_multiplier": 0.0156}, None),
    ],
)
def test_models_that_attend_otherwise_are_refused(tmp_path: Path, config: dict[str, object], reason: str | None) -> None:
    """Every token before, at a scale of the model's own, is what its attention knows."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = triton.unreadable(str(tmp_path), (), ())
    assert found is None if reason is None else str(found).endswith(f"this model has {reason}")
