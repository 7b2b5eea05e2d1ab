"""Fake quantization agrees with the grids that the methods write, and a scheme that it fails on is a reason."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.advisor import risk
from quantadvisor.advisor.advise import without_failed
from quantadvisor.advisor.risk import (
    FINER,
    REACH,
    RESERVE,
    Job,
    coarser_of,
    depth,
    not_searched,
    of_name,
    plain_fake,
    schemes_at_risk,
    simulate,
    simulate_all,
)
from quantadvisor.documents import Interval, Quality, Workload
from quantadvisor.methods.affine import dequantize_groups, fake_activations, fake_tokens, quantize_channels
from quantadvisor.methods.registry import method, trains
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.quality import quality_of

from ..kernels.test_guardian import leaves_nobody
from .documents import candidate, workload


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ..methods.conftest import write_llama

    return write_llama(tmp_path_factory.mktemp("llama") / "hf")


@pytest.mark.parametrize("name", ["w4-g64", "w8-g64", "w2-g64"])
def test_simulated_weights_are_what_the_artifact_holds(name: str, tmp_path: Path) -> None:
    """To the bit, by the integers, scales and zeros that are read back from the graph; its rows are of 96 and 160 weights, which
    64 does not divide, so that the last group of each is filled up."""
    from quantadvisor.methods.fake import linears
    from quantadvisor.methods.formats import bridges
    from quantadvisor.methods.observe import load

    from ..methods.conftest import write_llama

    folder = write_llama(tmp_path / "hf", hidden_size=96, intermediate_size=160)
    method("rtn").apply(folder, scheme(name), "onnxruntime", np.zeros((1, 8), np.int64), tmp_path / "out")
    stored, (_, group, _) = bridges.read(tmp_path / "out")
    model = load(folder)
    fake = plain_fake(model, scheme(name))
    assert fake.weight and set(stored) == set(linears(model))
    for linear, integers in stored.items():
        simulated = fake.weight(linear, linears(model)[linear].weight.data).numpy()
        np.testing.assert_array_equal(simulated, dequantize_groups(*integers, group), err_msg=linear)


@pytest.mark.parametrize(("name", "most"), [("w8a8", 127), ("w7a8", 63)])
def test_simulated_channels_are_the_integers_of_w8a8(name: str, most: int) -> None:
    w = np.random.default_rng(0).standard_normal((24, 100)).astype(np.float32)
    fake = plain_fake(None, scheme(name))
    assert fake.weight
    codes, scale = quantize_channels(w, most)
    np.testing.assert_array_equal(fake.weight("", torch.from_numpy(w)).numpy(), codes * scale[:, None])


def four_bits(x: np.ndarray) -> np.ndarray:
    step = np.abs(x).max(axis=1, keepdims=True) / np.float32(7)
    return np.rint(x / step) * step


@pytest.mark.parametrize(("name", "own"), [("w8a8", fake_tokens), ("w8a8-tensor", fake_activations), ("w4a4", four_bits)])
def test_simulated_activations_are_the_methods_own_rounding(name: str, own: Callable[[np.ndarray], np.ndarray]) -> None:
    x = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    fake = plain_fake(None, scheme(name))
    assert fake.inputs
    np.testing.assert_allclose(fake.inputs("", torch.from_numpy(x)).numpy(), own(x), atol=1e-6)


def test_a_scheme_that_fails_is_refused_and_the_others_go_on(llama: Path, tmp_path: Path) -> None:
    """The model reads nothing from two channels, one weight of each as large as float32 allows. It computes what it did;
    the range of an asymmetric group overflows, so that RTN's logits are NaN in 4 bits, and so is the Hessian of what GPTQ rounds
    next."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.input_layernorm.weight[[5, 17]] = 0.0
        layer.self_attn.q_proj.weight[0, [5, 17]] = torch.tensor([2.5e38, -2.5e38])
    shutil.copytree(llama, tmp_path / "hf")
    model.save_pretrained(tmp_path / "hf")
    windows, calibration = (np.random.default_rng(seed).integers(3, 256, (2, 32)) for seed in (0, 1))
    np.save(tmp_path / "reference.npy", log_p(tmp_path / "hf", windows))
    np.save(tmp_path / "calibration.npy", calibration)
    chosen = {f"{name}-{kind}": scheme(kind) for name, kind in (("rtn", "w4-g32"), ("gptq", "w4-g32"), ("rtn", "w8-g64"))}
    jobs = [Job(tmp_path / "hf", chosen, tmp_path / "calibration.npy"), Job(tmp_path / "nowhere", chosen)]
    found, nowhere = simulate_all(jobs, windows, tmp_path / "reference.npy", "text")
    assert set(found.quality) == {"rtn-w8-g64"}
    assert found.nothing is None
    assert found.failed["rtn-w4-g32"] == "its simulated logits are not finite"
    assert "is not positive definite" in found.failed["gptq-w4-g32"]
    assert not nowhere.quality and not nowhere.failed and "nowhere" in str(nowhere.nothing)

    places = [*(candidate(f"{name}@onnxruntime", 1.0) for name in chosen), candidate("none-fp32@torch", 1.0, target="none")]
    reasons = [f"its fake quantization failed: {found.failed[name]}" for name in ("rtn-w4-g32", "gptq-w4-g32")]
    assert [one.refused for one in without_failed(places, found.failed)] == [*reasons, None, None]
    noted = without_failed(places, {}, nowhere.nothing)
    assert [one.refused for one in noted] == [None] * 4
    assert [len(one.notes) for one in noted] == [1, 1, 1, 0]


