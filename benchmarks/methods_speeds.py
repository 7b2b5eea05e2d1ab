"""Speeds of the proving table's measured rows: each artifact against the unquantized model in the same runtime, in turns.

They hold for one machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from methods_rows import Speed, machine_of

from quantadvisor.advisor.builds import build_all
from quantadvisor.advisor.candidates import Entry, candidate, candidate_name
from quantadvisor.advisor.context import Context
from quantadvisor.advisor.prove import start_workers
from quantadvisor.documents import AdvisorError, Candidate, CandidateFailed, Figure, Traffic
from quantadvisor.kernels.timing import figure
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.measure import Round, interleave

ROUNDS = 5


def speed_of(context: Context, one: Candidate, traffic: Traffic) -> Speed:
    """Figures, or the reason why there are none."""
    place = candidate_name("", "", one.runtime, one.options).split("@")[1]
    speed = Speed(model=context.source.sha256[:12], name=f"{one.method}-{one.scheme.name}", place=place,
                  device=context.device.fingerprint, machine=machine_of(context.device))  # fmt: skip
    try:
        plain, ours = timed(context, plain_of(context, one), one, traffic)
    except AdvisorError as error:
        return speed.model_copy(update={"reason": str(error)})
    return speed.model_copy(update={"decode": gain(plain, ours, "tpot_s"), "prefill": gain(plain, ours, "ttft_s")})


def timed(context: Context, plain: Candidate, one: Candidate, traffic: Traffic) -> tuple[list[Round], list[Round]]:
    """Rounds in turns; CandidateFailed where one of the two fails."""
    base = context.build("none", scheme("fp32"), one.runtime)
    builds = {c.name: context.build_of(c) for c in (plain, one)}
    done = build_all([base, *builds.values()], context.progress.say, processes=1)
    failed = {name: reason for name, build in builds.items() if (reason := done[build.out].failed)}
    rounds: dict[str, list[Round]] = {}
    if not failed:
        with ExitStack() as stack:
            workers, broke = start_workers({c.name: context.worker_of(c) for c in (plain, one)}, stack)
            rounds, failed = interleave(workers, context.prompts, traffic, ROUNDS, progress=context.progress.say)
            failed |= broke
    for name, reason in failed.items():
        raise CandidateFailed(f"{name}: {reason}")
    return rounds[plain.name], rounds[one.name]


def plain_of(context: Context, one: Candidate) -> Candidate:
    """The unquantized model as the same runtime computes it."""
    kind = "bf16" if one.runtime in ("llama.cpp", "vllm") else "fp32"
    entry = Entry("none", kind, "none", ())
    return candidate(entry, one.runtime, one.options, context.model_folder, context.device, interpreter_of(one.runtime))


def gain(plain: Sequence[Round], ours: Sequence[Round], what: str) -> Figure | None:
    """Round by round, the unquantized model's time over this one's."""
    ratios = [getattr(p, what) / getattr(o, what) for p, o in zip(plain, ours, strict=False) if getattr(o, what)]
    return figure(ratios, "measured", f"{what}, unquantized over quantized, rounds in turns") if ratios else None
