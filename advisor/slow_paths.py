"""Where what loads is slow, measured and not believed, and what avoids it. Pure functions over kernel timings.

A kernel's products of all layers (the head is left out: it may be another kernel's) are set beside the unquantized ones of the
same runtime, and beside kernels of as many bits: those of the runtime's other options first, then those of other runtimes. An
option may be the faster one at few rows and the slower one at many. What avoids a trap is never one itself, nor does it crash.

Predictions take one time for a whole class of kernels, and ghosts mend them. Here a scheme is judged by its own operator's alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import Scheme
from quantadvisor.kernels.registry import PROBES, TRAPS
from quantadvisor.methods.schemes import scheme

from .mends import rounding_said
from .predict import Probes, family, kernel_class, kernel_family, outlier_channels

PHASES = (("decode", 1), ("prefill", 1024))
"""Name and M."""
SLOWER = 1.05
APART = 1.2
"""Kernels of two options or runtimes are timed some time apart, in processes of their own: what is less than this apart is
unresolved."""
Place = tuple[str, str]
"""Runtime and option under which kernels were timed."""
CALLED = {("torch", "", "w4"): ("torch", "int4pack")}
"""Place and class of kernels of a candidate -> where its operator is timed, as a trap: in GPTQ's and AWQ's layouts GPTQModel's
linears call torch's own product (docs/checkpoints.md)."""
TRAP_PLACES = {(PROBES[name].runtime, option) for name in TRAPS for option in PROBES[name].options}


def slow_path(made: Scheme, runtime: str, options: Sequence[str], probes: Probes) -> str | None:
    """Where a quantized scheme's linears were timed no faster than unquantized ones, or slower than with another option, or spend
    much of their time in operators that only round."""
    if made.weights is None and made.activations is None:
        return None
    place = place_of(made, runtime, options)
    found = [f"{phase} (M = {m}): {words}" for phase, m in PHASES if (words := _slow_at(m, made, place, probes))]
    return "; ".join(found) or None


def untimed(made: Scheme, runtime: str, options: Sequence[str], probes: Probes) -> str | None:
    """The phases in which a scheme's linears were not timed on a runtime, whose speed therefore is not known."""
    place = place_of(made, runtime, options)
    missing = [phase for phase, m in PHASES if _own_s(made, place, m, probes) is None]
    return f"its linears were not timed in {' and '.join(missing)}" if missing else None


def _slow_at(m: int, made: Scheme, here: Place, probes: Probes) -> str | None:
    """What is to be said of the scheme's kernel at `m` rows: by how much it is slow, and what is faster."""
    ours = _own_s(made, here, m, probes)
    if ours is None:
        return None
    words = []
    plain = _unquantized_s(made.compute, here, m, probes)
    if plain is not None and ours > SLOWER * plain:
        words.append(f"linears take {ours / plain:.2f}x the time of unquantized ones")
    elif plain is not None and SLOWER * ours > plain:
        words.append(f"linears are no faster than unquantized ones ({ours / plain:.2f}x their time)")
    others = [place for place in probes.places() if place != here and place not in TRAP_PLACES]
    running = [place for place in others if (*place, kernel_class(made)) not in probes.crashes]
    times = {place: _layers_s(made, place, m, probes) for place in running}
    faster = {place: ours / seconds for place, seconds in times.items() if seconds is not None and ours > APART * seconds}
    options = {place: factor for place, factor in faster.items() if place[0] == here[0]}
    if avoiding := options or (faster if words else {}):
        best = max(avoiding, key=lambda place: avoiding[place])
        words.append(f"{_named(best, here)} is {avoiding[best]:.2f}x faster")
    elif words:
        words.append("no other kernel of as many bits was timed faster")
    if said := rounding_said(probes.rounding_share(made, here, m)):
        words.append(said)
    return ", ".join(words) or None


def place_of(made: Scheme, runtime: str, options: Sequence[str]) -> Place:
    """Runtime and option under which the operator of a scheme's linears is timed."""
    place = kernel_family(runtime, options)
    return CALLED.get((*place, kernel_class(made)), place)


def same_operator(timed: Scheme, made: Scheme) -> bool:
    """Does the kernel of one scheme compute the linears of another? Those of a class that round activations differ: one range
    per call, per token or from calibration, and perhaps a second product beside."""
    if kernel_class(timed) != kernel_class(made):
        return False
    return made.activations is None or _rounding(timed) == _rounding(made)


def _rounding(made: Scheme) -> tuple[object, ...]:
    formats = [(one.bits, one.granularity, one.dynamic) for one in (made.weights, made.activations) if one is not None]
    return (*formats, outlier_channels(made))


def _own_s(made: Scheme, place: Place, m: int, probes: Probes) -> float | None:
    """Seconds of a scheme's linears without the head; None where they were not timed there, be it that another operator was."""
    timed = probes.schemes.get((*place, kernel_class(made)))
    return None if timed is not None and not same_operator(timed, made) else _layers_s(made, place, m, probes)


def _layers_s(made: Scheme, place: Place, m: int, probes: Probes) -> float | None:
    """Seconds of a kernel of its class; None where none was timed there."""
    return probes.linears_s(made, place[0], (place[1],), m, None)


def _unquantized_s(compute: str, place: Place, m: int, probes: Probes) -> float | None:
    """In the fastest float type that was timed there, the scheme's own among them: who quantizes could have run any. With
    the same option where something was timed with it."""
    for one in dict.fromkeys((place, (place[0], ""))):
        found = [_layers_s(scheme(name), one, m, probes) for name in (compute, "fp32", "bf16")]
        if timed := [seconds for seconds in found if seconds is not None]:
            return min(timed)
    return None


def _named(place: Place, here: Place) -> str:
    """A runtime and option, beside `here`."""
    runtime, option = place
    if runtime != here[0]:
        return family(runtime, (option,) if option else ())
    return f"the option {option}" if option else f"{runtime} without {here[1]}"
