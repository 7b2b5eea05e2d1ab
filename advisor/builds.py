"""Artifacts are built in child processes, two at a time, each on its part of the cores, while nothing is being timed.

A build is one call of a method's `apply`. Its peak memory above the interpreter and its libraries is measured; a build
that fails is a reason, not an end. Finished builds are kept: the folder appears only when it is whole.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from quantadvisor.documents import CandidateFailed, Document, Scheme, write_text
from quantadvisor.profiling.device import usable_cores
from quantadvisor.profiling.guardian import die_with_parent

SAY_S = 2.0
"""Seconds between two looks at what the builds say of themselves."""


class Build(Document):
    """One artifact to make: `method` applied to `model_folder` for `runtime`'s format, into `out`."""

    method: str
    scheme: Scheme
    runtime: str
    model_folder: Path
    out: Path
    calibration: Path
    base: Path | None = None
    """The fp32 export of the same model for the same runtime, where there is one; of a cache's build the folder below it."""
    below: Build | None = None
    """The build of `base`, where that is the artifact of the weights that a quantized cache is put on."""
    train_s: float = 0.0
    """Seconds that a method which trains may take for it."""
    linear_s: dict[tuple[int, int, int], float] = {}
    """Seconds that a linear takes of a request by (N, K, bits), for a method that weighs widths against them."""
    most: dict[str, float] = {}
    """What the linears of such a method may take at most, where the spec says so: `most_s` or `most_bytes`."""
    ghost: bool = False
    """Not the model's weights but random ones: `base` is a ghost's, or, for method `none`, the export to randomise."""

    def with_cache(self, method: str, scheme: Scheme, out: Path, shared: bool) -> Build:
        """The build of a quantized cache on top of this one's artifact, which is built before. `shared`: that one is the plain
        export, which others build."""
        below = None if shared else self
        return self.model_copy(
            update={"method": method, "scheme": scheme, "out": out, "base": self.out, "below": below, "linear_s": {}, "most": {}}
        )


