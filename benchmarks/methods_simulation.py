"""Rows that no runtime here has a kernel for: fake quantization in fp32, in one child process that keeps the model.

What applying costs is told apart from the scoring: CPU seconds and peak memory until the rounded model stands. What the
methods round lazily (activations, caches) falls to the scoring, as it does in a runtime.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantadvisor.advisor.builds import OFFLINE
from quantadvisor.advisor.risk import Job, fakes_of, of_least_kl, score
from quantadvisor.documents import Scheme
from quantadvisor.kernels.guardian import die_with_starter


class Simulation(NamedTuple):
    """`scores`: float64 [3, tokens], as `risk.score` gives."""

    scores: np.ndarray
    apply_cpu_s: float
    apply_peak_bytes: int


class Loaded(NamedTuple):
    model: Any
    base_bytes: int
    """Resident before the model was loaded."""


@contextmanager
def simulator() -> Iterator[ProcessPoolExecutor]:
    """The child, started when it is first asked."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=quiet_child) as pool:
        yield pool


def quiet_child() -> None:
    """The child prints nothing, loads nothing from a hub and dies with its parent."""
    die_with_starter()
    os.environ |= OFFLINE
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


@cache
def loaded(model_folder: Path) -> Loaded:
    """In the child, once."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from quantadvisor.methods.observe import load
    from quantadvisor.profiling.memory import status_bytes

    before = status_bytes("VmRSS")
    return Loaded(load(model_folder), before)


def simulate(job: Job, name: str, scheme: Scheme, windows: np.ndarray, reference: Path) -> Simulation:
    """In the child. Of several ways to round (SmoothQuant's exponents) the best, at the cost of all."""
    import torch

    with torch.no_grad():
        return best_of(job, name, scheme, windows, reference)


def best_of(job: Job, name: str, scheme: Scheme, windows: np.ndarray, reference: Path) -> Simulation:
    from quantadvisor.methods.fake import applied
    from quantadvisor.profiling.memory import reset_peak, status_bytes

    model, base_bytes = loaded(job.model_folder)
    want = np.load(reference, mmap_mode="r")
    reset_peak()
    found: list[np.ndarray] = []
    spent, peak, start = 0.0, 0, time.process_time()
    for fake in fakes_of(model, name, scheme, job, windows):
        with applied(fake) as logits:
            spent += time.process_time() - start
            peak = max(peak, status_bytes("VmHWM"))
            found.append(score(logits, windows, want))
        start = time.process_time()
    return Simulation(of_least_kl(found), spent, max(0, peak - base_bytes))
