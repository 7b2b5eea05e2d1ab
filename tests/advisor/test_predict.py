"""Prediction against planted machines whose times are known exactly."""

import random
from collections.abc import Callable, Sequence

import pytest

from quantadvisor.advisor.predict import Probes, at, kernel_family, predict, users_within, width_seconds
from quantadvisor.documents import Device, Ghost, KernelTiming
from quantadvisor.kernels import grid
from quantadvisor.kernels.homes import Home
from quantadvisor.kernels.point import Point
from quantadvisor.kernels.probe import probe_kernels
from quantadvisor.methods.schemes import scheme

from .documents import candidate, figure, workload
from .test_diagnose import INVENTORY

REST_S = 0.5
SECONDS = {"fp32": 4e-3, "w8-g64": 1e-3}


def kernels() -> list[KernelTiming]:
    return [
        KernelTiming(probe="p", scheme=scheme(name), runtime="onnxruntime", m=m, n=64, k=64, time_s=figure(seconds * m))
        for name, seconds in SECONDS.items()
        for m in (1, 512)
    ]


def ghost(name: str = "fp32") -> Ghost:
    """A runtime whose pass takes its linears (two of them, proportional to M) and REST_S."""
    linears = 2 * SECONDS[name]
    return Ghost(
        scheme=name,
        runtime="onnxruntime",
        depth=2,
        ttft_s=figure(linears * 512 + REST_S),
        tpot_s=figure(linears + REST_S),
        peak_bytes=10**9,
    )


def predicted(name: str, ghosts: list[Ghost]):
    probes = Probes(kernels(), INVENTORY, 0.5)
    return predict(candidate(name, 1.0), workload(), probes, ghosts, {k: scheme(k) for k in SECONDS})


def test_a_ghost_is_the_prediction_of_its_own_scheme() -> None:
    found = predicted("none-fp32@onnxruntime", [ghost()])
    assert found
    assert found.basis == "ghost"
    assert found.tpot_s == pytest.approx(2 * SECONDS["fp32"] + REST_S)


def test_another_scheme_exchanges_the_linears_only() -> None:
    found = predicted("rtn-w8-g64@onnxruntime", [ghost()])
    assert found
    assert found.tpot_s == pytest.approx(2 * SECONDS["w8-g64"] + REST_S)
    assert found.ttft_s == pytest.approx(2 * SECONDS["w8-g64"] * 512 + REST_S)
    assert found.peak_bytes is not None
    assert found.peak_bytes < 10**9


def test_probes_that_claim_more_than_the_whole_ghost_are_brought_down() -> None:
    fast = ghost().model_copy(update={"ttft_s": figure(1.0), "tpot_s": figure(1e-3)})  # its linears: 4.1 s and 8 ms by the probes
    found = predicted("rtn-w8-g64@onnxruntime", [fast])
    assert found
    assert found.ttft_s == pytest.approx(1.0 * SECONDS["w8-g64"] / SECONDS["fp32"])
    same = predicted("kv_int8-fp32-kv8@onnxruntime", [fast])
    assert same
    assert same.ttft_s == pytest.approx(1.0)


def test_the_ghost_of_the_same_kernel_class_is_taken_and_needs_no_exchange() -> None:
    slower = ghost("w8-g64").model_copy(update={"tpot_s": figure(0.9)})
    found = predicted("kv_int8-w8-g64-kv8@onnxruntime", [ghost(), slower])
    assert found
    assert found.tpot_s == pytest.approx(0.9)
    assert found.rough, "of a quantized cache the ghost knows nothing"
    weights = predicted("rtn-w8-g32@onnxruntime", [ghost(), slower])
    assert weights and not weights.rough


def test_a_runtime_with_the_kernels_of_another_is_predicted_through_it() -> None:
    loop = ghost().model_copy(update={"runtime": "onnxruntime-genai", "tpot_s": figure(1.1 * (2 * SECONDS["fp32"] + REST_S))})
    own = ghost("w8-g64").model_copy(update={"tpot_s": figure(0.7)})
    found = predicted("rtn-w8-g64@onnxruntime-genai", [ghost(), own, loop])
    assert found
    assert found.tpot_s == pytest.approx(1.1 * 0.7)
    alone = predicted("none-fp32@onnxruntime-genai", [ghost(), own, loop])
    assert alone
    assert alone.basis == "ghost"


