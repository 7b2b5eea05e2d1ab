"""Artifacts are built in child processes, two at a time, each on its part of the cores, while nothing is being timed.

A build is one call of a method's `apply`. Its peak memory above the interpreter and its libraries is measured; a build
that fails is a reason, not an end. Finished builds are kept: the folder appears only when it is whole. Started by path, this file
is the child:

    in   {"build": Build}
    out  Built, or {"failed": reason}
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import field_validator

from quantadvisor.documents import CandidateFailed, Document, Scheme, write_text
from quantadvisor.documents.workload import Budget
from quantadvisor.kernels.answering import serve
from quantadvisor.kernels.machine import process_memory, usable_cores
from quantadvisor.kernels.processes import ProbeProcess
from quantadvisor.methods.adapters import FOLDER as ADAPTERS
from quantadvisor.methods.formats.folders import remove_partial
from quantadvisor.profiling.runtimes.llama_cpp import BUILD

CHILD = Path(__file__)
ONNX = (("onnx", "onnxruntime_genai"), "pip install 'quantadvisor[cpu]'")
WRITERS = {
    "onnxruntime": ONNX,
    "onnxruntime-genai": ONNX,
    "openvino": (("openvino", "nncf", "optimum.intel"), "pip install 'quantadvisor[openvino]'"),
    "llama.cpp": (("llama_cpp",), BUILD),
}
"""Packages that writing for a runtime takes in this environment, wherever the runtime lives, and what brings them."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Build(Document):
    """One artifact to make: `method` applied to `model_folder` for `runtime`'s format, into `out`."""

    method: str
    scheme: Scheme
    runtime: str
    model_folder: Path
    out: Path
    calibration: Path
    samples: int | None = None
    """Of the calibration, that a method reads which would take fewer by itself; None: as many as it does."""
    base: Path | None = None
    """The fp32 export of the same model for the same runtime, where there is one; of a cache's build the folder below it."""
    below: Build | None = None
    """The build of `base`, where that is the artifact of the weights that a quantized cache is put on."""
    apply_s: float = Budget().apply_s
    """Seconds that it may take beside those; math.inf: as many as it does."""
    train_s: float = 0.0
    """Seconds that a method which trains may take for it."""
    linear_s: dict[tuple[int, int, int], float] = {}
    """Seconds that a linear takes of a request by (N, K, bits), for a method that weighs widths against them."""
    most: dict[str, float] = {}
    """What the linears of such a method may take at most, where the spec says so: `most_s` or `most_bytes`."""
    ghost: bool = False
    """Not the model's weights but random ones: `base` is a ghost's, or, for method `none`, the export to randomise."""

    @field_validator("linear_s", mode="before")
    @classmethod
    def _named(cls, given: Mapping[Any, float]) -> dict[Any, float]:
        """JSON writes a key as "N,K,bits"."""
        return {tuple(key.split(",")) if isinstance(key, str) else key: seconds for key, seconds in given.items()}

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


@dataclass
class Running:
    """A build and the process that is at it. `heard`: what it last said of itself."""

    build: Build
    process: ProbeProcess
    heard: str = ""

    def __post_init__(self) -> None:
        remove_partial(self.build.out)
        self.until = time.monotonic() + self.build.apply_s + self.build.train_s
        with suppress(CandidateFailed):  # of one that is gone already `result` tells the reason
            self.process.send({"probe": "build", "build": self.build.model_dump(mode="json")})

    def result(self) -> Built | None:
        """What came of it; None while it lasts."""
        try:
            answer = self.process.look("its build", self.until)
        except CandidateFailed as error:
            late = "; a larger budget.apply_s gives it more" if time.monotonic() > self.until else ""
            answer = {"failed": f"{error}{late}"}
            progress_file(self.build.out).unlink(missing_ok=True)
            remove_partial(self.build.out)
        return None if answer is None else Built.model_validate({"out": self.build.out, **answer})

    def tell(self, say: Callable[[str], None]) -> None:
        line = said(self.build)
        if line and line != self.heard:
            self.heard = line
            say(line)


