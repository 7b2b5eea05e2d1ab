"""`make bench`: bars that a row holds or does not. The runs themselves are real."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("total", "holds"), [(1.14, False), (1.15, True)])
def test_summarize_says_which_runtimes_competed(bench: ModuleType, total: float, holds: bool) -> None:
    candidates = [SimpleNamespace(name=f"x@{runtime}", runtime=runtime, refused=refused)
                  for runtime, refused in (("torch", None), ("vllm", None), ("openvino", "not installed"))]  # fmt: skip
    verdict = SimpleNamespace(speedup=SimpleNamespace(total=total), choice="x@vllm")
    ((_, bar, seen, found),) = bench.summarize({"summarize": SimpleNamespace(verdict=verdict, candidates=candidates)})
    assert (bar, seen, found) == ("≥ 1.15x", f"{total:.2f}x, x@vllm, of torch, vllm", holds)


@pytest.mark.parametrize(("total", "holds"), [(2.19, False), (2.2, True), (None, False)])
def test_long_context_s_step_is_over_the_baseline(bench: ModuleType, total: float | None, holds: bool) -> None:
    faster = None if total is None else SimpleNamespace(total=total)
    verdict = SimpleNamespace(capacity=None, decode_speedup=faster, choice=None)
    *_, (what, bar, _, found) = bench.long_context({"long_context": SimpleNamespace(verdict=verdict, candidates=[])})
    assert "over torch bf16" in what
    assert (bar, found) == ("≥ 2.2x", holds)


@pytest.mark.parametrize(
    ("cold_s", "cached_s", "untimed", "holds"), [(59, 4, 0, True), (61, 4, 0, False), (59, 6, 0, False), (59, 4, 1, False)]
)
def test_a_probe_that_left_points_out_is_not_in_time(
    bench: ModuleType, cold_s: float, cached_s: float, untimed: int, holds: bool
) -> None:
    ((_, _, seen, found),) = bench.kernel_probe(bench.Probing(cold_s=cold_s, cached_s=cached_s, untimed=untimed))
    assert f"{untimed} points not reached" in seen
    assert found is holds
