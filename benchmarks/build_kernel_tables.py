"""Builds kernels/gpu/: a filtered extract of public kernel measurements, and what share of the roofline they reach.

    pip download --no-deps aiconfigurator-core==0.12.0 aiconfigurator==0.7.0 -d wheels && unzip each into a folder
    python benchmarks/build_kernel_tables.py --core wheels/core --old wheels/old      (needs pyarrow)

Only files that `ALLOWED` names are opened: kernels and data sheets, never end-to-end serving results.
Rules that leave rows out are functions of their own, named after the trap, each with what was seen.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "kernels" / "gpu"
LARGEST_BYTES = 4 << 20

SYSTEMS = ("a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm", "rtx_pro_6000_server")
ALSO_KNOWN = ("b300_sxm", "gb200", "gb300", "h100_pcie", "a100_pcie", "a30", "l4")
"""Data sheets and shares of the roofline only: their tables are read, and not packed."""
ALLOWED = re.compile(
    r"systems/(?:[a-z0-9_]+\.yaml"
    r"|data/[a-z0-9_]+/(?:[a-z_]+/)?[a-z]+/[0-9][a-z0-9.]*/"
    r"(?:gemm|context_attention|generation_attention|custom_allreduce|nccl)_perf\.(?:parquet|txt))"
)
"""Paths below the package, and nothing else, may be read."""

SCHEMES = {
    "bf16": ("bfloat16", "float16"), "fp8": ("fp8",), "fp8-block": ("fp8_block",), "nvfp4": ("nvfp4",),
    "w4a16": ("int4_wo",), "w8a16": ("int8_wo",), "w8a8-int8": ("sq",),
}  # fmt: skip
"""Our names and those of the column gemm_dtype."""
WEIGHT_ONLY = ("w4a16", "w8a16")
FEWEST_ROWS = 100
ROWS_KEPT = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 257, 384, 512, 1024, 2048, 4096, 8192, 16384)
"""m of the products that are kept, as far as a table has them: the rest is interpolated as well from these."""
SMALLEST_SIDE = 256
"""n and k below are no decoder's, but for routers."""
HEAD_DIMS = (64, 128, 256)
USUAL_HEAD_DIM = 128
MOST_PROMPTS = 16
LANES = ("fa3", "trtllm", "flash_attn", "flashinfer", "triton", "torch_flow")
"""Which kernel's attention rows are taken where several were timed: the first that a table has."""
STREAMED, MODEL_SIZED = 1 << 28, 1 << 24
"""Weights of a matrix whose reading is neither served by a cache (126 MB on B200) nor hidden behind the few microseconds
that any kernel takes (`launch_s` of the latency model); and of one whose arithmetic fills the chip."""

Columns = dict[str, np.ndarray[Any, Any]]


class Source(NamedTuple):
    """One table of a wheel."""

    root: Path
    path: str
    system: str
    runtime: str
    version: str
    table: str


def sources(root: Path) -> list[Source]:
    """Every table below a wheel's folder that may be read, the newest version first."""
    found = []
    for path in sorted(root.rglob("systems/data/**/*_perf.*")):
        inside = path.relative_to(root).as_posix()
        below = inside[inside.index("systems/") :]
        if ALLOWED.fullmatch(below):
            parts = below.split("/")
            found.append(Source(root, inside, parts[2], parts[-3], parts[-2], parts[-1].split("_perf")[0]))
    return sorted(found, key=lambda one: number_of(one.version), reverse=True)  # stable: equal versions by their paths


def number_of(version: str) -> tuple[tuple[int, ...], bool]:
    """1.0.0rc3 comes before 1.0.0."""
    stem = re.split(r"rc|post|\.dev", version)[0]
    return tuple(int(part) for part in stem.split(".") if part.isdigit()), "rc" not in version


def columns_of(root: Path, inside: str) -> Columns:
    """The columns of a table; anything that `ALLOWED` does not name is refused."""
    if not ALLOWED.fullmatch(inside[inside.index("systems/") :] if "systems/" in inside else inside):
        raise PermissionError(f"{inside} is not on the list of files that may be read")
    if inside.endswith(".parquet"):
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(root / inside)
        return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    with (root / inside).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: typed([row[name] for row in rows]) for name in rows[0]} if rows else {}


