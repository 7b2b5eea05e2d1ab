"""`advisor runtimes --model` on this machine, nothing planted: the slow paths that it must find by itself."""

import json

import pytest

from quantadvisor.advisor import listings
from quantadvisor.advisor.builtin_model import NAME
from quantadvisor.advisor.stages import Quiet
from quantadvisor.profiling.device import describe_device

pytestmark = [pytest.mark.runtime, pytest.mark.filterwarnings("ignore")]


def test_known_traps_are_found_at_the_model_s_own_sizes() -> None:
    listed = json.loads(listings.runtimes(listings.Asked(NAME), Quiet()).document)
    here, isa = {one["name"] for one in listed if one["refused"] is None}, {*describe_device().isa}
    schemes = [scheme for one in listed for scheme in one["schemes"]]
    half = {"amx_bf16", "avx512_bf16"} & isa

    def words(name: str, state: str = "slow") -> str:
        """What is said of the schemes so called, on any of their runtimes' options."""
        return "; ".join(scheme[state] for scheme in schemes if scheme["name"].startswith(name) and scheme[state])

    for name in ("w8-channel-bf16@torch", *(("w4-g64-bf16@torch",) if half else ())):
        assert "prefill" in words(name), "torch's weight-only products at many rows"
    assert "onnxruntime without acc0" in words("w4-g64@onnxruntime+acc0"), "INT4 without accuracy_level"
    if "avx512_vnni" in isa:
        assert "DequantizeLinear take" in words("w8a8-static@onnxruntime+qdq"), "static INT8 in QDQ form"
    assert "in chunks" in words("fp32@openvino"), "prompts in chunks"
    if "amx_int8" in isa:
        assert "prefill (M = 1024): linears" in words("rtn-w4-g64@onnxruntime"), "MatMulNBits at large M"
    if half:
        assert "prefill" in words("none-fp32@openvino+f32"), "the precision hint: bf16 wins prefill"
    if "amx_bf16" in isa:
        assert "decode (M = 1): the option f32" in words("rtn-w8-g64@openvino+bf16"), "and f32 quantized decode"
    if "llama.cpp" in here:
        assert words("none-bf16@llama.cpp"), "with flash attention or without it, one phase is slow"
        if "amx_int8" in isa:
            crashing = words("gguf-q8_0@llama.cpp", "refused")
            assert not crashing or (
                "the option plain avoids it" in crashing and "without plain" not in words("gguf-q8_0@llama.cpp")
            )
    untimed = {scheme["name"] for scheme in schemes if scheme["untimed"]}
    assert "kbit-nf4-b64@onnxruntime" in untimed, "nothing that was not timed is called ready"