PLANTED = """
import os, signal, time
from pathlib import Path
from quantadvisor.advisor import risk

real = risk.load


def load(folder):
    if folder.name == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if folder.name == "hang":
        (folder.parent / "started").touch()
        time.sleep(600)
    print("what libraries print is no answer")
    return real(folder)


risk.load = load
risk.main()
"""
"""The child, and models in it that break by the name of their folder."""


def test_a_simulation_that_dies_is_a_reason_and_the_next_goes_on(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(PLANTED)
    monkeypatch.setattr(risk, "CHILD", tmp_path / "child.py")
    windows = np.random.default_rng(0).integers(3, 256, (2, 32))
    np.save(tmp_path / "reference.npy", log_p(llama, windows))
    chosen = {"rtn-w8-g64": scheme("w8-g64")}
    died, alive = simulate_all(
        [Job(tmp_path / "segfault", chosen), Job(llama, chosen)], windows, tmp_path / "reference.npy", "text"
    )
    assert died == risk.Outcome(nothing="its process died at the simulation (signal SIGSEGV)")
    rows = simulate(Job(llama, chosen), windows, tmp_path / "reference.npy").found["rtn-w8-g64"]
    assert alive.quality["rtn-w8-g64"].kl.mean == pytest.approx(quality_of(rows, "text", simulated=True).kl.mean, rel=1e-3)


def test_no_simulation_is_left_when_we_are_killed(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(PLANTED)
    code = (
        "import sys; from pathlib import Path; import numpy as np; from quantadvisor.advisor import risk\n"
        "here = Path(sys.argv[1]); risk.CHILD = here / 'child.py'\n"
        "risk.simulate_all([risk.Job(here / 'hang', {})], np.zeros((1, 8), np.int64), here / 'reference.npy', 'text')"
    )
    leaves_nobody(code, tmp_path / "started", str(tmp_path))


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_a_cache_that_rounds_nothing_changes_nothing(chunk: int, llama: Path) -> None:
    from quantadvisor.methods.fake import Fake, forward
    from quantadvisor.methods.observe import load

    model, row = load(llama), np.arange(3, 35)
    whole = forward(Fake(model), row)
    pieces = forward(Fake(model, keys=lambda _, k: k, values=lambda _, v: v, chunk=chunk), row)
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)


def test_later_chunks_read_the_rounded_cache(llama: Path) -> None:
    """With keys and values forgotten (zeros) attention gives nothing: each row is as if its block had no attention."""
    from quantadvisor.methods.fake import Fake, applied
    from quantadvisor.methods.observe import load

    model, row = load(llama), np.arange(3, 35)
    with applied(Fake(model, keys=lambda _, k: k * 0, values=lambda _, v: v * 0, chunk=8)) as logits:
        forgotten = logits(row)
    with applied(Fake(model, weight=lambda name, w: w * 0 if "o_proj" in name else w)) as logits:
        torch.testing.assert_close(forgotten, logits(row), atol=1e-4, rtol=1e-4)
    with applied(Fake(model)) as logits:
        assert (logits(row) - forgotten).abs().max() > 0.1


@pytest.fixture(scope="module")
def planted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Path, Path]:
    """A model of loud channels; windows, its fp32 log-probabilities of them, and text to calibrate on that is not theirs."""
    from ..methods.conftest import plant_outliers, torch_logits

    scratch = tmp_path_factory.mktemp("planted")
    folder = plant_outliers(llama, scratch / "hf")
    windows = np.random.default_rng(0).integers(3, 256, (2, 32)).astype(np.int64)
    want = np.concatenate([torch_logits(folder, row) for row in windows])
    np.save(scratch / "reference.npy", torch.from_numpy(want).log_softmax(-1).numpy())
    np.save(scratch / "calibration.npy", np.random.default_rng(9).integers(3, 256, (8, 32)).astype(np.int64))
    return folder, windows, scratch / "reference.npy", scratch / "calibration.npy"


