"""Live gates on workers with a virtual clock: what is decided, what is rejected, what breaks."""

import site
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor import gate_blocks, gate_open, gate_watch, stored_graphs
from quantadvisor.advisor import gate_live as gate_live_module
from quantadvisor.advisor.gate_blocks import SIDES, Block, paired_times, run_blocks
from quantadvisor.advisor.gate_inspect import Output, incoherent, output_metric, scored_metrics
from quantadvisor.advisor.gate_live import Live, gate_live
from quantadvisor.advisor.gate_sides import Side, differing, versions
from quantadvisor.advisor.gate_texts import Texts
from quantadvisor.advisor.gate_watch import Snapshot, cpu_clock, disturbance, gpu_clocks, machine_s, opened_nvml
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import BadInput, CandidateFailed, Device, Gate
from quantadvisor.profiling.workers import Generated

from .documents import workload
from .noises import NOISES, Noise
from .test_checkpoint import products_folder
from .test_prove import RUNTIME

TTFT_S, ITL_S = 0.2, 0.01
PROMPTS = np.arange(8, dtype=np.int64)[None]
WINDOWS = np.zeros((4, 64), np.int64)
DEVICE = Device(name="virtual", cores=2, threads=2, memory_bytes=1 << 30, fingerprint="f")
OPERATORS = {"name": "MatMulNBits", "count": 9, "provider": "CPU", "linear": True, "quantized": True}


class VirtualWorker:
    """Answers as a worker does, at once: its times are drawn. `faults` say what is wrong with it."""

    def __init__(self, rng: np.random.Generator, **faults: Any) -> None:
        self.rng, self.faults, self.pid, self.asked = rng, faults, 0, 0

    def __enter__(self) -> "VirtualWorker":
        if self.faults.get("no_load"):
            raise CandidateFailed("this artifact is made for another runtime")
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def ready(self) -> None:
        if self.faults.get("no_runtime"):
            raise CandidateFailed("No module named 'onnxruntime'")

    def drawn(self, seconds: float) -> float:
        """`machine`: log times of the machine's runs, one after the other, that both sides share."""
        machine = self.faults.get("machine")
        if machine is not None:
            return float(seconds * np.exp(next(machine)))
        return float(seconds * np.exp(self.rng.normal(0, self.faults.get("spread", 0.01))))

    def generate(self, tokens: np.ndarray, output_tokens: int) -> Generated:
        self.asked += 1
        if self.asked > self.faults.get("dies_after", 1e9):
            raise CandidateFailed("the worker died (signal SIGSEGV)")
        gap = self.drawn(ITL_S * self.faults.get("slower", 1.0))
        row = [5] * output_tokens if self.faults.get("stuck") else list(range(output_tokens))
        peak = int(1e8 * self.faults.get("memory", 1.0))
        first = self.drawn(TTFT_S * self.faults.get("slower_first", 1.0))
        return Generated(ttft_s=first, itl_s=[gap] * (output_tokens - 1), generated=[row], peak_bytes=peak)

    def operators(self, tokens: np.ndarray, batch: int | None) -> dict[str, Any]:
        name = self.faults.get("operator", "MatMulNBits")
        phase = {"operators": [OPERATORS | {"name": name}], "linears": 9, "quantized_linears": 9, "notes": []}
        return {"prefill": phase, "decode": phase}

    def write_reference(self, windows: np.ndarray, out: Any) -> None:
        out.write_bytes(b"")

    def score(self, windows: np.ndarray, reference: Any, chunk: int | None) -> np.ndarray:
        text = np.random.default_rng(0).exponential(2.0, windows.size)
        nll = text + self.faults.get("nll", 0.0) + 0.001 * self.rng.normal(size=windows.size)
        nll[63::64] = np.nan
        return np.stack([nll, np.full(windows.size, 0.01), np.ones(windows.size)])


