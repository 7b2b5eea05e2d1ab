"""Weights, activations and cache chosen apart: who is joined on planted predictions, what a joined artifact holds and does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor import advise as advising
from quantadvisor.advisor import combinations as joining
from quantadvisor.advisor import prove
from quantadvisor.advisor.advise import (
    advise,
    closest,
    exclude_by_quality,
    ghosts_to_run,
    predicted_candidate,
    within_limits,
)
from quantadvisor.advisor.builds import build_all, make
from quantadvisor.advisor.candidates import Entry, candidate, enumerate_candidates, recipe
from quantadvisor.advisor.catalogue import NOMINAL
from quantadvisor.advisor.combinations import BINDS, added, both_bind, chosen_apart, combinations
from quantadvisor.advisor.context import Context
from quantadvisor.advisor.ghosts import ghost_method
from quantadvisor.advisor.predict import Probes
from quantadvisor.advisor.risk import RESERVE, Job, schemes_at_risk, score, simulate
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import Candidate, Interval, Predicted, Quality, Shares, SourceCheckpoint
from quantadvisor.methods.fake import applied
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.measure import objective_value
from quantadvisor.profiling.quality import quality_of

from ..methods.conftest import session, write_llama
from .documents import candidate as planted
from .documents import workload
from .test_diagnose import INVENTORY
from .test_predict import ghost, kernels

BOTH = Shares(weights=0.5, activations=0.1, kv_cache=0.3, other=0.1)
PLACES = ("onnxruntime", "openvino+f32", "openvino+bf16", "llama.cpp+fa")


def predicted(name: str, tpot: float, kl: float | None = None, **more: Any) -> Candidate:
    times = {"ttft_s": 100 * tpot, "tpot_s": tpot, "peak_bytes": int(tpot * 1e12)}
    value = objective_value("latency", workload().traffic, times["ttft_s"], times["tpot_s"])
    update = {"measured": None, "quality": None, "predicted": Predicted(objective=value, kl=kl, **times), **more}
    return planted(name, 1.0).model_copy(update=update)


def everyone(place: str) -> list[Candidate]:
    """Seconds a token: weights take 10 ms in fp32, the cache 5; INT4's are the fastest, and GPTQ's of better quality."""
    return [
        predicted(f"none-fp32@{place}", 0.015),
        predicted(f"rtn-w8-g64@{place}", 0.009, kl=0.01),
        predicted(f"rtn-w4-g64@{place}", 0.008, kl=0.04),
        predicted(f"gptq-w4-g64@{place}", 0.008, kl=0.02),
        predicted(f"rtn-w3-g64@{place}", 0.007, kl=0.4, excluded="simulated mean KL 0.4"),
        predicted(f"kv_int8-fp32-kv8@{place}", 0.0125),
        predicted(f"kv_int8-w8-g64-kv8@{place}", 0.0066),
    ]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context of no model, where nothing is refused."""
    monkeypatch.setattr("quantadvisor.advisor.candidates.refusal", lambda *_: None)
    monkeypatch.setattr("quantadvisor.advisor.candidates.missing_writer", lambda _: None)
    monkeypatch.setattr("quantadvisor.advisor.candidates.crash", lambda *_: None)
    monkeypatch.setattr("quantadvisor.methods.gguf.refuse", lambda *_: None)
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    source = SourceCheckpoint(model="m", path="p", sha256="0" * 64)
    return Context(workload(), describe_device(), INVENTORY, source, tmp_path, tmp_path, Quiet())


@pytest.mark.parametrize(
    ("weights", "activations", "cache", "asked"),
    [(0.5, 0.1, 0.3, True), (0.1, 0.1, 0.8, True), (0.9, 0.05, BINDS - 0.01, False), (0.05, 0.05, 0.9, False)],
)
def test_both_must_bind(weights: float, activations: float, cache: float, asked: bool, places: Context) -> None:
    shares = Shares(weights=weights, activations=activations, kv_cache=cache, other=1 - weights - activations - cache)
    assert both_bind(shares) is asked
    assert bool(combinations(places, everyone("onnxruntime"), shares)) is asked