def typed(values: list[str]) -> np.ndarray[Any, Any]:
    try:
        return np.array([float(value) for value in values])
    except ValueError:
        return np.array(values)


def launch_bound(runtime: str, scheme: str, columns: Columns) -> Any:
    """vLLM's fp8_block rows were timed without CUDA graphs: below 2,048 rows they measure launches (0.09x of bf16)."""
    return (runtime == "vllm") & (scheme == "fp8-block") & (columns["m"] < 2048)


def not_weight_only(runtime: str, scheme: str, columns: Columns) -> Any:
    """int8_wo of SGLang is really W8A8 with an unfused quantizer."""
    return np.full(len(columns["m"]), scheme == "w8a16" and runtime != "trtllm")


def single_shot(runtime: str, scheme: str, columns: Columns) -> Any:
    """Weight-only gains at many rows are artefacts of single-shot timing: beyond 256 rows bf16 stands for them."""
    return np.full(len(columns["m"]), scheme in WEIGHT_ONLY) & (columns["m"] > 256)


RULES: tuple[Callable[[str, str, Columns], Any], ...] = (launch_bound, not_weight_only, single_shot)


def products(system: str, found: list[Source]) -> Iterator[tuple[str, str, str, Columns]]:
    """(runtime, scheme, version, columns m, n, k, seconds) of the newest version that has rows of the scheme."""
    done: set[tuple[str, str]] = set()
    for one in found:
        if (one.system, one.table) != (system, "gemm"):
            continue
        columns = columns_of(one.root, one.path)
        sized = np.minimum(columns["n"], columns["k"]) >= SMALLEST_SIDE
        for scheme, spelled in SCHEMES.items():
            keep = np.isin(columns["gemm_dtype"], spelled) & sized & np.isin(columns["m"], ROWS_KEPT)
            for rule in RULES:
                keep = keep & ~rule(one.runtime, scheme, columns)
            if (one.runtime, scheme) not in done and keep.sum() >= FEWEST_ROWS:
                done.add((one.runtime, scheme))
                yield one.runtime, scheme, one.version, merged(columns, keep, ("m", "n", "k"))


def attention(system: str, found: list[Source], phase: str) -> Iterator[tuple[str, str, str, Columns]]:
    """(runtime, "head dimension, bits of the cache", version, columns) of decode or prefill attention without a window.

    Context is step + isl. Rows that beat the memory (A100 and H100 of TensorRT-LLM 1.0.0) are left out with their table.
    """
    table = {"decode": "generation_attention", "prefill": "context_attention"}[phase]
    done: set[str] = set()
    for one in found:
        if (one.system, one.table) != (system, table) or one.runtime in done or too_fast(one):
            continue
        done.add(one.runtime)
        columns = columns_of(one.root, one.path)
        columns["context"] = columns["step"] + columns["isl"]
        lane = next((name for name in LANES if any(name in str(k) for k in np.unique(columns["kernel_source"]))), "")
        whole = np.array([lane in str(k) for k in columns["kernel_source"]])
        if "window_size" in columns:
            whole &= columns["window_size"] == 0
        if phase == "prefill":
            whole &= (columns["batch_size"] <= MOST_PROMPTS) & (columns["isl"] >= 16)
        for dim in HEAD_DIMS:
            for bits, spelled in ((16, ("bfloat16", "float16")), (8, ("fp8",))):
                keep = whole & (columns["head_dim"] == dim if "head_dim" in columns else dim == 128)
                keep = keep & np.isin(columns["kv_cache_dtype"], spelled)
                if keep.sum() >= FEWEST_ROWS:
                    names = ("batch_size", "context", "num_heads", "num_key_value_heads")
                    yield one.runtime, f"{dim} {bits}", one.version, merged(columns, keep, names)


def too_fast(one: Source) -> bool:
    """Decode attention of TensorRT-LLM 1.0.0 on A100 and 1.0.0rc3 on H100 beats the memory in a third of the large rows."""
    return one.runtime == "trtllm" and one.version.startswith("1.0.0") and one.table == "generation_attention"


