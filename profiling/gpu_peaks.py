"""The roofs of a GPU: measured with torch in a child process, else those of its data sheet (*cited*). Never run on a GPU.

Reading: a sum over a buffer of 1 GiB, or of sixteen L2 caches. Products: square, of operands beyond the L2 cache, by number type.
CUDA events enclose each call; one takes much longer than a launch. Started by path, this file is the child:

    in   {"probe": "peaks"}
    out  {"read": Rates, "products": {number: Rates}, "refused": {number: reason}, "l2_bytes": int,
          "gpu": GpuState or null}
         with Rates {"source": str, "samples": [per second]}, or {"failed": reason}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quantadvisor.documents import CandidateFailed, Device, Figure, GpuModel, GpuState, Peaks
from quantadvisor.kernels.answering import serve
from quantadvisor.kernels.gpu_devices import known_gpu
from quantadvisor.kernels.processes import ProbeProcess
from quantadvisor.kernels.timing import figure
from quantadvisor.profiling import nvml
from quantadvisor.profiling.gpu_state import state_of
from quantadvisor.profiling.gpus import environment
from quantadvisor.profiling.memory import visible_gpu
from quantadvisor.profiling.runtimes.nvidia import no_gpu_for_torch

CHILD = Path(__file__)
LIMIT_S = 120.0
ROUNDS = 20
WARM_ROUNDS = 5
LEAST_READ_BYTES = 1 << 30
SIDES = (4096, 8192, 16384)
"""Of the square products; the first whose INT8 operand exceeds the L2 cache."""
TORCH_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8", "fp8": "float8_e4m3fn"}


class Timed(NamedTuple):
    """What one call of a name does: bytes read or operations."""

    source: str
    call: Callable[[], object]
    work: float


def with_peaks(device: Device) -> Device:
    """The GPU with its roofs, and the size of its L2 cache where torch tells it; without roofs where nobody knows them."""
    try:
        with ProbeProcess(device.threads, CHILD, environment=environment(device)) as process:
            found = process.ask({"probe": "peaks"}, LIMIT_S)
    except CandidateFailed as error:
        found = {"failed": str(error)}
    if "failed" not in found:
        return device.model_copy(update={"peaks": measured(found), "last_level_cache_bytes": int(found["l2_bytes"])})
    sheet = known_gpu(device.name, device.memory_bytes)
    return device.model_copy(update={"peaks": cited(sheet, str(found["failed"])) if sheet else None})


def measured(found: Mapping[str, Any]) -> Peaks:
    def rate(one: Mapping[str, Any]) -> Figure:
        return figure(one["samples"], source=one["source"])

    products = {number: rate(one) for number, one in found["products"].items()}
    gpu = GpuState.model_validate(found["gpu"]) if found.get("gpu") else None
    return Peaks(read_bytes_per_s=rate(found["read"]), flops_per_s=products, refused=found["refused"], gpu=gpu)


def cited(sheet: GpuModel, why: str) -> Peaks:
    """Nominal, dense; `why` torch could not measure stands with each."""
    source = f"data sheet of {sheet.name}; not measured: {why}"
    flops = {number: figure([value], "cited", source) for number, value in sheet.flops_per_s.items()}
    return Peaks(read_bytes_per_s=figure([sheet.read_bytes_per_s], "cited", source), flops_per_s=flops)


def answer() -> dict[str, Any]:
    import torch

    if reason := no_gpu_for_torch():
        return {"failed": reason}
    l2 = int(torch.cuda.get_device_properties(0).L2_cache_size)
    products: dict[str, Any] = {}
    refused: dict[str, str] = {}
    side = next((one for one in SIDES if one * one > l2), SIDES[-1])
    with torch.inference_mode(), nvml.watching(visible_gpu()) as seen:
        read = rates(reading(max(LEAST_READ_BYTES, 16 * l2), "cuda"))
        for number in TORCH_TYPES:
            try:
                products[number] = rates(product(number, side, "cuda"))
            except Exception as error:  # a GPU without such products, a torch without the call
                refused[number] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    state = state_of([seen.summary()])
    gpu = state.model_dump(mode="json") if state else None
    return {"read": read, "products": products, "refused": refused, "l2_bytes": l2, "gpu": gpu}


def rates(one: Timed) -> dict[str, Any]:
    return {"source": one.source, "samples": [one.work / seconds for seconds in event_seconds(one.call)]}


def event_seconds(call: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each call by CUDA events, after some calls that warm clocks and libraries."""
    import torch

    for _ in range(WARM_ROUNDS):
        call()
    torch.cuda.synchronize()
    samples = []
    for _ in range(rounds):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        samples.append(first.elapsed_time(last) / 1e3)
    return samples


def reading(size: int, where: str) -> Timed:
    import torch

    buffer = torch.ones(size // 4, dtype=torch.float32, device=where)
    return Timed(f"torch sum over {size >> 20} MiB", buffer.sum, float(size))


def product(number: str, side: int, where: str) -> Timed:
    """y = x @ w.T with x, w: [side, side]; float32 products in float32 (torch's default), not TF32."""
    import torch

    kind = getattr(torch, TORCH_TYPES[number])
    work = 2.0 * side**3
    if number == "int8":
        x, w = (torch.randint(-127, 128, (side, side), dtype=kind, device=where) for _ in range(2))
        return Timed(f"torch._int_mm {side}", lambda: torch._int_mm(x, w.T), work)
    x, w = (torch.randn(side, side, device=where).to(kind) for _ in range(2))
    if number == "fp8":
        one = torch.ones((), device=where)
        scaled = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
        return Timed(f"torch._scaled_mm {side}", lambda: torch._scaled_mm(x, w.T, **scaled), work)
    return Timed(f"torch matmul {number} {side}", lambda: x @ w.T, work)


def main() -> None:
    serve(lambda _: answer(), "failed")


if __name__ == "__main__":
    main()