def live(seed: int = 1, budget_s: float = 20.0, sizes: tuple[int, int] = (5, 5), baseline: Any = None, **faults: Any) -> Live:
    rng = np.random.default_rng(seed)
    starts: Any = (lambda: VirtualWorker(rng, **(baseline or {})), lambda: VirtualWorker(rng, **faults))
    made = workload(traffic={"prompt_tokens": 8, "output_tokens": 16, "concurrency": 1})
    return Live(
        named=("a", "b"), starts=starts, prompts=PROMPTS, workload=made, device=DEVICE, sizes=sizes, windows=WINDOWS,
        budget_s=budget_s, seed=seed,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own load is not what is tested here."""
    monkeypatch.setattr(gate_blocks, "disturbance", lambda before, after: None)


def failed(gate: Gate) -> list[str]:
    return [m.name for m in gate.metrics if m.state == "regression"]


def test_the_same_thing_passes_within_a_few_blocks() -> None:
    gate = gate_live(live())
    assert gate.exit_code == 0
    assert 12 <= gate.blocks <= 40
    tpot = next(m for m in gate.metrics if m.name == "tpot_s")
    assert tpot.self_against_self is not None
    assert tpot.noise_floor is not None
    assert len(tpot.log_ratios) == gate.blocks
    assert {m.name for m in gate.metrics if m.kind == "time"} == {"ttft_s", "tpot_s", "itl_s"}


def test_a_slower_decode_is_caught_and_a_slower_prefill_too() -> None:
    gates = [gate_live(live(seed, slower=1.05)) for seed in range(10)]
    assert [gate.exit_code for gate in gates] == [1] * 10
    assert all({"tpot_s", "itl_s"} & set(failed(gate)) for gate in gates)
    assert "ttft_s" in failed(gate_live(live(slower_first=1.05)))


def test_false_alarms_of_whole_gates_are_rare() -> None:
    assert [seed for seed in range(60) if gate_live(live(seed)).exit_code == 1] == []


@pytest.mark.parametrize("noise", NOISES)
def test_whole_gates_on_every_kind_of_noise(noise: Noise) -> None:
    """The same noise as in test_gate_rates.py, through workers, blocks and documents: no false alarm; 8 % never passes."""
    for seed in range(3):
        alike, slower = (iter(noise(np.random.default_rng(seed + n), (1, 20_000))[0]) for n in (0, 100))
        same = gate_live(live(seed, 0.3, baseline={"machine": alike}, machine=alike))
        assert same.exit_code in (0, 4)
        assert gate_live(live(seed, 0.3, baseline={"machine": slower}, machine=slower, slower=1.08)).exit_code in (1, 4)


def test_too_noisy_for_the_time_is_inconclusive_and_says_how_many_blocks_more() -> None:
    gate = gate_live(live(budget_s=0.05, baseline={"spread": 0.6}, spread=0.6))
    assert gate.exit_code == 4
    assert any(m.more_blocks and m.more_blocks > 10 for m in gate.metrics)


@pytest.mark.parametrize(
    ("faults", "names"),
    [
        ({"operator": "MatMul"}, ["prefill_operators", "decode_operators"]),
        ({"memory": 1.03}, ["peak_bytes"]),
        ({"nll": 0.05}, ["nll"]),
        ({"no_load": True}, ["runs"]),
        ({"dies_after": 3}, ["runs"]),
    ],
)
def test_what_the_clock_does_not_notice(faults: dict[str, Any], names: list[str]) -> None:
    gate = gate_live(live(**faults))
    assert gate.exit_code == 1
    assert failed(gate) == names


def test_a_larger_artifact_is_a_regression_and_a_smaller_one_is_not() -> None:
    assert failed(gate_live(live(sizes=(5, 6)))) == ["artifact_bytes"]
    assert gate_live(live(sizes=(6, 5))).exit_code == 0


def test_a_side_that_this_cpu_saturates_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline with 7 bits of weight, a candidate with 8."""
    monkeypatch.setattr(stored_graphs, "saturates", lambda: True)
    monkeypatch.setattr(gate_open, "texts_of", lambda *_: Texts(PROMPTS, None, None, ("quality was not compared",)))
    monkeypatch.setattr(gate_open, "versions", lambda *_: {})
    folders = [products_folder(tmp_path / name, largest) for name, largest in (("seven", 63), ("eight", 127))]
    sides = [Side(folder, "onnxruntime", (), sys.executable, tmp_path) for folder in folders]
    asked: Any = SimpleNamespace(sides=("seven", "eight"), quality="none")
    made = gate_open.artifacts_live(asked, sides, workload(), DEVICE, Quiet())
    assert [note.partition(" multiply")[0] for note in made.notes] == ["quality was not compared", "candidate: 3 linears"]


def test_incoherent_output_is_anomalous() -> None:
    assert gate_live(live(stuck=True)).exit_code == 3
    assert output_metric("b", tuple(range(32)), tuple(range(30))).state == "anomalous"
    assert output_metric("b", (5,) * 32, (5,) * 32).state == "pass"


@pytest.mark.parametrize(
    ("output", "least", "said"),
    [
        ((*range(8), *(5, 6) * 12), 16, True),
        ((*range(9), *(5, 6) * 12), 16, False),
        ((5,) * 15, 16, False),
        (("Paris", ".", "The", "The", "The", "The"), 6, True),
        (("Paris", ".", "The", "city", "of", "light"), 6, False),
        (("of",) * 5, 6, False),
    ],
)
def test_the_half_that_may_be_sane_before_an_output_repeats_itself(output: Output, least: int, said: bool) -> None:
    """Of a long one the first eight tokens."""
    assert incoherent(output, least) is said


@pytest.mark.parametrize("faults", [{"no_load": True}, {"no_runtime": True}, {"dies_after": 3}])
def test_a_baseline_that_does_not_run_is_bad_input(faults: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="baseline"):
        gate_live(live(baseline=faults))


def test_a_budget_that_was_asked_for_and_holds_too_few_blocks_contradicts_alpha() -> None:
    slow = replace(live(budget_s=1e-9), budget_asked=True)
    with pytest.raises(
        BadInput, match=r"^--time-budget: 1e-09 s ended after 1 blocks, and at --alpha 0\.01 none .* before 12; give"
    ):
        gate_live(slow)
    assert gate_live(replace(slow, budget_asked=False)).exit_code == 4
    starts = live(operator="MatMul").starts
    assert gate_live(replace(slow, starts=starts)).exit_code == 1  # what needs no clock is said all the same


def test_an_environment_without_the_runtime_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"candidate \(b\): its runtime does not load: No module"):
        gate_live(live(no_runtime=True))