def reductions(system: str, found: list[Source]) -> Iterator[tuple[str, str, str, Columns]]:
    """(runtime, "", version, columns gpus, bytes, seconds) of the all-reduce, in CUDA graphs where that was told apart."""
    done: set[str] = set()
    for one in found:
        if one.system != system or one.table not in ("custom_allreduce", "nccl") or one.runtime in done:
            continue
        columns = columns_of(one.root, one.path)
        keep = columns["op_name"] == "all_reduce"
        if one.table == "nccl":
            keep = keep & (columns["nccl_dtype"] == "half")
            columns["message_size"] = columns["message_size"] * 1
        if "backend" in columns and any("graph" in str(name) for name in columns["backend"]):
            keep = keep & np.array(["graph" in str(name) for name in columns["backend"]])
        if keep.sum() >= 20:
            done.add(one.runtime)
            yield one.runtime, "", one.version, merged(columns, keep, ("num_gpus", "message_size"))


def merged(columns: Columns, keep: Any, names: tuple[str, ...]) -> Columns:
    """Rows of the same point as one: the median of their kernels' times, in seconds."""
    points = np.stack([np.asarray(columns[name])[keep].astype(np.int64) for name in names], axis=1)
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    starts = np.unique(inverse.ravel()[order], return_index=True)[1][1:]
    groups = np.split(np.asarray(columns["latency"])[keep][order].astype(float), starts)
    seconds = np.array([statistics.median(group) for group in groups]) * 1e-3
    return {**dict(zip(names, unique.T, strict=True)), "seconds": seconds}


def packed(columns: Columns) -> dict[str, np.ndarray[Any, Any]]:
    """Axes, and a dense grid of steps of 1/2,048 in log2 of nanoseconds; 0 where nothing was measured."""
    *names, _ = columns
    axes = [np.unique(columns[name]) for name in names]
    grid = np.zeros([len(axis) for axis in axes], dtype=np.uint16)
    place = tuple(np.searchsorted(axis, columns[name]) for axis, name in zip(axes, names, strict=True))
    grid[place] = np.rint(np.log2(columns["seconds"] * 1e9) * 2048).clip(1, 65535)
    return {f"axis{i}": axis.astype(np.uint32) for i, axis in enumerate(axes)} | {"time": grid}


def devices(core: Path) -> dict[str, dict[str, Any]]:
    """GPU -> data sheet, as documents.GpuModel has it. Cards without NVLink get the bandwidth of PCIe between them."""
    made = {}
    for system in (*SYSTEMS, *ALSO_KNOWN):
        path = next(core.rglob(f"systems/{system}.yaml"))
        assert ALLOWED.fullmatch(f"systems/{path.name}")
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        chip, node = read["gpu"], read["node"]
        peaks = {"bf16": "bfloat16_tc_flops", "int8": "int8_tc_flops", "fp8": "fp8_tc_flops", "fp4": "fp4_tc_flops"}
        peaks = {name: field for name, field in peaks.items() if field in chip} | (
            {} if "bfloat16_tc_flops" in chip else {"bf16": "float16_tc_flops"}
        )
        linked = chip["sm_version"] in (80, 90, 100, 103) and "pcie" not in system and system != "a30"
        made[system] = {
            "also": [(stem := system.split("_sxm")[0].removesuffix("_server")), *([f"{stem}_sxm"] if linked else [])],
            "memory_bytes": int(chip["mem_capacity"]),
            "read_bytes_per_s": float(chip["mem_bw"]),
            "flops_per_s": {name: float(chip[field]) for name, field in peaks.items()},
            "link_bytes_per_s": float(node["intra_node_bw" if linked else "pcie_bw"]),
            "gpus": int(node["num_gpus_per_node"]),
            "power_w": float(chip["power"]),
            "compute_capability": int(chip["sm_version"]),
        }
    return made


