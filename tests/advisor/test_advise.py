"""The shortlist on planted predictions."""

from types import SimpleNamespace

from quantadvisor.advisor.advise import closest, exclude_by_quality, ghosts_to_run, overlooked, predicted_candidate, shortlist
from quantadvisor.advisor.ghosts import ghost_method
from quantadvisor.advisor.predict import Probes
from quantadvisor.documents import Candidate, Ghost, Interval, Predicted, Quality
from quantadvisor.methods.schemes import scheme

from .documents import candidate, figure, workload
from .test_diagnose import INVENTORY
from .test_predict import ghost, kernels


def predicted(name: str, seconds: float, kl: float | None = None) -> Candidate:
    return candidate(name, seconds).model_copy(update={"measured": None, "predicted": Predicted(objective=seconds, kl=kl)})


def names(*order: Candidate) -> list[str]:
    return [c.name for c in closest(order, workload())]


def test_who_is_near_the_best_is_tried_with_at_most_two_runtimes_of_a_scheme() -> None:
    best, twin = predicted("rtn-w8-g64@onnxruntime", 1.0), predicted("rtn-w8-g64@onnxruntime-genai", 1.01)
    third, far = predicted("rtn-w8-g64@openvino+f32", 1.02), predicted("none-fp32@onnxruntime", 1.2)
    assert names(best, twin, third, far) == [best.name, twin.name]


def test_what_the_spec_names_is_measured_whatever_is_predicted() -> None:
    """A compiled one, of which nothing is predicted where the device's roofs are not known."""
    base, best = predicted("none-fp32@torch", 3.0), predicted("rtn-w8-g64@onnxruntime", 1.0)
    asked = predicted("none-fp32@torch+compile", 9.0).model_copy(update={"predicted": None})
    cannot = asked.model_copy(update={"name": "none-bf16@torch+compile", "refused": "finds no g++"})
    tried = shortlist([best, base], [base, best, asked, cannot], base.name, workload())
    assert set(tried) == {base.name, best.name, asked.name}


def test_a_quantized_cache_is_tried_only_where_it_is_predicted_to_gain() -> None:
    plain = predicted("rtn-w8-g64@onnxruntime", 1.0)
    assert names(plain, predicted("kv_int8-w8-g64-kv8@onnxruntime", 1.0)) == [plain.name]
    gains = predicted("kv_int8-w8-g64-kv8@onnxruntime", 0.9)
    assert names(gains, plain) == [gains.name, plain.name]
    alone = predicted("kv_int8-w8-g64-kv8@openvino+f32", 1.0)
    assert names(plain, alone) == [plain.name, alone.name]


def test_of_methods_for_the_same_kernels_the_one_of_best_quality_is_tried() -> None:
    plain, searched = predicted("rtn-w4-g64@onnxruntime", 1.0, kl=0.03), predicted("gptq-w4-g64@onnxruntime", 1.0, kl=0.02)
    elsewhere, unknown = predicted("rtn-w4-g64@openvino+f32", 1.05, kl=0.03), predicted("awq-w4-g64@onnxruntime", 1.0)
    assert names(plain, searched, unknown, elsewhere) == [searched.name, elsewhere.name]


def test_what_is_predicted_to_tie_with_the_best_measured_is_measured_too() -> None:
    held = candidate("mixed-w4w8-g64@onnxruntime", 1.5, kl=0.03)
    tie, twin = predicted("rtn-w8-g64@onnxruntime", 1.52, kl=0.01), predicted("rtn-w8-g64@onnxruntime-genai", 1.54, kl=0.01)
    cache, slow = predicted("kv_int8-w8-g64-kv8@onnxruntime", 1.52), predicted("none-fp32@onnxruntime", 1.6)
    same = predicted("mixed-w4w8-g64@onnxruntime-genai", 1.3)
    assert [c.name for c in overlooked([held, slow, cache, twin, tie, same], workload())] == [tie.name]
    assert overlooked([held, slow, same], workload()) == []
    worse = predicted("smoothquant-w8a8-tensor@onnxruntime", 1.48, kl=0.04)
    assert overlooked([held, worse], workload()) == []
    clearly = predicted("smoothquant-w8a8-tensor@onnxruntime", 1.4, kl=0.04)
    assert overlooked([held, worse, clearly], workload()) == [clearly]
    smoothed, turned = predicted("smoothquant-w8a8@onnxruntime", 1.5, 0.01), predicted("rotation-w8a8@onnxruntime", 1.4, 0.02)
    assert overlooked([held, turned], workload()) == [turned]
    assert overlooked([held, turned, smoothed], workload()) == [smoothed]  # the same kernels, better quality
    lost = candidate(smoothed.name, 1.4, kl=0.06).model_copy(update={"predicted": smoothed.predicted})  # over the budget of 0.05
    assert overlooked([held, turned, lost], workload()) == [turned]


