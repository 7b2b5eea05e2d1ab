"""The build script opens kernel tables and data sheets only, and its rules leave out what they say."""

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "build_kernel_tables.py"
OUT = ROOT / "kernels" / "gpu"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_kernel_tables", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("systems/h100_sxm.yaml", True),
        ("systems/data/h100_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", True),
        ("systems/data/h100_sxm/trtllm/1.0.0rc3/gemm_perf.txt", True),
        ("systems/data/l40s/comm/nccl/2.27.3/nccl_perf.parquet", True),
        ("systems/data/b200_sxm/attention/trtllm/1.3.0rc20/generation_attention_perf.parquet", True),
        ("systems/support_matrix.csv", False),
        ("systems/data/h100_sxm/e2e/vllm/0.24.0/serving_perf.parquet", False),
        ("systems/data/h100_sxm/silicon/vllm/0.24.0/agg_perf.parquet", False),
        ("validation/serving_points.csv", False),
        ("eval/gemm_perf.parquet", False),
        ("systems/data/h100_sxm/gemm/vllm/0.24.0/../../../e2e/gemm_perf.parquet", False),
    ],
)
def test_the_list_of_files(build: ModuleType, path: str, allowed: bool) -> None:
    assert bool(build.ALLOWED.fullmatch(path)) == allowed


def test_nothing_else_is_opened(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PermissionError, match="not on the list"):
        build.columns_of(tmp_path, "points.csv")
    reads = {"read_table", "open", "read_text", "read_bytes", "load", "loadtxt", "genfromtxt", "read_csv", "read_parquet"}
    where = {}
    for function in (node for node in ast.parse(SCRIPT.read_text()).body if isinstance(node, ast.FunctionDef)):
        called = {n.func.attr for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        if called & reads:
            where[function.name] = called & reads
    assert where == {"columns_of": {"read_table", "open"}, "devices": {"read_text"}}


def test_rules(build: ModuleType) -> None:
    columns = {"m": np.array([16, 256, 512, 4096])}
    kept = [
        [bool(keep) for keep in ~sum(rule(runtime, scheme, columns) for rule in build.RULES).astype(bool)]
        for runtime, scheme in (
            ("vllm", "fp8-block"),
            ("sglang", "fp8-block"),
            ("sglang", "w8a16"),
            ("trtllm", "w4a16"),
            ("vllm", "bf16"),
        )
    ]
    assert kept == [[False, False, False, True], [True] * 4, [False] * 4, [True, True, False, False], [True] * 4]


def test_a_grid_comes_back(build: ModuleType) -> None:
    from quantadvisor.kernels.gpu_tables import looked, read_grid

    columns = {"m": np.array([1, 8, 8]), "n": np.array([256, 256, 512]), "seconds": np.array([3.1e-6, 4.7e-6, 0.02])}
    grid = read_grid({f"x/{name}": value for name, value in build.packed(columns).items()}, "x")
    assert looked(grid, (8, 512)).seconds == pytest.approx(0.02, rel=3e-4)  # type: ignore[union-attr]
    assert looked(grid, (1, 256)).seconds == pytest.approx(3.1e-6, rel=3e-4)  # type: ignore[union-attr]
    assert looked(grid, (1, 512)) is None


def test_the_share_of_a_cache_is_that_of_streamed_grouped_ones(build: ModuleType) -> None:
    """Large caches at 0.75 of a bandwidth of 1e12; small ones and those of ungrouped queries, at other speeds, do not count."""
    batch, context, kept = np.array([64, 256, 64, 1, 64]), np.array([8192, 8192, 16384, 128, 8192]), 8
    heads = np.array([32, 64, 32, 32, 8])
    size = batch * context * 2.0 * kept * 128
    seconds = size / 1e12 / np.array([0.75, 0.75, 0.75, 0.01, 0.3])
    columns = {"batch_size": batch, "context": context, "num_heads": heads, "num_key_value_heads": np.full(5, kept),
               "seconds": seconds}  # fmt: skip
    assert build.cache_share({"read_bytes_per_s": 1e12}, "128 8", columns) == 0.75


def test_newest_first(build: ModuleType) -> None:
    assert sorted(["1.0.0rc3", "1.0.0", "0.24.0", "1.3.0rc20", "0.5.14"], key=build.number_of) == [
        "0.5.14", "0.24.0", "1.0.0rc3", "1.0.0", "1.3.0rc20",
    ]  # fmt: skip


def test_the_extract() -> None:
    """At most 4 MiB with licence and notice, and the medians that the facts name (fractions of large products)."""
    assert sum(path.stat().st_size for path in OUT.iterdir()) <= 4 << 20
    assert "Apache License" in (OUT / "LICENSE").read_text()
    assert "filtered" in (OUT / "NOTICE").read_text()
    reached = json.loads((OUT / "fractions.json").read_text())
    assert 0.78 <= reached["h100_sxm"]["bf16"]["read"] <= 0.88
    assert 0.70 <= reached["h100_sxm"]["bf16"]["peak"] <= 0.82
    assert 0.45 <= reached["h100_sxm"]["fp8"]["peak"] <= 0.58
    assert 0.34 <= reached["b200_sxm"]["nvfp4"]["peak"] <= 0.42
