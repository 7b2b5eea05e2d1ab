"""Small documents that the tests of the pure functions share."""

from quantadvisor.documents import Candidate, Figure, Interval, Measured, Quality, Workload
from quantadvisor.methods.schemes import scheme


def workload(**more: object) -> Workload:
    traffic = {"prompt_tokens": 512, "output_tokens": 128, "concurrency": 1}
    return Workload.model_validate({"schema": "quantadvisor/workload/1", "model": "m", "traffic": traffic, **more})


def figure(value: float, spread: float = 0.01) -> Figure:
    return Figure(median=value, low=value * (1 - spread), high=value * (1 + spread), samples=(value,))


def quality(kl: float) -> Quality:
    return Quality(
        perplexity=10, kl=Interval(mean=kl, low=kl, high=kl), top1=Interval(mean=0.9, low=0.9, high=0.9), tokens=64, text="t"
    )


def candidate(
    name: str, latency: float, kl: float = 0.001, target: str = "weights", users: float = 10, tpot: float = 0.01
) -> Candidate:
    method, rest = name.split("-", 1)
    scheme_name, place = rest.split("@")
    runtime, *options = place.split("+")
    return Candidate.model_validate(
        {
            "name": name,
            "method": method,
            "scheme": scheme(scheme_name),
            "runtime": runtime,
            "options": options,
            "target": target,
            "measured": Measured(
                ttft_s=figure(max(1e-3, latency - 127 * tpot)),
                tpot_s=figure(tpot),
                peak_bytes=figure(1e9),
                max_concurrency=figure(users),
                objective=figure(latency),
            ),
            "quality": quality(kl),
        }
    )