class Built(Document):
    """What came of a build; seconds, peak and notes with those of the build below it."""

    out: Path
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of all threads and children together, which other work on the machine lengthens little."""
    peak_bytes: int = 0
    bytes: int = 0
    notes: tuple[str, ...] = ()
    failed: str | None = None


def build_all(builds: Sequence[Build], say: Callable[[str], None], processes: int = 2) -> dict[Path, Built]:
    """Run what is not there yet, each after its base where that is among them; the result by output folder."""
    builds = [part for build in builds for part in (None if built(build.out) else build.below, build) if part]
    done = {b.out: read_built(b.out) for b in builds if built(b.out)}
    todo = {b.out: b for b in builds if b.out not in done}
    if not todo:
        return done
    say(f"building {len(todo)} artifacts")
    context = multiprocessing.get_context("spawn")
    many = min(processes, len(todo))
    with ProcessPoolExecutor(
        many, mp_context=context, initializer=quiet_child, initargs=(max(1, usable_cores() // many),)
    ) as pool:
        running: dict[Future[Built], Build] = {}
        heard: dict[Path, str] = {}
        while todo or running:
            for build in [b for b in todo.values() if b.base not in todo and b.base not in {r.out for r in running.values()}]:
                del todo[build.out]
                base = done.get(build.base) if build.base else None
                if base and base.failed:
                    done[build.out] = Built(out=build.out, failed=base.failed)
                else:
                    running[pool.submit(run_build, build)] = build
            finished = wait(running, timeout=SAY_S, return_when=FIRST_COMPLETED).done
            for build in running.values():
                line = said(build)
                if line and heard.get(build.out) != line:
                    heard[build.out] = line
                    say(line)
            for future in finished:
                build = running.pop(future)
                done[build.out] = outcome(future, build)
                failed = done[build.out].failed
                say(f"{build.out.name}: {failed}" if failed else f"built {build.out.name} in {done[build.out].seconds:.0f} s")
    return done


def said(build: Build) -> str | None:
    """What a build that takes long last said of itself."""
    try:
        return f"{build.out.name}: {progress_file(build.out).read_text()}"
    except FileNotFoundError:
        return None


def progress_file(out: Path) -> Path:
    return out.parent / f".{out.name}.progress"


def outcome(future: Future[Built], build: Build) -> Built:
    try:
        return future.result()
    except BrokenProcessPool:
        return Built(out=build.out, failed="the process that built it died (out of memory?)")


def built(out: Path) -> bool:
    return (out / "built.json").exists()


def read_built(out: Path) -> Built:
    return Built.read(out / "built.json")


def quiet_child(threads: int | None = None) -> None:
    """A build prints nothing, loads nothing from a hub, dies with its parent, and keeps to its threads (None: all cores)."""
    parent = multiprocessing.parent_process()
    assert parent and parent.pid
    die_with_parent(parent.pid)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def run_build(build: Build) -> Built:
    """In the child: apply the method; the reason instead of a traceback."""
    import numpy as np

    from quantadvisor.profiling.memory import reset_peak, status_bytes

    warm_libraries(build.runtime)
    calibration = np.load(build.calibration)
    base_bytes = status_bytes("VmRSS")
    reset_peak()
    start, spent = time.monotonic(), cpu_seconds()
    try:
        notes = make(build, calibration)
    except Exception as error:
        return Built(out=build.out, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    below = read_built(build.below.out) if build.below else Built(out=build.out)
    result = Built(
        out=build.out,
        seconds=below.seconds + time.monotonic() - start,
        cpu_s=below.cpu_s + cpu_seconds() - spent,
        peak_bytes=max(0, below.peak_bytes, status_bytes("VmHWM") - base_bytes),
        bytes=folder_bytes(build.out),
        notes=(*below.notes, *notes),
    )
    result.write(build.out / "built.json")
    return result


def cpu_seconds() -> float:
    """Of this process and of its children that have ended, s."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def make(build: Build, calibration: Any) -> tuple[str, ...]:
    """The artifact; `calibration` int64 [samples, length]. Returns the method's notes."""
    from quantadvisor.methods.artifact import format_of

    if build.method == "given":
        from quantadvisor.methods.formats import folders, gguf

        assert build.base is not None
        if build.base.is_file():
            folders.link_file(build.base, build.out, gguf.FILE)
        else:
            folders.link_folder(build.base, build.out)
        return ("an existing checkpoint: nothing was applied",)
    if not build.ghost or build.method != "none" or build.scheme.compute != "fp32":
        return applied(build, calibration)
    assert build.base is not None
    format_of(build.runtime).randomise(build.base, build.out)
    return ()


def applied(build: Build, calibration: Any) -> tuple[str, ...]:
    """The method's own work; one that trains gets its budget, one that takes long a file to say its progress in, one that weighs
    widths what they take."""
    from quantadvisor.methods.registry import method, trains

    inputs = (build.model_folder, build.scheme, build.runtime, calibration, build.out)
    apply: Any = method(build.method).apply
    more: dict[str, Any] = {"linear_s": build.linear_s, **build.most} if build.linear_s or build.most else {}
    if trains(build.method):
        if build.train_s <= 0:
            raise CandidateFailed(f"{build.method} trains, and budget.train_s is 0")
        more["train_s"] = build.train_s
    place = progress_file(build.out)
    if "say" in inspect.signature(apply).parameters:
        more["say"] = partial(write_text, place)
    try:
        notes: tuple[str, ...] = apply(*inputs, base=build.base, **more)
    finally:
        place.unlink(missing_ok=True)
    return notes


def warm_libraries(runtime: str) -> None:
    """Import what the build needs before its memory is measured."""
    import torch  # noqa: F401

    from quantadvisor.profiling.runtimes.torch import leave_sklearn_out

    leave_sklearn_out()
    if runtime.startswith("onnxruntime"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    if runtime == "llama.cpp":
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    if runtime == "openvino":
        from quantadvisor.methods.formats.openvino import silence_telemetry

        silence_telemetry()
        import openvino  # noqa: F401


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
