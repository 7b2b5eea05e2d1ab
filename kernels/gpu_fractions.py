"""What share of the roofline measured kernels reach, by GPU and scheme: medians over the kernel tables.

`gpu/fractions.json` is built by `benchmarks/build_kernel_tables.py`: `read` is bytes / bandwidth over the time of
products of 16 rows and fewer with matrices of 2^28 weights and more, `peak` operations / peak over the time of those of
2,048 rows and more and 2^24 weights; medians over the runtimes, and each runtime's own. A GPU without rows of a scheme
takes the median of the other GPUs', and says so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from .gpu_devices import FOLDER


class Reached(NamedTuple):
    read: float
    peak: float
    source: str


@cache
def tables() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """GPU -> scheme -> {read, peak, runtimes: {name: [read, peak or null]}}."""
    found: Mapping[str, Mapping[str, Mapping[str, Any]]] = json.loads((FOLDER / "fractions.json").read_text(encoding="utf-8"))
    return found


@cache
def reached(gpu: str, scheme: str, runtime: str = "") -> Reached:
    """The fractions of a GPU and a scheme, by the kernels of a runtime where its tables have them."""
    here = tables().get(gpu, {}).get(scheme)
    if here is not None:
        read, peak = here["runtimes"].get(runtime, (here["read"], here["peak"]))
        return Reached(read, here["peak"] if peak is None else peak, "kernel tables")
    others = [of[scheme] for of in tables().values() if scheme in of]
    source = "kernel tables of other GPUs" if others else "kernel tables of other schemes"
    others = others or [one for of in tables().values() for one in of.values()]
    return Reached(statistics.median(o["read"] for o in others), statistics.median(o["peak"] for o in others), source)


@cache
def runtimes_with(gpu: str, scheme: str) -> frozenset[str]:
    """Runtimes whose kernels of the scheme were measured on the GPU."""
    return frozenset(tables().get(gpu, {}).get(scheme, {}).get("runtimes", ()))
