"""`advisor runtimes --model` on this machine, nothing planted: the slow paths that it must find by itself."""

import json

import pytest

from quantadvisor.advisor import listings
from quantadvisor.advisor.builtin_model import NAME
from quantadvisor.advisor.stages import Quiet
from quantadvisor.profiling.device import describe_device

pytestmark = [pytest.mark.runtime, pytest.mark.filterwarnings("ignore")]


def test_known_traps_are_found_at_the_model_s_own_sizes() -> None:
    found = {one["name"]: one for one in json.loads(listings.runtimes(listings.Asked(NAME), Quiet()).document)}
    slow = {scheme["name"]: scheme["slow"] for one in found.values() for scheme in one["schemes"] if scheme["slow"]}
    low_bit = [words for name, words in slow.items() if name.startswith("w8-channel-bf16@torch")]
    assert low_bit and all("prefill" in words for words in low_bit), "torch's weight-only INT8 at many rows"
    without = [words for name, words in slow.items() if name.endswith("@onnxruntime+acc0") and name.startswith("w4")]
    assert without and all("onnxruntime without acc0" in words for words in without), "INT4 without accuracy_level"
    assert any("in chunks" in words for name, words in slow.items() if "@openvino" in name), "prompts in chunks"
    if {"amx_int8", "avx512_bf16"} & set(describe_device().isa):
        assert any("prefill" in words for name, words in slow.items() if name == "none-fp32@openvino+f32"), "the precision hint"
    untimed = {scheme["name"]: scheme["untimed"] for one in found.values() for scheme in one["schemes"] if scheme["untimed"]}
    assert "kbit-nf4-b64@onnxruntime" in untimed, "nothing that was not timed is called ready"
