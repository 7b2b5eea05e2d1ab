"""`advisor plan`: which precision on which runtime on how many of which GPUs, from a config alone. Pure but for the config.

All times are modelled (serving_model), all bytes too (profiling/gpu_memory). Candidates within a tie (decide.TIE) of the best are
tied; ties go to better quality, then to fewer GPUs. Quality is cited, never measured here: the order of `plan_candidates.STEMS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from quantadvisor.documents import BadInput, Bounds, CapacityPlan, DevicePlan, GpuModel, Inventory, PlanCandidate, Workload
from quantadvisor.kernels.gpu_devices import gpu
from quantadvisor.profiling.inventory import inventory_from_config

from .decide import maximised
from .map_edges import advised, tied
from .plan_candidates import Option, isolated, known_config, limit_bytes_of, options_on
from .plan_family import family
from .plan_map import Field, case, decision_map, over_slo, percentile_of, preference, rate, request_s, users_within, value
from .serving_fit import Parameters
from .serving_model import Prediction, predict_cases
from .serving_tail import ROUNDS
from .spec import check_against_model


def plan(workload: Workload, devices: Sequence[str], parameters: Parameters) -> CapacityPlan:
    """The answer for each device. BadInput for what no device can serve."""
    config = known_config(workload.model)
    inventory = inventory_from_config(config)
    check_against_model(workload, inventory.max_context_tokens, 0)
    chosen = list({found.name: found for found in map(gpu, devices)}.values())
    found = [(device, *options_on(device, config, workload)) for device in chosen]
    refuse_floor(workload, [option for _, fits, _ in found for option in fits])
    largest = max(chosen, key=lambda one: one.memory_bytes)
    plans = tuple(device_plan(*each, workload, parameters) for each in found)
    return CapacityPlan(
        workload=workload,
        devices=plans,
        family=family(workload, largest, partial(planned_on, largest, workload=workload, parameters=parameters)),
        notes=(
            *inventory.notes,
            *unbounded(inventory),
            *faster_than_measured(plans, parameters),
            *judged_on(workload, largest),
            *held_against(workload),
            *not_planned_for(workload),
        ),
    )


def planned_on(
    device: GpuModel, config: Mapping[str, Any], workload: Workload, parameters: Parameters
) -> tuple[PlanCandidate, ...]:
    """Every candidate of a model there: timed, or refused."""
    fits, refused = options_on(device, config, workload)
    return (*(judged(fits, workload, parameters) if fits else ()), *refused)


def unbounded(inventory: Inventory) -> tuple[str, ...]:
    if inventory.max_context_tokens is not None:
        return ()
    return ("the config has no max_position_embeddings: the context is not held against a limit of the model",)


def faster_than_measured(plans: Sequence[DevicePlan], parameters: Parameters) -> list[str]:
    """Small models on fast GPUs: public verdicts (docs/validation.md) have quantized ones no faster there."""
    bound = f"{1e3 * parameters.shortest_s:.3g} ms"
    why = f"no measured server was below {bound}, and where its host sets the pace, fewer bits make nothing faster"
    chosen = [(one.device, one.candidates[0].tpot_ms) for one in plans if one.choice is not None]
    return [
        f"{device}: {tpot.value:.3g} ms a token is what the GPU takes; {why}"
        for device, tpot in chosen
        if tpot is not None and tpot.value < 1e3 * parameters.shortest_s
    ]


def judged_on(workload: Workload, device: GpuModel) -> tuple[str, ...]:
    """Where the sizes of a family were judged."""
    if not workload.family:
        return ()
    tensor = workload.parallel.tensor
    gpus = f"one {device.name}" if tensor == 1 else f"{tensor} {device.name}"
    return (f"the sizes of the family are judged on {gpus} (parallel.tensor of the largest GPU named)",)


def held_against(workload: Workload) -> tuple[str, ...]:
    """What the users within an SLO mean."""
    if workload.slo is None:
        return ()
    share = f"{workload.slo.percentile:g} % of requests"
    closed = f"a closed loop of {ROUNDS} rounds that starts with all prompts at once"
    return (f"the SLO is held by {share}, modelled for {closed}; without that start more users hold it",)


def not_planned_for(workload: Workload) -> tuple[str, ...]:
    """Declared fields that no prediction here rests on, each to be said."""
    traffic = workload.traffic
    declared = {
        "traffic.batch": traffic.batch is not None,
        "traffic.arrivals": traffic.arrivals != "closed",
        "checkpoints": bool(workload.checkpoints),
        "baseline": workload.baseline != "auto",
    }
    return tuple(f"{field} is declared, and plan does not act on it" for field, on in declared.items() if on)


def refuse_floor(workload: Workload, options: Sequence[Option]) -> None:
    """An SLO that nothing meets, were all of the bandwidth and of the peak reached and nothing else done."""
    if workload.slo is None or not options:
        return
    rows = workload.traffic.prompt_length - workload.traffic.shared_prefix_tokens
    bandwidth, peak = (
        "reading the weights once takes {} at the data sheet's bandwidth",
        "the prompt's products take {} at its peak",
    )
    limits = (
        ("tpot_ms", workload.slo.tpot_ms, weights_s, bandwidth),
        ("ttft_ms", workload.slo.ttft_ms, partial(prompt_s, rows=max(1, rows)), peak),
    )
    for field, wanted, floor_s, why in limits:
        if wanted is None:
            continue
        floor, name = min((1e3 * floor_s(one), f"{one.candidate.name} on {one.candidate.device}") for one in options)
        if wanted < floor:
            said = f"{wanted:g} is below the physical floor: {why.format(f'{name} {floor:.3g} ms')}"
            raise BadInput(f"slo.{field}", said, "raise it, or name a faster --device")


def weights_s(option: Option) -> float:
    """Seconds to read what one token needs of the weights, at full bandwidth."""
    return sum(one.weight_s * one.chosen / one.experts for one in option.placement.products)


def prompt_s(option: Option, rows: int) -> float:
    """Seconds to multiply a prompt's rows, at full peak; of lm_head one row."""
    return sum(one.flop_s * (1 if one.head else rows) for one in option.placement.products)