def test_one_artifact_runs_in_two_environments_and_what_differs_is_named(tmp_path: Path) -> None:
    """A virtual environment that sees our packages and has another version of one of them, as an upgrade would."""
    venv.create(tmp_path / "env", symlinks=True)
    packages = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()))
    (packages / "openvino-99.0.dist-info").mkdir()
    (packages / "openvino-99.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: openvino\nVersion: 99.0\n")
    pythons = (sys.executable, str(tmp_path / "env" / "bin" / "python"))
    sides = [Side(tmp_path, "virtual", (), python, RUNTIME) for python in pythons]
    factors = list(differing(*(versions(where, side) for where, side in zip(SIDES, sides, strict=True))))
    assert [(one.name, one.candidate) for one in factors] == [("openvino", "99.0")]
    for python, side in zip(pythons, sides, strict=True):
        with side.start(1) as worker:
            assert Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")[0].decode() == python
            assert len(worker.generate(PROMPTS, 4).generated[0]) == 4


def blocks(take: Callable[[Sequence[int]], Snapshot], count: int = 13) -> tuple[list[Block], list[VirtualWorker]]:
    rng, started = np.random.default_rng(3), list[VirtualWorker]()

    def start() -> Any:
        started.append(VirtualWorker(rng))
        return started[-1]

    traffic = workload(traffic={"prompt_tokens": 8, "output_tokens": 16, "concurrency": 1}).traffic
    made = run_blocks(
        (start, start), PROMPTS, traffic, seed=3, budget_s=60, decided=lambda b: len(b) >= count, take=take
    )  # fmt: skip
    return made.blocks, started


