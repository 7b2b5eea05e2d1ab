"""The process in which Triton kernels check themselves: started by path, one JSON object per line in and out.

    in   {"probe": "list", "interpreted": bool}
    out  {"subjects": [name], "device": str, "versions": {...}} or {"failed": reason}
    in   {"probe": name of a subject, "interpreted": bool}
    out  a KernelCheck

`interpreted`: in triton's interpreter on this CPU, numbers alone; else on the first GPU, where results must also repeat bit
for bit, and shapes of models are timed. What libraries print goes to standard error; its end ends the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from quantadvisor.documents import KernelCheck, compared
from quantadvisor.kernels import gpu_timing, rivals
from quantadvisor.kernels.answering import serve
from quantadvisor.kernels.gpu_timing import gpu_name, versions
from quantadvisor.kernels.timing import figure
from quantadvisor.kernels.triton_subjects import Subject, excess, subjects
from quantadvisor.profiling.gpu_state import state_of
from quantadvisor.profiling.runtimes.nvidia import no_gpu_for_torch

REPEATS = 10
OURS, PLAIN = "triton", "16 bit"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    interpreted = bool(request["interpreted"])
    if interpreted:
        interpreter()
    elif reason := no_gpu_for_torch():
        return {"failed": reason}
    known = of_this_device(interpreted)
    if request["probe"] == "list":
        return {"subjects": list(known), "device": device_name(interpreted), "versions": versions()}
    build, timed = known[request["probe"]]
    return checked(build(), timed=timed, repeats=1 if interpreted else REPEATS).model_dump(mode="json")


def interpreter() -> None:
    """Once, and before triton is imported: it reads the variable then."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"
        from quantadvisor.kernels.triton_interpreter import mend

        mend()


def of_this_device(interpreted: bool) -> dict[str, tuple[Callable[[], Subject], bool]]:
    """Subject -> (what builds it, whether it is timed)."""
    if interpreted:
        return {name: (build, False) for name, build in subjects("cpu", 80, small=True).items()}
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    small, large = (subjects("cuda", 10 * major + minor, small=small) for small in (True, False))
    return {name: (build, False) for name, build in small.items()} | {name: (build, True) for name, build in large.items()}


def checked(subject: Subject, *, timed: bool, repeats: int) -> KernelCheck:
    """Numbers first; what is wrong is not timed."""
    try:
        found = subject.run()
        error = excess(found, subject)
        same = all(bool((subject.run() == found).all()) for _ in range(repeats - 1))
    except Exception as raised:  # a kernel that does not launch is a finding
        text = (str(raised).strip() or type(raised).__name__).splitlines()[0][:300]
        return KernelCheck(name=subject.name, shape=subject.shape, right=False, reason=f"{type(raised).__name__}: {text}")
    reason = "" if same else f"{repeats} runs on the same inputs gave different bits"
    if not error <= 1:
        finite = error < float("inf")
        reason = f"an error {error:.3g} times what the formats allow" if finite else "NaN, an infinity or a wrong shape"
    made = KernelCheck(
        name=subject.name, shape=subject.shape, right=not reason, reason=reason, error=error if error < float("inf") else None
    )
    return with_times(made, subject) if timed and made.right else made


def with_times(made: KernelCheck, subject: Subject) -> KernelCheck:
    import torch

    from quantadvisor.profiling import nvml

    ready, refused = rivals.prepared(*subject.problem, subject.integers) if subject.problem else ({}, {})
    calls = {OURS: subject.run} | ({PLAIN: subject.plain} if subject.plain else {}) | ready
    with nvml.watching(str(torch.cuda.get_device_properties(0).uuid)) as seen:
        samples, uncaptured = gpu_timing.interleaved(calls)
    times = {name: figure(one) for name, one in samples.items()}
    return made.model_copy(
        update={
            "times_s": times,
            "refused": refused | uncaptured,
            "speed": compared(times[OURS], times[PLAIN]) if OURS in times and PLAIN in times else None,
            "fastest": min(times, key=lambda name: times[name].median, default=None),
            "gpu": state_of([seen.summary()]),
        }
    )


def device_name(interpreted: bool) -> str:
    import platform

    return f"triton's interpreter on {platform.machine()}" if interpreted else gpu_name()


def main() -> None:
    serve(answer, "failed")


if __name__ == "__main__":
    main()