def test_what_torch_compiles_calls_the_products_of_eager() -> None:
    assert kernel_family("torch", ("cuda", "compile")) == kernel_family("torch", ("cuda",)) == ("torch", "cuda")
    assert kernel_family("torch", ("compile",)) == ("torch", "")


def test_llama_cpp_on_a_gpu_runs_none_of_its_cpu_s_kernels() -> None:
    assert {kernel_family("llama.cpp", ("cuda", *more)) for more in ((), ("fa",), ("plain",))} == {("llama.cpp", "cuda")}
    assert kernel_family("llama.cpp", ("fa", "plain")) == ("llama.cpp", "plain")


def test_without_a_ghost_of_the_family_nothing_is_claimed() -> None:
    assert predicted("rtn-w8-g64@openvino+f32", [ghost()]) is None
    assert predicted("rtn-w8-g64@onnxruntime", [ghost().model_copy(update={"refused": "it crashed"})]) is None


def test_interpolation_is_log_log_and_beyond_it_proportional() -> None:
    points = [(1, 1.0), (4, 2.0), (256, 4.0)]
    assert at(points, 2) == pytest.approx(2**0.5)
    assert at(points, 1024) == pytest.approx(16.0)


def test_a_few_rows_do_not_tell_what_many_take() -> None:
    """The probes' budget ended before the 8-bit kernel was timed at the prompt's rows: its time there is the ghost's, not
    that of 4 rows times 128."""
    assert at([(1, 1.0), (4, 1.5)], 512) is None
    few = [k for k in kernels() if k.scheme.weights is None or k.m == 1]
    probes = Probes(few, INVENTORY, 0.5)
    found = predict(candidate("rtn-w8-g64@onnxruntime", 1.0), workload(), probes, [ghost()], {k: scheme(k) for k in SECONDS})
    assert found
    assert found.ttft_s == pytest.approx(2 * SECONDS["fp32"] * 512 + REST_S)
    assert found.tpot_s == pytest.approx(2 * SECONDS["w8-g64"] + REST_S)


def test_users_against_the_closed_form() -> None:
    spec = workload(traffic={"prompt_tokens": 1000, "output_tokens": 24, "concurrency": 8}, memory_limit_gib=1)
    row = 256 * 4 * 1024
    assert users_within(INVENTORY, scheme("fp32"), "onnxruntime", spec, 0, 10 * row) == 18
    assert users_within(INVENTORY, scheme("fp32"), "openvino", spec, 0, 10 * row) == 28


def test_the_ghost_of_the_nearest_bits_carries_a_mixture() -> None:
    """4 and 8 bits mixed: from the 8-bit ghost, not from the fp32 one, of which the probes would have to bridge 4x."""
    eight = ghost("w8-g64").model_copy(update={"tpot_s": figure(0.7)})
    probes = Probes([*kernels(), *four_bits()], INVENTORY, 0.5)
    schemes = {k: scheme(k) for k in SECONDS}
    found = predict(candidate("mixed-w4w8-g64@onnxruntime", 1.0), workload(), probes, [ghost(), eight], schemes)
    assert found
    assert found.tpot_s == pytest.approx(0.7 - 0.5 * 2 * (SECONDS["w8-g64"] - 0.5e-3))


def four_bits() -> list[KernelTiming]:
    return [
        KernelTiming(probe="p", scheme=scheme("w4-g64"), runtime="onnxruntime", m=m, n=64, k=64, time_s=figure(0.5e-3 * m))
        for m in (1, 512)
    ]


def test_what_a_width_takes_of_a_request_is_its_prefill_and_its_decode_steps() -> None:
    found = width_seconds([*kernels(), *four_bits()], workload())
    steps = 512 + 127
    assert found == {(64, 64, 4): pytest.approx(0.5e-3 * steps), (64, 64, 8): pytest.approx(SECONDS["w8-g64"] * steps)}
    elsewhere = [timing.model_copy(update={"runtime": "openvino"}) for timing in four_bits()]
    assert width_seconds(elsewhere, workload()) == {}
    assert width_seconds([timing for timing in four_bits() if timing.m == 1], workload()) == {}  # its prefill is not known
    assert width_seconds(four_bits(), workload(objective="concurrency")) == {}


