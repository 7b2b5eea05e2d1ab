"""What a GPU's kernels reach: from its own tables, else from the others', and of caches by the runtime's own kernels."""

from __future__ import annotations

import statistics

import pytest

from quantadvisor.kernels.gpu_devices import gpus
from quantadvisor.kernels.gpu_fractions import cache_read, caches, reached, runtimes_with


def test_a_runtimes_own_kernels_before_the_middle_of_all() -> None:
    own, middle = reached("b200_sxm", "nvfp4", "trtllm"), reached("b200_sxm", "nvfp4")
    assert own != middle
    assert own.source == middle.source == "kernel tables"


def test_a_gpu_without_rows_takes_those_of_others() -> None:
    assert reached("a100_sxm", "fp8").source == "kernel tables of other GPUs"
    assert not runtimes_with("a100_sxm", "fp8")


def test_a_plain_cache_is_read_as_by_the_best_library() -> None:
    """vLLM's 0.684 on A100, not SGLang's 0.474 there: servers take the faster one."""
    assert cache_read("a100_sxm", 16) == cache_read("a100_sxm", 16, "sglang") == 0.684


@pytest.mark.parametrize("runtime", ["vllm", "sglang", "trtllm"])
def test_an_fp8_cache_keeps_what_the_runtimes_kernels_keep(runtime: str) -> None:
    """FlashAttention 3 on Hopper reads it at less of the bandwidth than TensorRT-LLM's kernels: it gains 1.5 times, not 2."""
    h200 = caches()["h200_sxm"]
    kept = cache_read("h200_sxm", 8, runtime) / cache_read("h200_sxm", 16)
    assert kept == pytest.approx(h200["8"][runtime] / h200["16"][runtime])
    assert (2 * kept < 1.6) == (runtime != "trtllm")


def test_what_was_not_measured_is_the_middle_of_others() -> None:
    shares = [of["8"][name] / of["16"][name] for of in caches().values() for name in of.get("8", {})]
    assert cache_read("a100_sxm", 8, "vllm") / 0.684 == pytest.approx(statistics.median(shares))
    bests = [max(of["16"].values()) for of in caches().values()]
    assert cache_read("b300_sxm", 16) == pytest.approx(statistics.median(bests))


def test_nothing_is_read_faster_than_the_memory() -> None:
    for name in gpus():
        for bits in (16, 8):
            for runtime in ("", "vllm", "sglang", "trtllm"):
                assert 0.3 < cache_read(name, bits, runtime) <= 1.0