def test_the_best_weights_come_under_the_best_cache(places: Context) -> None:
    """Of all open weights under all caches, tried by brute force, no sum is faster than that of what was chosen apart; of
    equals the one of better simulated quality."""
    here = everyone("onnxruntime")
    (found,) = combinations(places, here, BOTH)
    assert found.name == "gptq-w4-g64-kv8@onnxruntime"
    assert (found.scheme.weights, found.scheme.keys) == (scheme("w4-g64").weights, scheme("fp32-kv8").keys)
    by_name = {one.name.partition("@")[0]: one for one in here}
    pairs = [("kv_int8-fp32-kv8", "none-fp32"), ("kv_int8-w8-g64-kv8", "rtn-w8-g64")]
    sums = []
    for weights, (cache, plain) in product(("rtn-w8-g64", "rtn-w4-g64", "gptq-w4-g64"), pairs):
        total = added(joining.Apart(by_name[weights], by_name[cache], by_name[plain]), places.workload)
        assert total and total.tpot_s and total.objective
        parts = [by_name[name].predicted for name in (weights, cache, plain)]
        first, second, third = (part.tpot_s or 0.0 for part in parts if part)
        assert total.tpot_s == pytest.approx(first + second - third)
        sums.append(total.objective)
    assert found.predicted and found.predicted.objective
    assert found.predicted.objective == pytest.approx(min(sums), rel=0.02)
    assert found.predicted.kl is None, "the error of a sum is measured"
    assert found.predicted.basis.startswith("gptq-w4-g64, plus what kv_int8-")


def test_a_cache_that_gains_nothing_is_not_joined_and_what_is_listed_not_again(places: Context) -> None:
    useless = [one if "kv8" not in one.name else predicted(one.name, 0.0149) for one in everyone("onnxruntime")[:6]]
    assert chosen_apart(useless, places.workload) == []
    eight = [one for one in everyone("onnxruntime") if "w4" not in one.name]
    assert [one.weights.name for one in chosen_apart(eight, places.workload)] == ["rtn-w8-g64@onnxruntime"]
    assert combinations(places, eight, BOTH) == []  # kv_int8-w8-g64-kv8 is that very artifact
    assert recipe("kv_int8", scheme("w8-g64-kv8"), "onnxruntime") == ("rtn", scheme("w8-g64"))