def test_orders_are_a_fair_coin_and_processes_are_fresh() -> None:
    made, started = blocks(gate_watch.snapshot, 40)
    assert len(made) == 40
    assert 10 <= sum(block.order == "ABBA" for block in made) <= 30
    assert {block.order for block in made} == {"ABBA", "BAAB"}
    assert len(started) == 2 * 40
    assert [block.baseline[0].block for block in made] == list(range(40))
    rounds = len(made[0].baseline)
    assert rounds % 2 == 0
    assert {len(side) for block in made for side in (block.baseline, block.candidate)} == {rounds}


def test_disturbed_blocks_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))

    def take(pids: Sequence[int]) -> Snapshot:
        tick = next(clock)
        busy = 0.9 * tick if 4 <= tick < 8 else 0.0
        return Snapshot(float(tick), busy, 0.0, 0)

    monkeypatch.setattr(gate_blocks, "disturbance", disturbance)
    made, _ = blocks(take)
    rejected = [block.disturbed for block in made if block.disturbed]
    assert rejected
    assert all("cores" in reason for reason in rejected)
    times = paired_times(made)["tpot_s"]
    assert len(times.log_ratios) == len(made) - len(rejected)


def test_disturbance_names_its_cause() -> None:
    calm = Snapshot(0.0, 10.0, 5.0, 0)
    assert disturbance(calm, Snapshot(2.0, 14.0, 8.9, 0)) is None
    assert disturbance(calm, Snapshot(2.0, 14.0, 6.0, 0)) == "others used 1.50 cores"
    assert "throttled 2 times" in str(disturbance(calm, Snapshot(2.0, 10.0, 5.0, 2)))
    assert disturbance(calm._replace(machine_s=None), calm) is None
    fast = calm._replace(clocks_mhz={"CPU": 3000.0, "GPU 0": 1900.0})
    assert disturbance(fast, calm._replace(clocks_mhz={"CPU": 2900.0, "GPU 0": 1800.0})) is None
    assert disturbance(fast, calm._replace(clocks_mhz={"CPU": 2950.0, "GPU 0": 1200.0})) == (
        "the clock of GPU 0 fell from 1900 to 1200 MHz"
    )
    assert disturbance(calm, calm._replace(clocks_mhz={"CPU": 1000.0})) is None  # the first block has nothing before it
    assert disturbance(calm, calm._replace(slowdowns=("GPU 0: power brake",))) == "slowed down: GPU 0: power brake"


def test_a_clock_that_falls_and_stays_low_costs_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))

    def take(pids: Sequence[int]) -> Snapshot:
        tick = next(clock)
        return Snapshot(float(tick), None, 0.0, 0, {"CPU": 3000.0 if tick < 7 else 2400.0})

    monkeypatch.setattr(gate_blocks, "disturbance", disturbance)
    made, _ = blocks(take)
    assert [i for i, block in enumerate(made) if block.disturbed] == [3]
    assert "from 3000 to 2400 MHz" in str(made[3].disturbed)


def test_clocks_are_read_where_they_are_told(tmp_path: Path) -> None:
    assert cpu_clock(tmp_path) == {}
    for core, kilohertz in (("cpu0", "3000000\n"), ("cpu1", "2000000\n"), ("cpu2", "gone\n")):
        (tmp_path / core / "cpufreq").mkdir(parents=True)
        (tmp_path / core / "cpufreq" / "scaling_cur_freq").write_text(kilohertz)
    assert cpu_clock(tmp_path) == {"CPU": 2500.0}


def test_what_cannot_be_watched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_watch, "CPUS", tmp_path)
    assert gate_watch.unwatched()[-2:] == ("the CPU's clock", "thermal throttling of the CPU")
    (tmp_path / "cpu0" / "thermal_throttle").mkdir(parents=True)
    (tmp_path / "cpu0" / "thermal_throttle" / "core_throttle_count").write_text("0")
    (tmp_path / "cpu0" / "cpufreq").mkdir()
    (tmp_path / "cpu0" / "cpufreq" / "scaling_cur_freq").write_text("3000000")
    assert not {"the CPU's clock", "thermal throttling of the CPU"} & set(gate_watch.unwatched())


