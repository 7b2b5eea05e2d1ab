"""A workload spec as a side of the gate: what its user runs today, the spec's `baseline` of its `model`, or its server."""

from __future__ import annotations

import json
from pathlib import Path

from quantadvisor.documents import BadInput, Device, NotComparable, RuntimeChoice, Workload
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import check_runtime
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.runtimes.registry import runtime_file

from .candidates import baseline_name, session_options
from .context import Context, cache_folder
from .diagnose import options_of, split
from .gate_sides import Side, interpreter_for
from .model_source import resolve_model
from .stages import Progress


def server_of(workload: Workload) -> str | None:
    """URL of the server that the spec names as its runtime."""
    choices = () if workload.runtimes == "auto" else workload.runtimes
    return next((c.url for c in choices if isinstance(c, RuntimeChoice) and c.url), None)


def check_same_traffic(baseline: Workload, candidate: Workload) -> None:
    """Both sides are asked the same; NotComparable names the first field that differs."""
    before, after = (one.traffic.model_dump(mode="json") for one in (baseline, candidate))
    for name, was in before.items():
        if was != after[name]:
            raise NotComparable(
                f"not comparable: workload.traffic.{name} differs: {was!r} in the baseline, {after[name]!r} in the candidate"
            )


def side_of_spec(where: str, workload: Workload, python: str | None, device: Device, out: Path, progress: Progress) -> Side:
    """Builds the artifact below `out` (the fp32 export of a model is kept in the cache) and names its runtime."""
    folder, source = resolve_model(workload.model, cache_folder(), workload.trust_remote_code, progress.say)
    name = baseline_name(workload, device, source.already_quantized, "float32")
    try:
        runtime_name, scheme_name = split(name)
        made, options = scheme(scheme_name), options_of(name)
    except (IndexError, ValueError):
        raise BadInput(f"{where}: baseline", f"{name!r} is no candidate's name", "such as none-bf16@torch") from None
    check_runtime(f"{where}: baseline", runtime_name)
    options = session_options(runtime_name, options, made)
    inventory = inventory_from_config(json.loads((folder / "config.json").read_text()))
    context = Context(workload, device, inventory, source, folder, out, progress)
    what, own = f"{where}: {name}", context.interpreter(runtime_name)
    lives = interpreter_for(where, what, runtime_name, options, own, python, None, device)
    build = context.build(name.split("-")[0], made, runtime_name)
    bases = [context.build("none", scheme("fp32"), runtime_name)] if build.base and build.base != build.out else []
    built = context.build_all([*bases, build])[build.out]
    if built.failed:
        raise BadInput(what, f"cannot be built: {built.failed}")
    return Side(build.out, runtime_name, options, lives, runtime_file(runtime_name))