def shares(gpu: Mapping[str, Any], scheme: str, columns: Columns) -> tuple[float, float] | None:
    """(bytes over bandwidth, operations over peak) over time, medians on matrices of a model's size."""
    from quantadvisor.kernels.gpu_schemes import arithmetic, gpu_scheme, stored_bytes

    kind = arithmetic(gpu_scheme(scheme))
    if kind not in gpu["flops_per_s"]:
        return None
    m, n, k, seconds = (columns[name] for name in ("m", "n", "k", "seconds"))
    bits = stored_bytes(4096, 4096, gpu_scheme(scheme)) / 4096**2
    few, many = (n * k >= STREAMED) & (m <= 16), (n * k >= MODEL_SIZED) & (m >= 2048)
    read = (bits * n * k + 2 * m * (n + k)) / gpu["read_bytes_per_s"] / seconds
    done = 2.0 * m * n * k / gpu["flops_per_s"][kind] / seconds
    if not few.any():
        return None
    peak = min(1.0, float(np.median(done[many]))) if many.any() else float("nan")
    return min(1.0, float(np.median(read[few]))), peak


def cache_share(gpu: Mapping[str, Any], what: str, columns: Columns) -> float:
    """Bytes over bandwidth over time of decode attention with grouped queries over caches that no L2 holds: the median."""
    dim, bits = map(int, what.split())
    batch, context, heads, kept = (columns[name] for name in ("batch_size", "context", "num_heads", "num_key_value_heads"))
    size = batch * context * 2.0 * kept * dim * bits / 8
    streamed = (heads % kept == 0) & (heads // kept >= 4) & (heads // kept <= 16) & (size >= STREAMED)
    share = float(np.median((size / gpu["read_bytes_per_s"] / columns["seconds"])[streamed]))
    return round(min(1.0, share), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=Path, required=True, help="folder of the unpacked aiconfigurator-core 0.12.0")
    parser.add_argument("--old", type=Path, required=True, help="folder of the unpacked aiconfigurator 0.7.0")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    sheets = devices(arguments.core)
    (arguments.out / "devices.json").write_text(json.dumps({"devices": sheets}, indent=1) + "\n", encoding="utf-8")
    new, old = sources(arguments.core), sources(arguments.old)
    reached: dict[str, dict[str, Any]] = {}
    cached: dict[str, dict[str, Any]] = {}
    for system, sheet in sheets.items():
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        tables = {"gemm": products(system, [*new, *old])}
        if system in SYSTEMS:
            tables |= {phase: attention(system, new, phase) for phase in ("decode", "prefill")}
            tables["reduce"] = reductions(system, new)
        for kind, found in tables.items():
            for runtime, what, version, columns in found:
                name = f"{kind} {runtime} {what}".strip()
                arrays |= {f"{name}/{key}": value for key, value in packed(columns).items()}
                print(f"{system} {name} {version}: {len(columns['seconds'])} points")
                if kind == "decode" and what.startswith(f"{USUAL_HEAD_DIM} "):
                    bits = what.split()[1]
                    cached.setdefault(system, {}).setdefault(bits, {})[runtime] = cache_share(sheet, what, columns)
                if kind == "gemm" and (share := shares(sheet, what, columns)):
                    reached.setdefault(system, {}).setdefault(what, {})[runtime] = share
        if system in SYSTEMS:
            np.savez_compressed(arguments.out / f"{system}.npz", **arrays)
    (arguments.out / "fractions.json").write_text(json.dumps(summarised(reached), indent=1) + "\n", encoding="utf-8")
    (arguments.out / "caches.json").write_text(json.dumps(cached, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{size / 2**20:.2f} MiB in {arguments.out}")
    if size > LARGEST_BYTES:
        raise SystemExit("larger than the package may carry")


def summarised(reached: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """GPU -> scheme -> medians over the runtimes; weight-only at many rows is bf16's, which stands for it there."""
    made: dict[str, dict[str, Any]] = {}
    for system, schemes in reached.items():
        for scheme, runtimes in schemes.items():
            read = statistics.median(one[0] for one in runtimes.values())
            peaks = [one[1] for one in runtimes.values() if one[1] == one[1]]
            peaks = peaks or [one[1] for one in schemes["bf16"].values()]
            each = {name: [round(v, 3) if v == v else None for v in one] for name, one in sorted(runtimes.items())}
            entry = {"read": round(read, 3), "peak": round(statistics.median(peaks), 3), "runtimes": each}
            made.setdefault(system, {})[scheme] = entry
    return made


if __name__ == "__main__":
    main()