def test_methods_are_simulated_by_name_and_earn_their_place(planted: tuple[Path, np.ndarray, Path, Path]) -> None:
    """On planted outliers: SmoothQuant, LLM.int8() and a rotation below W8A8 per tensor, and so is what has a scale for every
    token, ZeroQuant among it; a rotation below plain rounding at 4 bits too; caches by their bits."""
    folder, windows, reference, calibration = planted
    names = [("dynamic_int8", "w8a8-tensor"), ("smoothquant", "w8a8-tensor"), ("llm_int8", "w8a8-outlier"), ("rotation", "w8a8"),
             ("dynamic_int8", "w8a8"), ("zeroquant", "w8a8-g64"), ("dynamic_int8", "w4a4"), ("rotation", "w4a4"),
             ("kivi", "fp32-kv4-kivi"), ("turboquant", "fp32-kv4-turbo"), ("turboquant", "fp32-kv2-turbo"),
             ("kv_int4", "fp32-kv4"), ("kv_int4", "w8-g64-kv4"), ("kv_int4", "q8_0-kv4"),
             ("mixed", "w4w8-g64"), ("kv_int8", "fp32-kv8")]  # fmt: skip
    chosen = schemes_at_risk([(name, scheme(each)) for name, each in names])
    assert "mixed-w4w8-g64" not in chosen
    assert not {"kv_int8-fp32-kv8", "kv_int4-q8_0-kv4"} & set(chosen)
    found = simulate(Job(folder, chosen, calibration), windows, reference).found
    kls = {name: float(rows[1].mean()) for name, rows in found.items()}
    assert set(kls) == set(chosen)
    for better in ("smoothquant-w8a8-tensor", "llm_int8-w8a8-outlier", "rotation-w8a8"):
        assert kls[better] < kls["dynamic_int8-w8a8-tensor"] / 2, kls
    for better in ("dynamic_int8-w8a8", "zeroquant-w8a8-g64"):
        assert kls[better] < kls["dynamic_int8-w8a8-tensor"] * 0.6, kls
    assert kls["rotation-w4a4"] < kls["dynamic_int8-w4a4"] / 2, kls
    assert 0 < kls["kv_int4-fp32-kv4"] != kls["kv_int4-w8-g64-kv4"] > 0
    assert 0 < kls["turboquant-fp32-kv4-turbo"] < kls["turboquant-fp32-kv2-turbo"]
    assert kls["kivi-fp32-kv4-kivi"] == pytest.approx(0, abs=1e-6)  # 32 tokens are its window