def test_a_runtime_without_probes_is_predicted_where_the_linears_are_the_same() -> None:
    alone = ghost("w8-g64").model_copy(update={"runtime": "llama.cpp", "tpot_s": figure(0.7)})
    found = predicted("kv_int8-w8-g64-kv8@llama.cpp", [alone])
    assert found
    assert found.tpot_s == pytest.approx(0.7)
    assert predicted("none-fp32@llama.cpp", [alone]) is None


def test_a_mixture_lies_between_the_ghosts_of_its_halves() -> None:
    halves = [
        ghost("w8-g64"),
        ghost("w8-g64").model_copy(update={"scheme": "w4-g64", "ttft_s": figure(0.3), "tpot_s": figure(0.4)}),
    ]
    schemes = {k: scheme(k) for k in (*SECONDS, "w4-g64")}
    probes = Probes(kernels(), INVENTORY, 0.25)
    found = predict(candidate("mixed-w4w8-g64@onnxruntime", 1.0), workload(), probes, halves, schemes)
    assert found
    assert found.tpot_s == pytest.approx(0.75 * 0.4 + 0.25 * (2 * SECONDS["w8-g64"] + REST_S))
    assert found.ttft_s == pytest.approx(0.75 * 0.3 + 0.25 * (2 * SECONDS["w8-g64"] * 512 + REST_S))


def test_llm_int8_has_a_product_more_than_plain_w8a8_and_only_its_own_ghost_shows_it() -> None:
    def ran(name: str, tpot_s: float) -> Ghost:
        return ghost().model_copy(update={"scheme": name, "tpot_s": figure(tpot_s)})

    known = {name: scheme(name) for name in ("fp32", "w8a8", "w8a8-outlier")}
    probes = Probes(kernels(), INVENTORY, 0.5)

    def tpot(name: str, *ghosts: Ghost) -> float | None:
        found = predict(candidate(name, 1.0), workload(), probes, ghosts, known)
        return found.tpot_s if found else None

    plain, split = ran("w8a8", 0.5), ran("w8a8-outlier", 0.6)
    assert tpot("llm_int8-w8a8-outlier@onnxruntime", plain) is None
    assert tpot("llm_int8-w8a8-outlier@onnxruntime", plain, split) == 0.6
    assert tpot("dynamic_int8-w8a8@onnxruntime", split, plain) == 0.5
    assert tpot("dynamic_int8-w8a8@onnxruntime", split) is None


def test_a_ghost_of_the_same_linears_comes_before_one_of_the_same_bits() -> None:
    """FP8 and INT8 weights have as many bits, and other kernels."""
    ghosts = [
        Ghost(scheme=name, runtime="vllm", depth=1, ttft_s=figure(1.0), tpot_s=figure(tpot), peak_bytes=1)
        for name, tpot in (("w8a8-bf16", 0.02), ("fp8-bf16", 0.01))
    ]
    schemes = {name: scheme(name) for name in ("w8a8-bf16", "fp8-bf16")}
    probes = Probes((), INVENTORY, 0.5)
    found = predict(candidate("kv_fp8-fp8-bf16-kvf8-unit@vllm", 1.0), workload(), probes, ghosts, schemes)
    assert found
    assert (found.tpot_s, found.kernels) == (0.01, "measured")