def test_at_most_three_become_candidates_and_their_breaches_are_said(places: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [one for place in PLACES for one in everyone(place) if place != "llama.cpp+fa"]
    listed += [predicted("gguf-q8_0@llama.cpp+fa", 0.009), predicted("gguf-q4_k@llama.cpp+fa", 0.006)]
    listed += [predicted("kv_int8-q8_0-kv8@llama.cpp+fa", 0.008), predicted("kv_int4-q8_0-kv4@llama.cpp+fa", 0.0085)]
    every = combinations(places, listed, BOTH)
    assert {one.name for one in every} == {
        "gptq-w4-g64-kv8@onnxruntime", "gptq-w4-g64-kv8@openvino+f32", "gptq-w4-g64-kv8@openvino+bf16",
        "gguf-q4_k-kv8@llama.cpp+fa", "gguf-q4_k-kv4@llama.cpp+fa",
    }  # fmt: skip
    monkeypatch.setattr(advising, "predicted_candidate", lambda _, one, *more: one)
    advice = advise(places, listed, (), Probes((), INVENTORY, 0.5), listed[0].name, {}, BOTH)
    new = [one.name for one in advice.candidates[len(listed) :]]
    assert new[:2] == ["gguf-q4_k-kv8@llama.cpp+fa", "gguf-q4_k-kv4@llama.cpp+fa"]  # the best under each cache
    assert len(new) == 3
    assert advice.choice == new[0]
    tight = SimpleNamespace(workload=workload(slo={"tpot_ms": 4}))
    judged = within_limits(tight, every[0], {})  # type: ignore[arg-type]
    assert "over the SLO" in str(judged.excluded)


def test_every_weight_of_a_runtime_that_has_the_cache_goes_under_it(tmp_path: Path) -> None:
    """Not one is refused for its cache; what is refused is so without it too. (On a CPU that ends at AVX2 vLLM has no FP8 cache
    for any weights.)"""
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    here = describe_device()
    device = here.model_copy(update={"isa": tuple({*here.isa, "avx512f"})})
    work = workload(runtimes=["onnxruntime", "openvino", "vllm", "triton"], budget={"train_s": 1})
    seen = set()
    for one in enumerate_candidates(work, tmp_path, device):
        end = {"vllm": "-kvf8-unit", "triton": "-kv4-turbo"}.get(one.runtime, "-kv8")
        if one.scheme.quantizes_cache:
            continue
        entry = Entry(one.method, one.scheme.name + end, "kv_cache", ())
        both = candidate(entry, one.runtime, one.options, tmp_path, device, interpreter_of(one.runtime))
        assert both.refused == one.refused, both.name
        assert recipe(both.method, both.scheme, both.runtime) == (one.method, one.scheme)
        seen |= {(one.method, one.runtime)} if one.refused is None else set()
    assert {
        (name, "onnxruntime") for name in ("gptq", "awq", "smoothquant", "smoothquant_gptq", "mixed", "llm_int8", "rotation")
    } <= seen
    assert ("gptq", "openvino") in seen


def simulated(low: float, mean: float, high: float, top1: float = 0.9) -> Quality:
    kl, agreement = Interval(mean=mean, low=low, high=high), Interval(mean=top1, low=top1 - 0.01, high=top1 + 0.01)
    return Quality(perplexity=20.0, kl=kl, top1=agreement, tokens=512, text="planted", simulated=True)


@pytest.mark.parametrize("place", ["w8a8@onnxruntime", "w8a8@onnxruntime-genai", "w8a8-bf16@vllm"])
@pytest.mark.parametrize(
    ("alone", "joined", "excluded"),
    [
        (simulated(0.01, 0.012, 0.014), None, (None, "-{} alone is well inside the budget (mean KL 0.012 [0.01, 0.014], sim")),
        (simulated(0.02, 0.026, 0.03), None, (None, None)),
        (simulated(0.03, 0.04, 0.06), simulated(0.02, 0.03, 0.04), (None, None)),
        (simulated(0.04, 0.06, 0.07), simulated(0.02, 0.03, 0.04), (None, None)),
        (simulated(0.06, 0.07, 0.08), simulated(0.03, 0.04, 0.06), ("KL 0.07 is over", None)),
        (simulated(0.06, 0.07, 0.08), simulated(0.051, 0.06, 0.07), ("KL 0.07 is over", "KL 0.06 is over")),
        (simulated(0.2, 0.3, 0.4), None, ("KL 0.3 is over", "-{} has mean KL 0.3, over 5 times")),
        (simulated(0.01, 0.012, 0.014, top1=0.805), None, (None, None)),
        (None, None, (None, None)),
    ],
)  # fmt: skip
def test_weights_join_activations_where_these_alone_may_not_hold(
    place: str, alone: Quality | None, joined: Quality | None, excluded: tuple[str | None, str | None]
) -> None:
    """SmoothQuant alone well inside, inside, across, and over the budget of 0.05 or 0.8; over five times; and not simulated."""
    name = place.partition("@")[0]
    found = {f"smoothquant-{name}": alone, f"smoothquant_gptq-{name}": joined}
    both = [planted(f"{method}-{place}", 1.0, target="activations") for method in ("smoothquant", "smoothquant_gptq")]
    asked = workload(quality={"kl_mean_max": 0.05, "top1_agreement_min": 0.8})
    judged = exclude_by_quality(both, {key: one for key, one in found.items() if one}, asked)
    for one, reason in zip(judged, excluded, strict=True):
        assert (one.excluded is None) == (reason is None), one.excluded
        assert reason is None or reason.format(name) in str(one.excluded)


def test_what_is_joined_is_simulated_only_where_it_may_become_a_candidate(tmp_path: Path) -> None:
    """In the process that simulates too; and once for both float types that its integers go into."""
    from quantadvisor.methods import smoothquant_gptq

    from ..methods.conftest import torch_logits

    folder = write_llama(tmp_path / "hf")
    windows, calibration = (np.random.default_rng(seed).integers(3, 256, (2, 32)).astype(np.int64) for seed in (0, 1))
    np.save(tmp_path / "reference.npy", np.concatenate([torch_logits(folder, row) for row in windows]))
    np.save(tmp_path / "calibration.npy", calibration)
    names = [(method, name) for method in ("smoothquant_gptq", "smoothquant") for name in ("w8a8", "w8a8-bf16")]
    chosen = schemes_at_risk([(method, scheme(name)) for method, name in names])
    assert set(chosen) == {f"{method}-{name}" for method, name in names}

    def found(budget: float) -> dict[str, np.ndarray]:
        asked = workload(quality={"kl_mean_max": budget})
        return simulate(Job(folder, chosen, tmp_path / "calibration.npy", asked), windows, tmp_path / "reference.npy").found

    alone = {"smoothquant-w8a8", "smoothquant-w8a8-bf16"}
    kl = quality_of(found(1.0)["smoothquant-w8a8"], "t", simulated=True).kl
    assert set(found(kl.high * RESERVE * 1.01)) == alone
    assert set(found(kl.high * RESERVE * 0.99)) == set(chosen)
    assert set(found(kl.mean / 5.01)) == alone
    at_risk = found(kl.mean)
    assert set(at_risk) == set(chosen)
    assert at_risk["smoothquant_gptq-w8a8"] is at_risk["smoothquant_gptq-w8a8-bf16"]
    with applied(smoothquant_gptq.fake(load(folder), scheme("w8a8"), calibration)) as logits:
        own = score(logits, windows, np.load(tmp_path / "reference.npy"))
    np.testing.assert_allclose(at_risk["smoothquant_gptq-w8a8"][1], own[1], rtol=1e-6)
    assert at_risk["smoothquant_gptq-w8a8"][1].mean() != at_risk["smoothquant-w8a8"][1].mean()


def test_weights_joined_to_activations_have_their_times_and_need_no_ghost_of_their_own(places: Context) -> None:
    """Of both that one is measured whose simulated quality is better."""
    names = [f"{method}-w8a8@onnxruntime" for method in ("smoothquant", "smoothquant_gptq")]
    alone, joined = (planted(name, 1.0, target="activations").model_copy(update={"measured": None}) for name in names)
    probes = Probes(kernels(), INVENTORY, 0.5)
    assert [one.name for one in ghosts_to_run([alone, joined], probes, places.workload, False)] == [alone.name]
    assert ghost_method("smoothquant_gptq", joined.scheme) == ghost_method("smoothquant", alone.scheme) == "dynamic_int8"
    found = {"smoothquant-w8a8": simulated(0.04, 0.045, 0.06), "smoothquant_gptq-w8a8": simulated(0.02, 0.03, 0.04)}
    schemes, ran = {"w8a8": alone.scheme}, ghost().model_copy(update={"scheme": "w8a8"})
    first, second = (predicted_candidate(places, one, [ran], probes, schemes, found, lambda _: None) for one in (alone, joined))
    assert first.predicted and second.predicted and first.predicted.objective
    assert (first.predicted.ttft_s, first.predicted.tpot_s, first.predicted.peak_bytes) == (
        second.predicted.ttft_s, second.predicted.tpot_s, second.predicted.peak_bytes,
    )  # fmt: skip
    assert second.predicted.kl == 0.03
    assert closest([first, second], places.workload) == [second]


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    root = tmp_path_factory.mktemp("combined")
    patch = pytest.MonkeyPatch()
    patch.setenv("QUANTADVISOR_CACHE", str(root / "cache"))
    hf = write_llama(root / "hf", max_position_embeddings=1024)
    inventory = inventory_from_config(json.loads((hf / "config.json").read_text()))
    source = SourceCheckpoint(model=str(hf), path=str(hf), sha256="0" * 64)
    traffic = {"prompt_tokens": 112, "output_tokens": 8, "concurrency": 1}
    spec = {"traffic": traffic, "calibration": {"samples": 4}, "quality": {"kl_mean_max": 5.0}}
    yield Context(workload(model=str(hf), **spec), describe_device(), inventory, source, hf, root / "out", Quiet())
    patch.undo()


def in_process(context: Context, method: str, name: str, runtime: str = "onnxruntime") -> Path:
    """The artifact, with what lies below it, built here."""
    build = context.build(method, scheme(name), runtime)
    calibration = np.load(build.calibration)
    for one in (context.build("none", scheme("fp32"), runtime), build.below, build):
        if one and not one.out.exists():
            make(one, calibration)
    return build.out


def cached(out: Path, rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """What a folder with a plain cache leaves in it after rows [B, S]: {present.…: [B, heads, S, width]}."""
    opened = session(out, "model.onnx")
    past = {v.name: np.zeros((len(rows), v.shape[1], 0, width), np.float32) for v in opened.get_inputs() if "past" in v.name}
    names = [value.name for value in opened.get_outputs() if "present" in value.name]
    feeds = {"input_ids": rows, "attention_mask": np.ones(rows.shape, np.int64), **past}
    return dict(zip(names, opened.run(names, feeds), strict=True))


def tensors(folder: Path) -> dict[str, Any]:
    """Initializers by name; large ones as their places in the data file."""
    import onnx

    return {one.name: one for one in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer}


def scales_of(folder: Path) -> dict[str, np.ndarray]:
    import onnx

    found = tensors(folder).items()
    return {name: onnx.numpy_helper.to_array(one) for name, one in found if name.endswith(("k_scale", "v_scale"))}


@pytest.mark.parametrize(
    ("method", "name"), [("gptq", "w4-g64"), ("awq", "w4-g64"), ("smoothquant", "w8a8"), ("smoothquant_gptq", "w8a8")]
)
@pytest.mark.parametrize(("end", "top"), [("-kv8", 127), ("-kv4", 7)])
def test_weights_are_those_of_the_method_alone_and_the_cache_that_of_its_keys_and_values(
    method: str, name: str, end: str, top: int, built_in: Context
) -> None:
    """Bit for bit; scales are of the keys and values that the lone artifact computes over the calibration, by numpy."""
    alone, both = in_process(built_in, method, name), in_process(built_in, method, name + end)
    mine, theirs, scales = tensors(both), tensors(alone), scales_of(both)
    assert {name: one for name, one in mine.items() if name not in scales} == theirs
    assert (both / "model.onnx.data").samefile(alone / "model.onnx.data")
    assert len(scales) == 2 * built_in.inventory.layers
    found = cached(alone, built_in.calibration, built_in.inventory.head_dim)
    for layer in range(built_in.inventory.layers):
        keys, values = (found[f"present.{layer}.{kind}"] for kind in ("key", "value"))
        half = keys.shape[-1] // 2
        pairs = np.tile(np.hypot(keys[..., :half], keys[..., half:]), 2)
        for side, sizes in (("k", pairs), ("v", np.abs(values))):
            (scale,) = (value for key, value in scales.items() if f"layers.{layer}." in key and key.endswith(f"{side}_scale"))
            np.testing.assert_allclose(scale, sizes.max(axis=(0, 2)).reshape(-1) / top, rtol=1e-4)


def test_moved_scales_reach_the_cache(built_in: Context) -> None:
    """AWQ divides v_proj's rows by its scales: the values of its artifact are others than those of the fp32 model."""
    both, plain = (scales_of(in_process(built_in, *one)) for one in (("awq", "w4-g64-kv8"), ("kv_int8", "fp32-kv8")))
    ratios = [both[key] / plain[key] for key in plain if key.endswith("v_scale")]
    assert max(float(np.abs(np.log(ratio)).max()) for ratio in ratios) > 0.1


@pytest.mark.slow
def test_the_sum_runs_and_its_error_is_measured(built_in: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both runtimes: integer linears and an integer cache really ran, and the KL is that of the two together."""
    monkeypatch.setattr(Context, "passkey", lambda _: (np.arange(3, 30), np.arange(3, 5)))
    monkeypatch.setattr(prove, "passkey_found", lambda *_: True)
    chosen = [
        candidate(Entry(*parts, "kv_cache", ()), name, tuple(options), built_in.model_folder, built_in.device, sys.executable)
        for name, *options in (["onnxruntime"], ["openvino", "f32"])
        for parts in (("gptq", "w4-g64"), ("gptq", "w4-g64-kv8"), ("kv_int8", "fp32-kv8"))
    ]
    assert [one.refused for one in chosen] == [None] * 6
    exports = [built_in.build("none", scheme("fp32"), runtime) for runtime in ("onnxruntime", "openvino")]
    assert not any(made.failed for made in build_all(exports, built_in.progress.say, processes=1).values())
    baseline: Any = SimpleNamespace(name="another")
    trials = prove.run_trials(built_in, chosen, baseline, rounds=1).trials
    for place in range(0, len(trials), 3):
        alone, both, cache = trials[place : place + 3]
        assert not any(trial.failed for trial in (alone, both, cache)), [trial.failed for trial in trials]
        kls = [trial.quality.kl.mean for trial in (alone, both, cache) if trial.quality]
        assert len(set(kls)) == 3
        assert kls[1] > kls[2] > 0
        assert both.quality and both.quality.chunk_tokens, "in one pass the cache is never read"
        assert both.operators and alone.operators
        assert both.operators.quantized_linears == alone.operators.quantized_linears > 0
    onnx, openvino = (trials[place].operators for place in (1, 4))
    assert onnx and openvino
    assert any(row.precision == "int8 cache" and row.quantized for row in onnx.operators)
    assert "cache stored in u8" in openvino.notes