def test_llm_qat_earns_its_place_on_planted_outliers(
    planted: tuple[Path, np.ndarray, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the rounding that it starts from, which is what it is without seconds, on text that it did not write."""
    from quantadvisor.methods import llm_qat

    for setting, value in (("STEPS", 60), ("RATES", {4: 3e-4}), ("SAMPLES", 24), ("LENGTH", 32)):
        monkeypatch.setattr(llm_qat, setting, value)
    folder, windows, reference, calibration = planted
    made = {"llm_qat-w4a8-kv8-token": scheme("w4a8-kv8-token")}
    before, after = (
        simulate(Job(folder, made, calibration, train_s=seconds), windows, reference).found["llm_qat-w4a8-kv8-token"][1].mean()
        for seconds in (0.0, 600.0)
    )
    assert after < 0.95 * before, (before, after)


def log_p(folder: Path, windows: np.ndarray, weights: dict[str, np.ndarray] | None = None) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in (weights or {}).items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(value))
        return torch.log_softmax(model(torch.from_numpy(windows)).logits, -1).reshape(-1, 256).numpy()


def test_methods_that_search_are_simulated_with_their_own_weights(llama: Path, tmp_path: Path) -> None:
    from quantadvisor.methods import gptq

    windows, calibration = (np.random.default_rng(seed).integers(0, 256, (4, 32)) for seed in (0, 1))
    exact = log_p(llama, windows)
    np.save(tmp_path / "reference.npy", exact)
    np.save(tmp_path / "calibration.npy", calibration)
    chosen = {f"{name}-w4-g32": scheme("w4-g32") for name in ("rtn", "gptq", "awq", "rtn")}
    found = simulate(Job(llama, chosen, tmp_path / "calibration.npy"), windows, tmp_path / "reference.npy").found
    searched = log_p(llama, windows, gptq.rounded(llama, scheme("w4-g32"), calibration))
    expected = float((np.exp(exact) * (exact - searched)).sum(-1).mean())
    assert found["gptq-w4-g32"][1].mean() == pytest.approx(expected, rel=1e-3)
    means = {name: rows[1].mean() for name, rows in found.items()}
    assert means["gptq-w4-g32"] < means["rtn-w4-g32"] != means["awq-w4-g32"]


def test_a_search_that_starts_too_far_from_the_budget_is_not_simulated(llama: Path, tmp_path: Path) -> None:
    windows, calibration = (np.random.default_rng(seed).integers(0, 256, (2, 32)) for seed in (0, 1))
    np.save(tmp_path / "reference.npy", log_p(llama, windows))
    np.save(tmp_path / "calibration.npy", calibration)
    chosen = {f"{name}-w4-g32": scheme("w4-g32") for name in ("gptq", "rtn")}

    def budget(kl: float | None) -> Workload:
        return workload(quality={"kl_mean_max": kl})

    def found(kl: float | None) -> dict[str, np.ndarray]:
        job = Job(llama, chosen, tmp_path / "calibration.npy", budget(kl))
        return simulate(job, windows, tmp_path / "reference.npy").found

    plain = float(found(1e-9)["rtn-w4-g32"][1].mean())
    near, far = plain / REACH * 1.01, plain / REACH * 0.99
    assert set(found(None)) == set(found(near)) == set(chosen)
    assert set(found(far)) == {"rtn-w4-g32"}
    known = {name: quality_of(rows, "test", simulated=True) for name, rows in found(far).items()}
    reason = not_searched("gptq", scheme("w4-g32"), known, budget(far))
    assert reason is not None
    assert f"{plain:.3g}" in reason
    assert not_searched("gptq", scheme("w4-g32"), known, budget(near)) is None
    assert not_searched("rtn", scheme("w4-g32"), known, budget(far)) is None
    assert "no search takes off that much" in str(not_searched("awq", scheme("w4-g32-bf16"), known, budget(far)))


def planted_kl(mean: float) -> Quality:
    kl, top1 = Interval(mean=mean, low=mean * 0.9, high=mean * 1.1), Interval(mean=0.9, low=0.89, high=0.91)
    return Quality(perplexity=20.0, kl=kl, top1=top1, tokens=512, text="planted", simulated=True)


@pytest.mark.parametrize("finer", [*FINER, "smoothquant_gptq-w8a8-bf16", "gptq-w4-g32-bf16", "awq-w4-g32-bf16"])
def test_what_is_finer_is_simulated_only_where_the_coarser_one_may_not_hold(finer: str) -> None:
    """Inside with the reserve, inside without, and so far over that only more bits are left to try."""
    coarser, (method_name, made) = str(coarser_of(finer)), of_name(finer)
    assert coarser.endswith("-bf16") == finer.endswith("-bf16")
    asked = workload(quality={"kl_mean_max": 0.05})

    def reason(mean: float, alone: bool = False) -> str | None:
        return not_searched(method_name, made, {coarser: planted_kl(mean)}, asked, alone)

    inside = 0.05 / RESERVE / 1.1
    assert f"{coarser} alone is well inside the budget (mean KL " in str(reason(inside * 0.99))
    assert reason(inside * 1.01) is None is reason(inside * 0.99, alone=True)
    same_bits = made.weights is not None and made.weights.bits == of_name(coarser)[1].weights.bits  # type: ignore[union-attr]
    assert same_bits == (finer not in ("gguf-q5_k", "gguf-q6_k", "gguf_imatrix-q5_k"))
    assert ("no search takes off that much" in str(reason(0.05 * REACH * 1.01))) == same_bits
    assert not_searched(method_name, made, {}, asked) is None


def test_finer_ones_stand_in_a_row() -> None:
    """Q6_K is needless where Q5_K is, though that one was not simulated either; searches in groups of 32 are as far off as those
    of 64 that nobody simulated, and nothing but Q4_K is known of a budget that it breaks."""
    asked = workload(quality={"kl_mean_max": 0.05})
    close, broken = {"gguf-q4_k": planted_kl(0.01)}, {"gguf-q4_k": planted_kl(0.4)}
    for name in ("gguf-q5_k", "gguf-q6_k", "gguf_imatrix-q4_k", "gguf_imatrix-q5_k"):
        assert "gguf-q4_k alone is well inside" in str(not_searched(*of_name(name), close, asked))
    assert not_searched(*of_name("gguf-q5_k"), broken, asked) is None
    assert "gguf-q5_k alone" in str(not_searched(*of_name("gguf-q6_k"), broken | {"gguf-q5_k": planted_kl(0.01)}, asked))
    assert not_searched(*of_name("gguf-q6_k"), broken | {"gguf-q5_k": planted_kl(0.4)}, asked) is None
    assert "gguf-q4_k has mean KL 0.4, over 5 times" in str(not_searched(*of_name("gguf_imatrix-q5_k"), broken, asked))
    far = {"rtn-w4-g64": planted_kl(0.6)}
    assert "rtn-w4-g64 has mean KL 0.6" in str(not_searched(*of_name("awq-w4-g32-bf16"), far, asked))
    depths = {"gguf-q4_k": 0, "gguf-q5_k": 1, "gguf-q6_k": 2, "gptq-w4-g64": 1, "gptq-w4-g32-bf16": 2, "smoothquant_gptq-w8a8": 1}
    assert {name: depth(name, of_name(name)[1]) for name in depths} == depths


def test_fewer_bits_are_simulated_only_where_more_of_them_hold() -> None:
    """Of the same rounding; through one that was not simulated for that reason itself. An interval that reaches into the budget
    speaks against nothing."""
    asked = workload(quality={"kl_mean_max": 0.05})
    for few, wide, last in (("rtn-w3-g64", "rtn-w4-g64", "rtn-w2-g64"), ("gguf-q3_k", "gguf-q4_k", "gguf-q2_k")):
        broken, held = {wide: planted_kl(0.06)}, {wide: planted_kl(0.054)}
        for name in (few, last):
            assert f"{wide} breaks the budget already: " in str(not_searched(*of_name(name), broken, asked))
            assert not_searched(*of_name(name), held, asked) is None
        assert f"{few} breaks" in str(not_searched(*of_name(last), held | {few: planted_kl(0.2)}, asked))
        assert [depth(name, of_name(name)[1]) for name in (wide, few, last)] == [0, 1, 2]
    assert "gguf-q4_k breaks" in str(not_searched(*of_name("gguf_imatrix-q2_k"), {"gguf-q4_k": planted_kl(0.06)}, asked))


def test_finer_groups_are_simulated_by_need(llama: Path, tmp_path: Path) -> None:
    """In the child, after what they stand behind; in any case where they stand alone."""
    windows = np.random.default_rng(0).integers(0, 256, (2, 32))
    np.save(tmp_path / "reference.npy", log_p(llama, windows))
    chosen = {f"rtn-{name}": scheme(name) for name in ("w8-g32", "w8-g64")}

    def found(kl: float, *alone: str) -> dict[str, np.ndarray]:
        job = Job(llama, chosen, None, workload(quality={"kl_mean_max": kl}), alone=frozenset(alone))
        return simulate(job, windows, tmp_path / "reference.npy").found

    kl = quality_of(found(1.0)["rtn-w8-g64"], "t", simulated=True).kl
    assert set(found(kl.high * RESERVE * 1.01)) == {"rtn-w8-g64"}
    assert set(found(kl.high * RESERVE * 0.99)) == set(found(1.0, "rtn-w8-g32")) == set(chosen)


def test_what_trains_is_simulated_within_its_seconds(llama: Path, tmp_path: Path) -> None:
    """Without any, LKD is the rounding that it starts from."""
    from quantadvisor.methods import fake
    from quantadvisor.methods.fake import forward
    from quantadvisor.methods.observe import load

    windows = np.random.default_rng(0).integers(3, 256, (2, 32))
    np.save(tmp_path / "calibration.npy", windows)
    with torch.no_grad():
        logits = [forward(fake.Fake(load(llama)), row).numpy() for row in windows]
    np.save(tmp_path / "reference.npy", np.concatenate(logits).astype(np.float16))
    made = {"lkd-w4a8-g64": scheme("w4a8-g64"), "zeroquant-w4a8-g64": scheme("w4a8-g64")}
    found = simulate(Job(llama, made, tmp_path / "calibration.npy"), windows, tmp_path / "reference.npy").found
    assert trains("lkd")
    assert found["lkd-w4a8-g64"][1].mean() == pytest.approx(found["zeroquant-w4a8-g64"][1].mean(), rel=1e-4)