PLANTED: dict[str, Callable[[int], float]] = {
    "fp32_onnxruntime": lambda m: max(8.0, m / 4),
    "w8_onnxruntime": lambda m: max(2.0, -(-m // 32) * 8.0),  # tiles of 32 rows
    "w4_onnxruntime": lambda m: max(1.0, m / 8) * (1 if m < 24 else 3),  # dequantizes from 24 rows on
    "w8a8_onnxruntime": lambda m: 2.2 + m / 16 + (20 if m >= 100 else 0),  # another algorithm from 100 rows on
}
"""Probe → microseconds for each row of the weight at M rows."""
DEVICE = Device(name="x", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f", last_level_cache_bytes=1 << 20)
SPREAD = 0.02
GRID = (1, 4, 16, 64, 256, 1024, 4096)


def probed(monkeypatch: pytest.MonkeyPatch, ms: Sequence[int], extra: Sequence[int], whole: bool) -> tuple[KernelTiming, ...]:
    """The sweep over planted kernels, all of the grid or what it finds necessary."""

    def take(self: Home, points: Sequence[Point], end: float) -> list[KernelTiming]:
        noise = random.Random(repr([(point.kernel.name, point.m, point.shape.n) for point in points]))
        found = []
        for point in points:
            true = PLANTED[point.kernel.name](point.m) * point.shape.n * 1e-6
            samples = tuple(sorted(true * (1 + SPREAD * noise.uniform(-1, 1)) for _ in range(9)))
            time_s = figure(samples[4]).model_copy(update={"low": samples[2], "high": samples[6], "samples": samples})
            found.append(point.timing(time_s=time_s))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Home, "take", take)
        patched.setattr(Home, "begin_import", lambda self: None)
        patched.setattr(Home, "end_import", lambda self, end: None)
        if whole:
            patched.setattr(grid, "clear", lambda times, m: False)
            patched.setattr(grid, "beaten", lambda times, m, rivals: False)
        return probe_kernels(INVENTORY.linears, ms, DEVICE, probes=PLANTED, extra_ms=extra, budget_s=60)


def timed(kernels: Sequence[KernelTiming]) -> int:
    return sum(1 for one in kernels if one.time_s and one.time_s.samples)


SCHEMES = ("fp32", "w8-g64", "w4-g64", "w8a8")


def test_predictions_from_the_points_that_are_timed_are_those_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run probes: the ends, and between them what is not clear. Every scheme's linears, at any M between."""
    ms, extra = (1, 2048), (4, 16, 64, 256, 512)
    some, every = (probed(monkeypatch, ms, extra, whole) for whole in (False, True))
    assert timed(some) < 0.85 * timed(every)
    sparse, full = (Probes(kernels, INVENTORY, 0.5) for kernels in (some, every))
    for name in SCHEMES:
        for m in (1, 2, 4, 16, 40, 64, 200, 256, 512, 1000, 2048):
            a, b = (probes.linears_s(scheme(name), "onnxruntime", (), m, 1) for probes in (sparse, full))
            assert a is not None
            assert b is not None
            assert a == pytest.approx(b, rel=grid.CLEAR - 1), (name, m)
        first, second = (
            predict(candidate(f"rtn-{name}@onnxruntime", 1.0), workload(), probes, [ghost()], {k: scheme(k) for k in SCHEMES})
            for probes in (sparse, full)
        )
        assert first
        assert second
        assert first.ttft_s == pytest.approx(second.ttft_s, rel=grid.CLEAR - 1)
        assert first.tpot_s == pytest.approx(second.tpot_s, rel=grid.CLEAR - 1)


def test_kernels_that_are_surely_slower_are_left_and_the_winner_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    some, every = (probed(monkeypatch, GRID, (), whole) for whole in (False, True))
    assert timed(some) < 0.85 * timed(every)
    by_place = {(one.probe, one.n, one.m): one.time_s for one in every if one.time_s}
    for one in some:
        truly = by_place[one.probe, one.n, one.m]
        assert one.time_s, "nothing is left open"
        assert one.time_s.low / grid.CLEAR <= truly.median <= one.time_s.high * grid.CLEAR, (one.probe, one.m)
        if one.time_s.kind == "modelled":
            assert "interpolated between" in one.time_s.source
    for n in {one.n for one in every}:
        for m in GRID:
            sparse, full = (
                {one.probe: one.time_s.median for one in kernels if (one.n, one.m) == (n, m) and one.time_s}
                for kernels in (some, every)
            )
            if not full:
                continue
            winner = min(sparse, key=lambda probe: sparse[probe])
            assert full[winner] <= grid.CLEAR * min(full.values()), (n, m, winner)
