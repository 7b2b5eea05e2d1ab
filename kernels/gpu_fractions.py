"""What share of the roofline measured kernels reach, by GPU and scheme: medians over the kernel tables.

`gpu/fractions.json` is built by `benchmarks/build_kernel_tables.py`: `read` is bytes / bandwidth over the time of
products of 16 rows and fewer, `peak` operations / peak over the time of those of 2,048 and more, both on matrices of a
size that models have. A GPU without rows of a scheme takes the median of the other GPUs', and says so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from .gpu_devices import FOLDER


class Reached(NamedTuple):
    read: float
    peak: float
    source: str


@cache
def tables() -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """GPU -> scheme -> {read, peak, rows}."""
    found: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads((FOLDER / "fractions.json").read_text(encoding="utf-8"))
    return found


@cache
def reached(gpu: str, scheme: str) -> Reached:
    """The fractions of a GPU and a scheme."""
    here = tables().get(gpu, {}).get(scheme)
    if here is not None:
        return Reached(here["read"], here["peak"], "kernel tables")
    others = [of[scheme] for of in tables().values() if scheme in of] or [one for of in tables().values() for one in of.values()]
    source = "kernel tables of other GPUs" if any(scheme in of for of in tables().values()) else "kernel tables of other schemes"
    return Reached(statistics.median(o["read"] for o in others), statistics.median(o["peak"] for o in others), source)


@cache
def runtimes_with(gpu: str, scheme: str) -> frozenset[str]:
    """Runtimes whose kernels of the scheme were measured on the GPU."""
    return frozenset(tables().get(gpu, {}).get(scheme, {}).get("runtimes", ()))
