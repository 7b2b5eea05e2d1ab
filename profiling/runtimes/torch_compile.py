"""torch.compile as a session needs it: a decode step that is compiled once for every length and batch, over a static cache.

The step is compiled while the model loads, so its minutes are part of load_s; inductor keeps its code (TORCHINDUCTOR_CACHE_DIR),
so those of a second load are fewer. As transformers' `generate` does, prefill stays
eager over the same cache. One row and several are two programs: inductor takes a size of 1 as fixed. On a GPU its kernels go
into CUDA graphs (mode "reduce-overhead"), which never ran.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

COMPILE = "compile"
COMPILER = "clang++" if sys.platform == "darwin" else "g++"


def refusal(device: str) -> str | None:
    """What inductor lacks here and the command that adds it; None where it has all. The compiler is the one that it looks for."""
    from importlib.util import find_spec

    if device == "cuda" and find_spec("triton") is None:
        return "torch.compile writes Triton kernels for a GPU, and triton is not installed: pip install triton"
    chosen = os.environ.get("CXX", COMPILER)
    if shutil.which(chosen) is None:
        mend = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++, or set CXX to one"
        return f"torch.compile needs a C++ compiler and finds no {chosen}: {mend}"
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"torch.compile needs Python's headers and finds no {headers}/Python.h: apt-get install python{version}-dev"
    return None


@cache
def layer_class() -> Any:
    """transformers' static layer, but its mask takes its length from the buffers: the number that is kept beside them would be
    compiled into the step. One class: a second one is compiled for again."""
    from transformers.cache_utils import StaticLayer

    class Layer(StaticLayer):  # type: ignore[misc, unused-ignore]
        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return (self.keys.shape[2] if self.is_initialized else self.max_cache_len), 0

    return Layer


def static_cache(config: Any, capacity: int) -> Any:
    """A static cache of `capacity` tokens. ValueError for sliding windows and states, whose layers are others."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    made = StaticCache(config=config, max_cache_len=capacity)
    if other := [type(layer).__name__ for layer in made.layers if type(layer) is not StaticLayer]:
        raise ValueError(f"torch.compile decodes over full attention; this model's cache has {other[0]}: leave `compile` out")
    made.layers = [layer_class()(max_cache_len=capacity) for _ in made.layers]
    return made


def repeat(held: Any, batch: int) -> None:
    """Every row of a batch gets a copy of the only row's keys and values; where CUDA graphs must find them stays told."""
    import torch

    with torch.inference_mode():  # as the step itself: for tensors of another mode it is compiled again
        for layer in held.layers:
            layer.keys, layer.values = (one.repeat_interleave(batch, 0) for one in (layer.keys, layer.values))
            for one in (layer.keys, layer.values):
                torch._dynamo.mark_static_address(one)


def compiled(model: Any, device: str) -> Callable[..., Any]:
    """The model's call, compiled at its first use; generated CPU kernels report themselves to the profiler."""
    import torch

    how: dict[str, Any] = {"mode": "reduce-overhead"} if device == "cuda" else {"options": {"cpp.enable_kernel_profile": True}}
    made: Callable[..., Any] = torch.compile(model.__call__, dynamic=True, **how)
    return made


GENERATED = re.compile(r"graph_\d+_(cpp_\w+)")
"""How the profiler names what inductor generated: the number of its program, which differs by session, and its name in
there, which ends in its own number."""


def generated(name: str) -> str | None:
    """inductor::<what was fused into that kernel, and its number>; None where the name is of no generated one."""
    found = GENERATED.fullmatch(name)
    return f"inductor::{found[1]}" if found else None


def observed(
    run: Callable[[], Any], rounds: int, counted: Callable[[Any, str], list[dict[str, Any]]], number: str
) -> dict[str, Any]:
    """A step on a CPU: walls of plain runs, and what the profiler shows of one more. Its products and attention are calls, whose
    times are theirs; the cache is written by generated kernels, so its time is in other. `counted`: rows of a profile."""
    import torch

    walls = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        walls.append(time.perf_counter() - start)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    rows = counted(profile, number)
    linears_s = sum(row["time_s"] for row in rows if row["linear"])
    attention_s = sum(row["time_s"] for row in rows if "scaled_dot_product" in row["name"] and row["name"].startswith("aten::"))
    wall_s = sorted(walls)[len(walls) // 2]
    products = sum(row["count"] for row in rows if row["linear"])
    made = sum(row["count"] for row in rows if row["name"].startswith("inductor::"))
    return {
        "operators": rows,
        "wall_s": wall_s,
        "walls_s": walls,
        "linears_s": linears_s,
        "attention_s": attention_s,
        "cache_s": 0.0,
        "other_s": wall_s - linears_s - attention_s,
        "notes": [f"compiled: {products} products called, {made} generated kernels, which write the cache"],
    }


def reason(error: Exception) -> str:
    """In one line, why inductor could not compile and how to go on."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
    return f"torch.compile failed ({type(error).__name__}: {text}): leave `compile` out, or see TORCH_LOGS=+inductor"