def device_plan(
    device: GpuModel, fits: Sequence[Option], refused: Sequence[PlanCandidate], workload: Workload, parameters: Parameters
) -> DevicePlan:
    if not fits:
        reason = refused[0].refused if len(refused) == 1 else "No candidate fits: see each one's reason"
        return DevicePlan(device=device.name, choice=None, reason=str(reason), candidates=tuple(refused))
    timed = judged(fits, workload, parameters)
    ranked = sorted(timed, key=lambda one: rank(one, workload))
    feasible = [one for one in ranked if one.excluded is None]
    if not feasible:
        return DevicePlan(device=device.name, choice=None, reason=nearest(ranked, workload), candidates=(*ranked, *refused))
    choice = chosen_of(feasible, fits, workload)
    plain = [one for one in feasible if one.scheme == "bf16"]
    base = chosen_of(plain, fits, workload) if plain else None
    limit = min(device.memory_bytes, limit_bytes_of(workload) or device.memory_bytes)
    shown = [choice.name] + ([base.name] if base else [])
    return DevicePlan(
        device=device.name,
        choice=choice.name,
        reason=reason_of(choice, base, workload),
        candidates=(choice, *(one for one in ranked if one.name != choice.name), *refused),
        tied_with=tuple(name for name in tied(objectives(feasible), workload) if name != choice.name),
        unquantized=base.name if base else None,
        decision_map=decision_map(Field(fits, choice.name, workload, parameters, limit), shown),
        speed_effect=base.tpot_ms.value / choice.tpot_ms.value if base and base.tpot_ms and choice.tpot_ms else None,
        capacity_effect=capacity(choice) / capacity(base) if base else None,
    )


def nearest(ranked: Sequence[PlanCandidate], workload: Workload) -> str:
    """Why nothing is advised, and who comes nearest to it."""
    most = max(ranked, key=lambda one: one.users_within_slo)
    if not most.users_within_slo:
        return "Nothing meets the SLO, not even for one request"
    where = f"{most.tensor} GPUs" if most.tensor > 1 else "one GPU"
    serves = f"the most is {most.users_within_slo:,}, {most.name} on {where}"
    return f"Nothing serves {workload.traffic.concurrency:,} requests in flight inside memory and SLO: {serves}"


