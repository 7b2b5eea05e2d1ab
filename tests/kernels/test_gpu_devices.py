import pytest

from quantadvisor.documents import BadInput
from quantadvisor.kernels.gpu_devices import gpu, gpus
from quantadvisor.kernels.gpu_schemes import FORMATS, arithmetic, gpu_scheme, stored_bytes


@pytest.mark.parametrize("spelled", ["h100", "H100_SXM", "NVIDIA H100-SXM", "h100_sxm"])
def test_spellings(spelled: str) -> None:
    assert gpu(spelled).name == "h100_sxm"


@pytest.mark.parametrize(("wrong", "near"), [("h10", "h100_sxm"), ("l40", "l40s"), ("b2000", "b200_sxm"), ("a10", "a100_sxm")])
def test_a_misspelt_name_gets_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(BadInput, match=f"did you mean {near}"):
        gpu(wrong)


def test_data_sheets() -> None:
    """NVIDIA's data sheets: H100 SXM 3.35 TB/s and 989 TFLOPS dense in bf16; A100 has no FP8; L40S no NVLink."""
    assert gpu("h100").read_bytes_per_s == pytest.approx(3.35e12, rel=0.01)
    assert gpu("h100").flops_per_s["bf16"] == pytest.approx(989e12, rel=0.01)
    assert "fp8" not in gpu("a100").flops_per_s
    assert gpu("l40s").link_bytes_per_s == pytest.approx(32e9)
    assert all(one.memory_bytes > 20e9 for one in gpus().values())


def test_stored_bytes_of_the_schemes() -> None:
    """Bits a weight by arithmetic: NVFP4 4 + 8/16, group INT4 4 + 16/128, MXFP4 4 + 8/32."""
    bits = {name: 8 * stored_bytes(4096, 4096, gpu_scheme(name)) / 4096**2 for name in FORMATS}
    wanted = {"bf16": 16, "fp8": 8, "fp8-block": 8 + 32 / 128**2, "w8a8-int8": 8 + 32 / 4096, "w8a16": 8 + 16 / 4096,
              "w4a16": 4 + 16 / 128, "nvfp4": 4.5, "mxfp4": 4.25}  # fmt: skip
    assert bits == pytest.approx(wanted, abs=1e-4)


def test_arithmetic() -> None:
    assert [arithmetic(gpu_scheme(name)) for name in ("bf16", "w4a16", "fp8", "w8a8-int8", "nvfp4-kv8")] == [
        "bf16", "bf16", "fp8", "int8", "fp4",
    ]  # fmt: skip


def test_an_unknown_scheme() -> None:
    with pytest.raises(BadInput, match="w5a5"):
        gpu_scheme("w5a5")
