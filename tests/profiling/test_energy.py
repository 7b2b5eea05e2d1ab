"""Energy where caches are recorded: a worker over planted counters, whose session spends known joules in each of its parts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest

from quantadvisor.advisor.survey import phase_time
from quantadvisor.documents import Traffic
from quantadvisor.profiling import measure, worker
from quantadvisor.profiling.measure import UNTOLD, measured_from_rounds, recorded, run_round
from quantadvisor.profiling.rapl import counters
from quantadvisor.profiling.workers import Phases, Steady

from ..advisor.documents import workload
from .fake_nvml import fake
from .test_rapl import package

TRAFFIC = Traffic(prompt_tokens=8_200, output_tokens=11, concurrency=2)
PROMPTS = np.arange(2 * 8_200).reshape(2, -1)
PREFILL_J, FILL_J, FIRST_J, STEP_J = 4.0, 100.0, 50.0, 2.5
BOARD = 3
"""Joules of the GPU for each of the CPU."""


class Spender:
    """A session that turns a counter, as it says above."""

    def __init__(self, spend: Callable[[float], None]) -> None:
        self.spend, self.steps = spend, 0

    def prefill(self, tokens: np.ndarray, capacity: int) -> np.ndarray:
        self.spend(PREFILL_J)
        return np.zeros((len(tokens), 4))

    def fill(self, batch: int, capacity: int) -> None:
        self.spend(FILL_J)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        self.spend(STEP_J if self.steps else FIRST_J)
        self.steps += 1
        return np.zeros((len(tokens), 4))


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], Any]:
    """What stands for a RunningWorker: the child's own code in this process, over a tree of RAPL's and a fake of NVML."""
    spent = [0.0]

    def spend(joules: float) -> None:
        spent[0] += joules
        package(tmp_path, "intel-rapl:0", round(spent[0] * 1e6))

    def counter(_: Any, out: Any) -> int:
        out._obj.value = round(BOARD * spent[0] * 1e3)
        return 0

    def running(gpu: bool) -> Any:
        spend(7.0)
        nvml = worker.load_file(Path(worker.__file__).with_name("nvml.py")) if gpu else None
        child = worker.Worker()
        child.session, child.memory = Spender(spend), worker.memory.Memory(nvml)

        def ask(tokens: np.ndarray, batch: int, steps: int, at: int = 0) -> Steady:
            np.save(tmp_path / "tokens.npy", tokens)
            return Steady.model_validate(child.steady(str(tmp_path / "tokens.npy"), batch, steps, at))

        return SimpleNamespace(steady=ask)

    monkeypatch.setattr(worker.energy.rapl, "counters", lambda: counters(tmp_path))
    monkeypatch.setattr(pynvml, "nvmlLib", fake(nvmlDeviceGetTotalEnergyConsumption=counter))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return running


@pytest.mark.parametrize("gpu", [False, True])
def test_a_token_is_of_decode_steps_alone_and_a_request_is_modelled(
    steady: Callable[[bool], Any], monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """Neither the copied cache nor the first step, which warms up, is in it."""
    monkeypatch.setattr(measure, "LEAST_BOARD_S", 0.0)
    assert recorded(TRAFFIC)
    made = run_round(steady(gpu), PROMPTS, TRAFFIC)
    every = 1 + BOARD if gpu else 1
    assert made.token_j == pytest.approx(every * STEP_J / 2)
    assert made.request_j == pytest.approx(every * (PREFILL_J + 10 * STEP_J / 2))
    found = measured_from_rounds([made], workload(traffic=TRAFFIC.model_dump()), [])
    assert found.token_j and found.request_j
    source = "RAPL, all CPU packages" + (" + NVML, the GPU's board (counter)" if gpu else "")
    assert (found.token_j.kind, found.token_j.source) == ("measured", f"{source}, decode steps alone")
    assert (found.request_j.kind, found.request_j.source) == ("modelled", f"{source}, one row's prefill and its tokens")


def test_what_is_lost_between_two_readings_of_the_board_is_not_told(steady: Callable[[bool], Any]) -> None:
    """These steps take no time at all: the CPU's joules alone would be half of the truth."""
    made = run_round(steady(True), PROMPTS, TRAFFIC)
    assert (made.request_j, made.token_j) == (None, None)
    assert made.gpu is not None
    assert "shorter than 1 s" in UNTOLD


def test_tokens_whose_prefill_is_not_told_have_energy_of_their_own(steady: Callable[[bool], Any]) -> None:
    seen = steady(False).steady(PROMPTS, 2, 3)
    untold = seen.model_copy(update={"prefill_row": seen.prefill_row.model_copy(update={"cpu_j": None})})
    assert measure.recorded_energy(untold, TRAFFIC) == (None, STEP_J / 2)
    assert measure.recorded_energy(steady(False).steady(PROMPTS, 2, 1), TRAFFIC) == (None, None)


def test_what_the_gpu_did_while_phases_were_looked_at_goes_with_them(steady: Callable[[bool], Any], tmp_path: Path) -> None:
    steady(True)  # its fake of NVML
    child = worker.Worker()
    child.memory = worker.memory.Memory(worker.load_file(Path(worker.__file__).with_name("nvml.py")))
    times = dict.fromkeys(("wall_s", "linears_s", "attention_s", "cache_s", "other_s"), 1.0)
    part = times | {"operators": [], "linears": 1, "quantized_linears": 0, "notes": []}
    child.session = SimpleNamespace(operators=lambda tokens, batch: {"prefill": part, "decode": part})
    np.save(tmp_path / "tokens.npy", PROMPTS)
    seen = Phases.model_validate(child.operators(str(tmp_path / "tokens.npy"), None)["phases"]).model_dump()
    gpu = phase_time("decode", seen["decode"], 1, 1, 8).gpu
    assert gpu and (gpu.sm_mhz, gpu.memory_mhz) == ((1410, 1410, 1410), 2619)
