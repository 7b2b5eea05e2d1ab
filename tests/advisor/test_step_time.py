"""The equations by hand, and that `plan` and `run` both go through them."""

from __future__ import annotations

from typing import Any

import pytest

from quantadvisor.advisor import scaling, serving_times, step_time
from quantadvisor.advisor.serving_fit import Parameters, per_token_s
from quantadvisor.advisor.serving_work import Case, known_placement, work_of

from .test_gpu_plan import SHIPPED
from .test_predict import ghost, predicted
from .test_scaling import model


def products(rows: float, heads: float) -> float:
    """A millisecond to read the weights, 10 us a row, 1 us a row of lm_head."""
    return max(1e-3, 1e-5 * rows) + 1e-6 * heads


def test_the_equations() -> None:
    assert step_time.step_s(products, 8, 2e-4, 5e-4) == pytest.approx(1e-3 + 8e-6 + 8 * 2e-4 + 5e-4)
    assert step_time.prompts_s(products, 4 * 512, 4, 3e-3, 5e-4) == pytest.approx(20.48e-3 + 4e-6 + 12e-3 + 5e-4)
    assert step_time.joining_s(products, 8, 512, 3e-3) == pytest.approx(5.2e-3 + 9e-6 - 1e-3 - 8e-6 + 3e-3)
    assert step_time.tpot_s(3e-3, 7e-3, 8, 128, 0.5) == pytest.approx(3e-3 + 0.5 * 7 / 128 * 7e-3)


def test_one_request_waits_for_no_other() -> None:
    assert step_time.tpot_s(3e-3, 7e-3, 1, 128, 0.9) == 3e-3


def of_gpu(parameters: Parameters) -> float:
    placement = known_placement("meta-llama/Llama-3.1-8B", 1, "h100_sxm", "bf16", "vllm")
    return float(per_token_s(parameters, work_of([Case(placement, 16, 1024, 128)]))[0])


def of_device() -> float:
    return model({"linears_s": 1.0}, {"linears_s": 0.01, "cache_s": 0.004, "other_s": 0.002}).tpot(512, 32)


def of_probes() -> float:
    """From the ghost of fp32, its linears exchanged for those of 8 bits."""
    found = predicted("rtn-w8-g64@onnxruntime", [ghost()])
    assert found is not None and found.tpot_s is not None
    return found.tpot_s


def test_what_run_predicts_before_it_measures_is_a_pass_calibrated_by_a_ghost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its linears a pass takes what the ghost took on this device: a tenth of a second more of that is one more here."""
    before, exact = of_probes(), step_time.prompts_s

    def slowed(products: Any, rows: Any, prompts: Any, own_s: Any, fixed_s: Any) -> Any:
        return exact(products, rows, prompts, own_s, fixed_s + 0.1)

    monkeypatch.setattr(step_time, "prompts_s", slowed)
    assert of_probes() == pytest.approx(before + 0.1)


def test_both_sources_of_kernel_times_go_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running requests cost a tenth of a second more in the one function: both predictions say so."""
    before = of_gpu(SHIPPED), of_device()
    exact = step_time.step_s

    def slowed(products: Any, running: Any, request_s: Any, fixed_s: Any) -> Any:
        return exact(products, running, request_s + 0.1, fixed_s)

    assert serving_times.step_time is scaling.step_time is step_time
    monkeypatch.setattr(step_time, "step_s", slowed)
    assert of_gpu(SHIPPED) == pytest.approx(before[0] + 16 * 0.1)
    assert of_device() > before[1]