class Nvml:
    """Two GPUs, of which the second does not answer."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception): ...

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 1:
            raise self.NVMLError
        return index

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return 0x04 | 0x40  # a power cap, which is normal, and heat, which is not

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1410


def test_gpu_clocks_come_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    opened_nvml.cache_clear()
    try:
        assert list(gpu_clocks()) == [("GPU 0", 1410.0, ("hardware thermal",))]
        seen = gate_watch.snapshot([])
        assert seen.clocks_mhz["GPU 0"] == 1410.0
        assert "hardware thermal" in str(disturbance(seen, seen))
    finally:
        opened_nvml.cache_clear()


def test_faster_and_better_than_the_full_model_is_anomalous(tmp_path: Path) -> None:
    """The fp32 model gives every token 0.1; the candidate, twice as fast, models it at e^-1.5: another text, or a leak."""
    from dataclasses import replace

    reference = tmp_path / "reference.npy"
    np.save(reference, np.full((WINDOWS.size, 4), np.log(0.1), np.float16))
    honest = replace(live(slower=0.5), reference=reference)
    assert gate_live(honest).exit_code == 0
    made = gate_live(replace(live(slower=0.5, nll=-1.0, baseline={"nll": 0.4}), reference=reference))
    assert made.exit_code == 3
    assert "better than the fp32 model" in next(m.reason for m in made.metrics if m.name == "tpot_s")


def test_faster_than_weights_can_be_read_is_anomalous(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 10 GB/s a quarter of 1 GB takes 25 ms; the candidate's step takes 5."""
    from dataclasses import replace

    monkeypatch.setattr(gate_live_module, "reading_rate", lambda: 1e10)
    device = DEVICE.model_copy(update={"last_level_cache_bytes": 32 << 20})
    fast = replace(live(slower=0.5), device=device, read_bytes=1_000_000_000)
    made = gate_live(fast)
    assert made.exit_code == 3
    assert "weights" in next(m.reason for m in made.metrics if m.name == "tpot_s")
    assert gate_live(replace(fast, read_bytes=100_000_000)).exit_code == 0
    assert gate_live(replace(fast, read_bytes=60 << 20)).exit_code == 0  # within two caches: nobody can know
    monkeypatch.setattr(gate_live_module, "reading_rate", lambda: pytest.fail("asked although nothing got faster"))
    assert gate_live(replace(live(), device=device, read_bytes=1_000_000_000)).exit_code == 0


def test_the_machines_time_is_read_where_it_is_told(tmp_path: Any) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 900 50 0 0 100 0 0\ncpu0 1 2 3\n")
    assert machine_s(stat) == pytest.approx(3.0)
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    assert machine_s(stat) is None
    assert machine_s(tmp_path / "absent") is None


def test_quality_is_paired_on_the_same_tokens() -> None:
    rng = np.random.default_rng(0)
    before = np.stack([rng.exponential(3.0, 4096), rng.exponential(0.01, 4096), np.ones(4096)])
    after = before + np.array([[0.0], [0.004], [0.0]]) + rng.normal(0, 1e-4, (3, 4096))
    after[2] = before[2]
    states = {m.name: m.state for m in scored_metrics("b", before, after, True)}
    assert states == {"nll": "pass", "kl": "regression", "top1": "pass"}
    after[2, ::50] = 0
    assert {m.name: m.state for m in scored_metrics("b", before, after, True)}["top1"] == "regression"
    assert [m.name for m in scored_metrics("b", before, after, False)] == ["nll"]
    assert all(m.state == "pass" for m in scored_metrics("b", before, before, True))


def test_quality_does_not_pass_for_want_of_tokens() -> None:
    """Both of one quality, on so few tokens that one might be 2 % of perplexity worse; on many more the same passes."""
    rng = np.random.default_rng(1)

    def state(tokens: int) -> str:
        before = np.stack([rng.exponential(3.0, tokens), np.zeros(tokens), np.ones(tokens)])
        after = before + np.stack([rng.normal(0, 1.0, tokens), np.zeros(tokens), np.zeros(tokens)])
        return next(m.state for m in scored_metrics("b", before, after, False) if m.name == "nll")

    assert state(256) == "inconclusive"
    assert state(1 << 17) == "pass"