def build_all(
    builds: Sequence[Build],
    say: Callable[[str], None],
    processes: int = 2,
    memory_limit_bytes: int | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[Path, Built]:
    """Run what is not there yet, each after its base where that is among them; the result by output folder.

    One that dies, or takes too long or too much memory, fails alone. `memory_limit_bytes`: of all at once, of which the largest
    begins again when it has it alone; None: what a process may have of this machine. `environment`: what shows them the device.
    """
    builds = [part for build in builds for part in (None if built(build.out) else build.below, build) if part]
    done = {b.out: read_built(b.out) for b in builds if built(b.out)}
    todo = {b.out: b for b in builds if b.out not in done}
    if not todo:
        return done
    say(f"building {len(todo)} artifacts")
    many, limit = min(processes, len(todo)), memory_limit_bytes or process_memory()
    threads = max(1, usable_cores() // many)
    seen = quiet(threads) | dict(environment)
    running: dict[Path, Running] = {}
    alone: set[Path] = set()
    with ExitStack() as stack:
        free = [stack.enter_context(ProbeProcess(threads, CHILD, environment=seen, memory_limit_bytes=limit))
                for _ in range(many)]  # fmt: skip
        while todo or running:
            for build in [b for b in todo.values() if b.base not in todo and b.base not in running]:
                base = done.get(build.base) if build.base else None
                if base and base.failed:
                    done[build.out] = Built(out=build.out, failed=base.failed)
                elif free and not (running and alone & {build.out, *running}):
                    running[build.out] = Running(build, free.pop())
                else:
                    continue
                del todo[build.out]
            for out, one in list(running.items()):
                one.tell(say)
                if result := one.result():
                    done[out] = result
                    free.append(running.pop(out).process)
                    say(f"{out.name}: {result.failed}" if result.failed else f"built {out.name} in {result.seconds:.0f} s")
            if largest := crowding(running, limit):
                say(f"{largest.name}: begins again when it has the memory alone")
                one = running.pop(largest)
                one.process.stop()
                free.append(one.process)
                todo[largest] = one.build
                alone.add(largest)
    return done


def crowding(running: Mapping[Path, Running], limit_bytes: int) -> Path | None:
    """The largest of several builds that use more than the limit together."""
    used = {out: one.process.resident_bytes() for out, one in running.items()}
    return max(used, key=lambda out: used[out]) if len(used) > 1 and sum(used.values()) > limit_bytes else None


def said(build: Build) -> str | None:
    """What a build that takes long last said of itself."""
    try:
        return f"{build.out.name}: {progress_file(build.out).read_text()}"
    except FileNotFoundError:
        return None


def progress_file(out: Path) -> Path:
    return out.parent / f".{out.name}.progress"


def built(out: Path) -> bool:
    return (out / "built.json").exists()


def read_built(out: Path) -> Built:
    return Built.read(out / "built.json")


def quiet(threads: int) -> dict[str, str]:
    """The environment of a build: it loads nothing from a hub, and keeps to its threads."""
    return OFFLINE | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


def missing_writer(runtime: str) -> str | None:
    """The first package that writing for the runtime takes and that is not installed here, with the command that mends it."""
    packages, mend = WRITERS.get(runtime, ((), ""))
    for package in packages:
        top, _, rest = package.partition(".")
        if find_spec(top) is None or (rest and find_spec(package) is None):
            return f"{package} is not installed here, where artifacts are written: {mend}"
    return None


def run_build(build: Build) -> Built:
    """In the child: apply the method; the reason instead of a traceback."""
    import numpy as np

    from quantadvisor.profiling.memory import reset_peak, status_bytes

    if build.method != "given":
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
    """The method's own work; one that trains gets its budget, one that takes long a file to say its progress in, one that reads
    few samples by itself as many as the user wants, one that weighs widths what they take."""
    from quantadvisor.methods.registry import method, trains

    inputs = (build.model_folder, build.scheme, build.runtime, calibration, build.out)
    apply: Any = method(build.method).apply
    more: dict[str, Any] = {"linear_s": build.linear_s, **build.most} if build.linear_s or build.most else {}
    if trains(build.method):
        if build.train_s <= 0:
            raise CandidateFailed(f"{build.method} trains, and budget.train_s is 0")
        more["train_s"] = build.train_s
    place = progress_file(build.out)
    known = inspect.signature(apply).parameters
    if "say" in known:
        more["say"] = partial(write_text, place)
    if "samples" in known:
        more["samples"] = build.samples
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
    """What a runtime loads: adapters that an ONNX graph holds are not counted again where they lie beside it."""
    beside = folder / ADAPTERS if any(folder.glob("*.onnx")) else None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.parent != beside)


def main() -> None:
    serve(lambda request: run_build(Build.model_validate(request["build"])).model_dump(mode="json"), "failed")


if __name__ == "__main__":
    main()