def judged(fits: Sequence[Option], workload: Workload, parameters: Parameters) -> list[PlanCandidate]:
    """The candidates with their times at the declared point, users within the SLO, and cost."""
    traffic = workload.traffic
    cases = [case(one, traffic.concurrency, workload) for one in fits]
    at = predict_cases(parameters, cases, percentile_of(workload))
    users = users_within(fits, workload, parameters, traffic.context_length)
    return [with_times(*each, workload) for each in zip(fits, at, users, strict=True)]


def with_times(option: Option, found: Prediction, users: int, workload: Workload) -> PlanCandidate:
    traffic, one = workload.traffic, option.candidate
    running = min(traffic.concurrency, option.memory.max_concurrency)
    per_gpu = rate(request_s(found, workload), traffic.concurrency, option, workload)
    price = workload.price_per_hour
    middle = traffic.prompt_length + traffic.output_length // 2
    fresh = max(1, traffic.prompt_length - traffic.shared_prefix_tokens)
    kernels, prompt = isolated(option, running, middle), isolated(option, 1, middle, fresh)
    return one.model_copy(
        update={
            "ttft_ms": Bounds(value=found.ttft_ms, low=found.ttft_low, high=found.ttft_high),
            "tpot_ms": Bounds(value=found.tpot_ms, low=found.low, high=found.high),
            "ttft_tail_ms": found.ttft_tail_ms if workload.slo else None,
            "tpot_tail_ms": found.tpot_tail_ms if workload.slo else None,
            "users_within_slo": users,
            "tokens_per_s_per_gpu": per_gpu,
            "cost_per_million_tokens": None if price is None else price / (per_gpu * 3600) * 1e6,
            "objective": value(found, option, traffic.concurrency, users, workload),
            "excluded": excluded(found, running, workload),
            "kernels": kernels.kind,
            "kernels_ms": 1e3 * kernels.seconds,
            "prompt_kernels": prompt.kind,
            "prompt_kernels_ms": 1e3 * prompt.seconds,
        }
    )


def excluded(found: Prediction, running: int, workload: Workload) -> str | None:
    traffic, slo = workload.traffic, workload.slo
    if running < traffic.concurrency:
        return f"{running} of {traffic.concurrency} requests fit at {traffic.context_length:,} tokens of context"
    missed = over_slo(found, workload)
    if missed is None or slo is None:
        return None
    name, tail, wanted = {
        "ttft": ("TTFT", found.ttft_tail_ms, slo.ttft_ms),
        "tpot": ("TPOT", found.tpot_tail_ms, slo.tpot_ms),
    }[missed]
    return f"{name} p{slo.percentile:g} {tail:,.1f} ms is above the {wanted:g} ms of the SLO"


def rank(one: PlanCandidate, workload: Workload) -> tuple[bool, float]:
    assert one.objective is not None
    return one.excluded is not None, -one.objective if maximised(workload) else one.objective


def chosen_of(feasible: Sequence[PlanCandidate], fits: Sequence[Option], workload: Workload) -> PlanCandidate:
    """The best by the objective; among those tied with it, better quality, then fewer GPUs."""
    values = objectives(feasible)
    options = {one.candidate.name: one for one in fits}
    name = advised(values, None, workload, lambda name: preference(options[name], values[name], workload))
    return next(one for one in feasible if one.name == name)


def objectives(feasible: Sequence[PlanCandidate]) -> dict[str, float]:
    return {one.name: one.objective for one in feasible if one.objective is not None}


def capacity(one: PlanCandidate) -> float:
    return float(one.memory.max_concurrency) if one.memory else 0.0


def reason_of(choice: PlanCandidate, base: PlanCandidate | None, workload: Workload) -> str:
    """One sentence: what wins by what."""
    if base is None:
        return f"{choice.scheme}: unquantized weights do not meet the declared point here"
    if choice.scheme == "bf16":
        return "Unquantized: nothing quantized is faster by more than the doubt of a prediction"
    assert base.objective and choice.objective
    gain = choice.objective / base.objective if maximised(workload) else base.objective / choice.objective
    more = capacity(choice) / capacity(base)
    return f"{choice.scheme} is {gain:.2f}x of unquantized in {workload.objective}; {more:.2f}x the requests fit"