def test_a_simulation_excludes_only_with_its_whole_interval() -> None:
    def simulated(low: float, high: float) -> Quality:
        kl, top1 = Interval(mean=(low + high) / 2, low=low, high=high), Interval(mean=0.9, low=0.88, high=0.92)
        return Quality(perplexity=20.0, kl=kl, top1=top1, tokens=512, text="planted", simulated=True)

    over, straddling = candidate("rtn-w4-g64@onnxruntime", 1.0), candidate("rtn-w8-g64@onnxruntime", 1.0)
    quality = {"rtn-w4-g64": simulated(0.06, 0.08), "rtn-w8-g64": simulated(0.046, 0.07)}
    excluded, kept = exclude_by_quality([over, straddling], quality, workload())
    assert excluded.excluded and "simulated mean KL 0.07 is over the budget of 0.05" in excluded.excluded
    assert kept.excluded is None


def test_both_halves_of_an_open_mixture_get_a_ghost() -> None:
    excluded = {"excluded": "simulated mean KL 0.7 is over the budget of 0.05"}
    four = candidate("rtn-w4-g64@onnxruntime", 1.0).model_copy(update=excluded)
    elsewhere = candidate("rtn-w4-g64@openvino+f32", 1.0).model_copy(update=excluded)
    eight, mixture = candidate("rtn-w8-g64@onnxruntime", 1.0), candidate("mixed-w4w8-g64@onnxruntime", 1.0)

    def ghosts(*candidates: Candidate) -> set[str]:
        return {c.name for c in ghosts_to_run(candidates, Probes([], INVENTORY, 0.5), workload(), False)}

    assert ghosts(four, elsewhere, eight, mixture) == {four.name, eight.name}
    assert ghosts(four, eight) == {eight.name}
    assert ghosts(four, eight, mixture.model_copy(update=excluded)) == {eight.name}


def test_7_bit_weights_run_in_another_kernel_where_8_saturate_and_get_a_ghost_of_their_own() -> None:
    both = [candidate(f"smoothquant-{name}@onnxruntime", 1.0) for name in ("w8a8", "w7a8")]
    assert ghosts_to_run(both, Probes((), INVENTORY, 0.5), workload(), cache_binds=False) == both


def test_fixed_ranges_run_in_the_kernels_of_dynamic_ones_and_need_no_ghost_beside_theirs() -> None:
    dynamic, static = (candidate(f"{name}@onnxruntime", 1.0) for name in ("dynamic_int8-w8a8", "static_int8-w8a8-static"))
    assert ghosts_to_run([dynamic, static], Probes((), INVENTORY, 0.5), workload(), cache_binds=False) == [dynamic]


def test_llm_int8_gets_a_ghost_of_its_own() -> None:
    plain, split = candidate("dynamic_int8-w8a8@onnxruntime", 1.0), candidate("llm_int8-w8a8-outlier@onnxruntime", 1.0)
    probes = Probes((), INVENTORY, 0.5)
    assert ghosts_to_run([plain, split], probes, workload(), cache_binds=False) == [plain, split]
    assert ghost_method("llm_int8", split.scheme) == "llm_int8"


def test_what_a_ghost_in_doubt_says_is_not_predicted_but_told() -> None:
    """Of two ghosts of a family the one in doubt carries nothing: its candidate is predicted from the other, with a note."""
    doubted = ghost("w8-g64").model_copy(update={"unused": "not believed: TTFT of 4081 s", "ttft_s": figure(4081.0)})
    one = predicted("rtn-w8-g64@onnxruntime", 1.0).model_copy(update={"predicted": None})
    schemes = {name: scheme(name) for name in ("fp32", "w8-g64")}
    context = SimpleNamespace(workload=workload(), inventory=INVENTORY, device=None)
    probes = Probes(kernels(), INVENTORY, 0.5)

    def seen(*ghosts: Ghost, first: Predicted | None = None) -> Candidate:
        return predicted_candidate(context, one, ghosts, probes, schemes, {}, lambda _: first)  # type: ignore[arg-type]

    carried = seen(ghost(), doubted)
    assert carried.predicted and carried.predicted.ttft_s
    assert carried.predicted.ttft_s < 10
    assert "ghost of fp32 in this runtime" in carried.predicted.basis
    assert carried.notes == ("its ghost was not believed: TTFT of 4081 s",)
    alone = seen(doubted)
    assert alone.predicted is None
    assert alone.refused is None
    assert alone.notes == carried.notes
    other = seen(doubted.model_copy(update={"scheme": "fp32"}))
    assert other.notes == ("the ghost of fp32 in its runtime was not believed: TTFT of 4081 s",)
    guess = Predicted(objective=1.0, ttft_s=0.5, tpot_s=0.5, peak_bytes=10**9)
    assert seen(doubted, first=guess).predicted is None  # what ran speaks against it
    for elsewhere in ((), (doubted.model_copy(update={"scheme": "fp32"}),)):
        assert seen(*elsewhere, first=guess).predicted == guess
    left = doubted.model_copy(update={"ttft_s": None, "tpot_s": None, "unused": "not run: no time was left"})
    assert (seen(left, first=guess).predicted, seen(left).predicted) == (guess, None)
    broken = seen(ghost("w8-g64").model_copy(update={"refused": "the worker died"}))
    assert broken.refused == "the worker died"
