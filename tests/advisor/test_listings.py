"""`advisor runtimes --model` on this machine, nothing planted: the slow paths that it must find by itself.

OpenVINO's f32 wins quantized decode on some CPUs alone: 1.37 times as fast on an AMX machine where this was measured, less than
APART on another. There the listing must say what the timings say, whichever it is.
"""

import json

import pytest

from quantadvisor.advisor import listings
from quantadvisor.advisor.builtin_model import NAME
from quantadvisor.advisor.slow_paths import APART
from quantadvisor.advisor.stages import Quiet
from quantadvisor.profiling.device import describe_device

pytestmark = [pytest.mark.runtime, pytest.mark.filterwarnings("ignore")]


def f32_wins_decode() -> bool:
    """By the timings that the listing kept: the layers' INT8 linears at one row, bf16 over f32."""
    _, inventory = listings.sizes_of(NAME)
    counts = {(shape.n, shape.k): shape.count for shape in inventory.linears if not shape.lm_head}
    seconds = dict.fromkeys(("bf16", "f32"), 0.0)
    for one in listings.kernels_on(describe_device(), inventory, {}, Quiet()):
        if (one.probe, one.m) == ("w8_openvino", 1) and one.option in seconds and (one.n, one.k) in counts:
            assert one.time_s is not None
            seconds[one.option] += counts[one.n, one.k] * one.time_s.median
    assert seconds["f32"] > 0
    return seconds["bf16"] > APART * seconds["f32"]


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
        assert ("decode (M = 1): the option f32" in words("rtn-w8-g64@openvino+bf16")) == f32_wins_decode(), "its other side"
    if "llama.cpp" in here:
        assert words("none-bf16@llama.cpp"), "with flash attention or without it, one phase is slow"
        if "amx_int8" in isa:
            crashing = words("gguf-q8_0@llama.cpp", "refused")
            assert not crashing or (
                "the option plain avoids it" in crashing and "without plain" not in words("gguf-q8_0@llama.cpp")
            )
    untimed = {scheme["name"] for scheme in schemes if scheme["untimed"]}
    assert "kbit-nf4-b64@onnxruntime" in untimed, "nothing that was not timed is called ready"
