"""What share of the roofline measured kernels reach, by GPU and scheme: medians over the kernel tables.

`gpu/fractions.json` is built by `benchmarks/build_kernel_tables.py`: `read` is bytes / bandwidth over the time of
products of 16 rows and fewer with matrices of 2^28 weights and more, `peak` operations / peak over the time of those of
2,048 rows and more and 2^24 weights; medians over the runtimes, and each runtime's own. A GPU without rows of a scheme
takes the median of the other GPUs', and says so. `gpu/caches.json`: the same of decode attention and its cache.
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


@cache
def caches() -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """GPU -> bits of the cache -> runtime -> fraction of the bandwidth at which its decode attention streams caches."""
    found: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads((FOLDER / "caches.json").read_text(encoding="utf-8"))
    return found


@cache
def cache_read(gpu: str, bits: int, runtime: str = "") -> float:
    """A 16-bit cache: what the best of the runtimes reaches there, since attention comes from libraries that all can call. Of
    other bits the runtime's own kernels keep some of that; where they were not measured, the middle of others keeps, and of bits
    that no table has, what 8 keep."""
    plain = {name: max(of["16"].values()) for name, of in caches().items()}
    best = plain.get(gpu) or statistics.median(plain.values())
    if bits == 16:
        return best
    measured = str(bits) if any(str(bits) in of for of in caches().values()) else "8"
    kept = {name: kept_share(of, measured) for name, of in caches().items()}
    here = kept.get(gpu, {})
    known = list(here.values()) or [share for of in kept.values() for share in of.values()]
    return best * here.get(runtime, statistics.median(known))


def kept_share(known: Mapping[str, Mapping[str, float]], bits: str) -> dict[str, float]:
    """Runtime -> its fraction with a cache of these bits over that with 16."""
    return {runtime: share / known["16"][runtime] for runtime, share in known.get(bits, {}).items() if runtime in known["16"]}
