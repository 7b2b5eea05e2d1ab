"""The cost model alone, against times worked out by hand from a data sheet of round numbers."""

import math
from typing import Any

import pytest

from quantadvisor.advisor.gpu_first import first
from quantadvisor.advisor.gpu_kernels import SAME
from quantadvisor.advisor.predict import Probes
from quantadvisor.documents import GpuModel, KernelFactors, Predicted
from quantadvisor.kernels.gpu_fractions import reached
from quantadvisor.kernels.gpu_schemes import gpu_scheme, stored_bytes
from quantadvisor.profiling.inventory import inventory_from_config

from .documents import candidate, workload

SHEET = GpuModel(
    name="Round 1", memory_bytes=80 << 30, read_bytes_per_s=1e12, flops_per_s={"bf16": 1e14, "int8": 2e14, "fp8": 2e14},
    link_bytes_per_s=math.inf, compute_capability=90,
)  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
"""Llama-3.1-8B."""
PROBES = Probes((), inventory_from_config(CONFIG), 0.5)
ONE = workload(traffic={"prompt_tokens": 2048, "output_tokens": 64, "concurrency": 1})


def of(name: str, by: KernelFactors = SAME, work: Any = ONE) -> Predicted:
    found = first(candidate(name, 1.0), CONFIG, SHEET, work, by, PROBES)
    assert found
    assert found.ttft_s
    assert found.tpot_s
    return found


def linears(scheme: str) -> float:
    layer = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    form = gpu_scheme(scheme)
    return sum(32 * stored_bytes(n, k, form) for n, k in layer)


def test_a_decode_step_reads_the_weights() -> None:
    """And the head, a cache of 2,080 tokens, and launches about 300 kernels: a few per cent more."""
    for name, scheme in (("none-bf16@vllm+cuda", "bf16"), ("fp8-fp8-bf16@vllm+cuda", "fp8")):
        body = linears(scheme) / 1e12 / reached("Round 1", scheme, "vllm").read
        head = 2 * 128256 * 4096 / 1e12 / reached("Round 1", "bf16", "vllm").read
        assert 1.0 < of(name).tpot_s / (body + head) < 1.15  # type: ignore[operator]


def test_the_baseline_s_factors_slow_each_side() -> None:
    plain = of("none-bf16@vllm+cuda")
    slow = of("none-bf16@vllm+cuda", KernelFactors(reading=2.0, arithmetic=1.0, source=""))
    hot = of("none-bf16@vllm+cuda", KernelFactors(reading=1.0, arithmetic=2.0, source=""))
    assert slow.tpot_s / plain.tpot_s == pytest.approx(2.0, rel=0.1)  # type: ignore[operator]
    assert slow.ttft_s / plain.ttft_s == pytest.approx(1.0, rel=0.1)  # type: ignore[operator]
    assert hot.ttft_s / plain.ttft_s == pytest.approx(2.0, rel=0.1)  # type: ignore[operator]
    assert hot.tpot_s / plain.tpot_s == pytest.approx(1.0, rel=0.1)  # type: ignore[operator]


def test_a_smaller_cache_is_read_faster_and_takes_less() -> None:
    work = workload(traffic={"prompt_tokens": 16384, "output_tokens": 64, "concurrency": 16})
    names = ("none-bf16", "kv_fp8-bf16-kvf8-unit", "turboquant-bf16-kv4-turbo")
    plain, eight, four = (of(f"{name}@triton", work=work) for name in names)
    assert plain.tpot_s > eight.tpot_s > four.tpot_s  # type: ignore[operator]
    cached = 16 * 16448 * 2 * 8 * 128 * 32
    assert plain.peak_bytes - eight.peak_bytes == pytest.approx(cached, rel=0.01)  # type: ignore[operator]


def test_a_static_batch_has_all_prompts_in_one_pass() -> None:
    work = workload(traffic={"prompt_tokens": 2048, "output_tokens": 64, "concurrency": 8})
    assert of("none-bf16@vllm+cuda", work=work).ttft_s / of("none-bf16@vllm+cuda").ttft_s == pytest.approx(8, rel=0.1)  # type: ignore[operator]


def test_the_basis_names_the_source() -> None:
    assert "no ghost of its family ran" in of("none-bf16@vllm+cuda").basis


def test_what_it_cannot_tell() -> None:
    for name in ("none-fp32@onnxruntime+cuda", "none-bf16@torch+cuda", "kbit-nf4-b64@onnxruntime+cuda"):
        assert first(candidate(name, 1.0), CONFIG, SHEET, ONE, SAME, PROBES) is None
    no_fp8 = SHEET.model_copy(update={"flops_per_s": {"bf16": 1e14}})
    assert first(candidate("fp8-fp8-bf16@vllm+cuda", 1.0), CONFIG, no_fp8, ONE, SAME, PROBES) is None
