"""What is expected of a candidate before its ghost ran, on planted machines."""

import pytest

from quantadvisor.advisor.expected import (
    DOUBTFUL,
    NO_GHOST,
    Expected,
    Known,
    doubt,
    expected,
    promise,
    reached_share,
    without_ghost,
)
from quantadvisor.advisor.predict import Probes
from quantadvisor.documents import Peaks

from .documents import candidate, figure, workload
from .test_diagnose import INVENTORY
from .test_predict import SECONDS, ghost, kernels

PEAKS = Peaks(read_bytes_per_s=figure(1e9), flops_per_s={"fp32": figure(1e9), "int8": figure(4e9)})
REST_S = 0.5
TRAFFIC = {"prompt_tokens": 512, "output_tokens": 2, "concurrency": 1}


def known(reached: float = 1.0, peaks: Peaks | None = PEAKS) -> Known:
    """The baseline: the planted runtime of test_predict in fp32, its linears probed, REST_S beside them."""
    return Known(ghost(), Probes(kernels(), INVENTORY, 0.5), peaks, reached)


def test_probed_linears_are_exchanged_in_the_baselines_pass() -> None:
    found = expected(candidate("rtn-w8-g64@onnxruntime", 1.0), workload(traffic=TRAFFIC), known())
    assert found
    assert found.ttft_s == pytest.approx(REST_S + 2 * SECONDS["w8-g64"] * 512)
    assert found.tpot_s == pytest.approx(REST_S + 2 * SECONDS["w8-g64"])


def test_linears_that_nobody_probes_are_put_at_the_roof_as_far_as_kernels_reach_it() -> None:
    """Two products of [512, 64] x [64, 64] on a machine of 4e9 integer operations a second, of which kernels reach a half."""
    one = candidate("dynamic_int8-w8a8@vllm", 1.0)
    found = expected(one, workload(traffic=TRAFFIC), known(reached=0.5))
    assert found
    linears = sum(shape.count * 2 * (1 if shape.lm_head else 512) * shape.n * shape.k for shape in INVENTORY.linears)
    assert found.ttft_s == pytest.approx(REST_S + linears / 4e9 / 0.5)
    assert (
        reached_share([k.model_copy(update={"roofline_share": share}) for k, share in zip(kernels(), (0.2, 0.6), strict=False)])
        == 0.4
    )


def test_a_cache_of_fewer_bytes_is_read_sooner() -> None:
    many = workload(traffic=TRAFFIC | {"concurrency": 8})
    plain, small = (
        expected(candidate(name, 1.0), many, known()) for name in ("none-fp32@onnxruntime", "kv_int8-fp32-kv8@onnxruntime")
    )
    assert plain and small
    assert promise(many, small) < promise(many, plain)
    assert small.ttft_s == plain.ttft_s


def test_without_roofs_nothing_is_expected_and_it_comes_last() -> None:
    spec = workload(traffic=TRAFFIC)
    assert expected(candidate("rtn-w8-g64@onnxruntime", 1.0), spec, known(peaks=None)) is None
    assert promise(spec, None) == float("inf")
    assert doubt(None, 1e6, 1e6) is None


@pytest.mark.parametrize(
    ("name", "by", "source"), [("rtn-w8-g64@onnxruntime", "probes", "measured"), ("rtn-w8-g64@vllm", "the roofline", "roofline")]
)
def test_whom_no_ghost_spoke_for_is_predicted_by_it(name: str, by: str, source: str) -> None:
    one, spec = candidate(name, 1.0), workload(traffic=TRAFFIC)
    of, found = expected(one, spec, known()), without_ghost(one, spec, known())
    assert of and found
    assert (found.ttft_s, found.tpot_s) == of
    assert found.objective == of.ttft_s + of.tpot_s
    assert (found.basis, found.kernels) == (f"the baseline's pass, linears exchanged by {by}: {NO_GHOST}", source)
    assert found.peak_bytes is not None and found.peak_bytes < 10**9  # of the baseline, in fp32
    assert found.rough


def test_a_second_product_is_not_told_by_the_first() -> None:
    outliers = candidate("llm_int8-w8a8-outlier@torch", 1.0)
    assert without_ghost(outliers, workload(traffic=TRAFFIC), known()) is None
    assert without_ghost(candidate("rtn-w8-g64@vllm", 1.0), workload(traffic=TRAFFIC), known(peaks=None)) is None


def test_a_time_is_doubted_from_ten_times_what_is_expected() -> None:
    of = Expected(2.0, 0.01)
    assert doubt(of, 2.0 * DOUBTFUL, 0.01 * DOUBTFUL) is None
    assert doubt(of, 4081.0, 0.01) == (
        "not believed: TTFT of 4081 s is 2,040 times the 2 s that its kernels and the baseline's other parts take"
    )
    assert str(doubt(of, 2.0, 0.2)).startswith("not believed: TPOT of 0.2 s is 20 times the 0.01 s")
