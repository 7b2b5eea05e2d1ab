"""What the catalogues offer: methods that train where they are given seconds, caches as options, a GPU's own places."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.advisor import candidates
from quantadvisor.advisor.advise import exclude_by_quality, standing_alone
from quantadvisor.advisor.builds import Build, build_all
from quantadvisor.advisor.candidates import (
    asked_runtimes,
    enumerate_candidates,
    no_kernel_of_vllm,
    recipe,
    session_options,
    untrained,
)
from quantadvisor.advisor.catalogue import NOMINAL
from quantadvisor.advisor.checkpoint import PLACES
from quantadvisor.advisor.ghosts import ghost_method
from quantadvisor.advisor.predict import kernel_class
from quantadvisor.advisor.risk import FEWER, FINER, coarser_of, schemes_at_risk
from quantadvisor.documents import BadInput, Device, Gpu, Interval, Quality
from quantadvisor.kernels.registry import PROBES
from quantadvisor.methods import awq
from quantadvisor.methods.registry import METHODS, method, trains
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.static_int8 import NPU
from quantadvisor.profiling.gpus import on_gpu
from quantadvisor.profiling.runtimes import triton

from .documents import workload

PLAIN = Device(name="d", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f")


def test_every_method_says_what_it_costs() -> None:
    assert all(len(method(name).COST.split()) > 3 for name in METHODS)
    assert "calibration samples" in method("gptq").COST
    assert "no calibration" in method("rtn").COST


@pytest.mark.parametrize("seconds", [0, 60])
def test_training_takes_a_budget(seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    monkeypatch.setattr(candidates, "saturates", lambda: True)
    work = workload(budget={"train_s": seconds})
    found = enumerate_candidates(work, tmp_path, PLAIN)
    reasons = {trains(c.method): set() for c in found}
    for each in found:
        if each.scheme.name != NPU:
            reasons[trains(each.method)].add(each.excluded)
    excluded = "it trains, and budget.train_s is 0: set the seconds that it may take"
    assert reasons == {False: {None}, True: {None if seconds else excluded}}


def test_graphs_for_npus_are_listed_and_not_measured(tmp_path: Path) -> None:
    """Predicted by no other kernel's time; refused where no such graph is written."""
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    found = {one.name: one for one in enumerate_candidates(workload(), tmp_path, PLAIN) if one.scheme.name == NPU}
    assert set(found) == {f"{name}-{NPU}@onnxruntime" for name in ("static_int8", "smoothquant")}
    for one in found.values():
        assert one.refused is None
        assert "for an NPU" in str(one.excluded)
        assert kernel_class(one.scheme) not in {kernel_class(probe.scheme) for probe in PROBES.values()}
        for runtime in ("openvino", "torch", "vllm", "onnxruntime-genai"):
            assert method(one.method).refuse(tmp_path, one.scheme, runtime)


def test_every_cache_of_triton_is_an_option_of_the_session(tmp_path: Path) -> None:
    """Over an artifact that exists without it, here refused for want of a GPU alone."""
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    found = [one for one in enumerate_candidates(workload(runtimes=["triton"]), tmp_path, PLAIN) if one.scheme.quantizes_cache]
    assert len(found) == 4
    assert {session_options("triton", (), one.scheme) for one in found} == {(option,) for option in triton.OPTIONS}
    assert session_options("triton", (), scheme("w4-g64-bf16-kv4-turbo")) == ("kvturbo",)
    assert "turboquant-bf16-kv4-turbo@triton" in {one.name for one in found}
    for one in found:
        assert one.refused is not None and "needs an NVIDIA GPU" in one.refused
        writer, plain = recipe(one.method, one.scheme, "triton")
        assert method(writer).refuse(tmp_path, plain, "triton") is None
        assert one.scheme.name.startswith(f"{plain.name}-kv") and not plain.quantizes_cache


def test_the_artifact_under_a_turboquant_cache_is_the_model_in_bfloat16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(NOMINAL))
    save_file({"lm_head.weight": torch.linspace(0, 1, 12).reshape(3, 4)}, model / "model.safetensors")
    writer, plain = recipe("turboquant", scheme("bf16-kv4-turbo"), "triton")
    out, calibration = tmp_path / "out", tmp_path / "calibration.npy"
    np.save(calibration, np.zeros((1, 4), np.int64))
    made = build_all(
        [Build(method=writer, scheme=plain, runtime="triton", model_folder=model, out=out, calibration=calibration, base=model)],
        lambda _: None,
    )
    assert made[out].failed is None
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file(out / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    assert "no config.json" not in str(triton.refuse(str(out), ("kvturbo",), ()))


def test_what_trains_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "COST", "training")
    assert list(schemes_at_risk([("awq", scheme("w4-g64")), ("gptq", scheme("w4-g64"))])) == ["gptq-w4-g64"]
    assert list(schemes_at_risk([("lkd", scheme("w4a8-g64"))], trained=True)) == ["lkd-w4a8-g64"]
    assert untrained("gptq", workload()) is None


@pytest.mark.parametrize(("name", "ghost"), [("qlora", "kbit"), ("qlora_merged", "kbit"), ("gptq_lora", "rtn")])
def test_adapters_are_offered_and_their_ghosts_round_to_nearest(name: str, ghost: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    found = enumerate_candidates(workload(budget={"train_s": 60}), tmp_path, PLAIN)
    mine = [c for c in found if c.method == name and c.runtime == "onnxruntime"]
    assert [ghost_method(c.method, c.scheme) for c in mine] == [ghost]
    assert method(ghost).refuse(tmp_path, mine[0].scheme, "onnxruntime") is None


@pytest.mark.parametrize("crashes", [True, False])
def test_plain_is_a_candidate_where_the_fast_layout_crashes(
    crashes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    words = "its process died at q8_0_llama_cpp (signal SIGSEGV)" if crashes else "AMX"
    monkeypatch.setattr("quantadvisor.profiling.runtimes.llama_cpp.refuse", lambda *_: None)
    monkeypatch.setattr("quantadvisor.advisor.candidates.missing_writer", lambda _: None)
    monkeypatch.setattr("quantadvisor.methods.gguf.refuse", lambda *_: None)
    monkeypatch.setattr("quantadvisor.kernels.llama_layouts.layouts", lambda _: {"q8_0": words})
    tiles = PLAIN.model_copy(update={"isa": ("amx_tile", "amx_int8")})
    found = {c.name: c for c in enumerate_candidates(workload(runtimes=["llama.cpp"]), tmp_path, tiles)}
    fast, plain = found["gguf-q8_0@llama.cpp+fa"], found["gguf-q8_0@llama.cpp+fa+plain"]
    assert (fast.refused is not None, plain.refused, plain.excluded is None) == (crashes, None, crashes)
    assert not crashes or "the option plain avoids it" in str(fast.refused)
    assert crashes or "plain only avoids" in str(plain.excluded)
    assert found["none-bf16@llama.cpp"].refused is None


@pytest.mark.parametrize("here", [True, False])
def test_7_bit_weights_compete_where_8_saturate(here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    monkeypatch.setattr(candidates, "saturates", lambda: here)
    monkeypatch.setattr("quantadvisor.advisor.candidates.refusal", lambda *_: None)
    monkeypatch.setattr("quantadvisor.advisor.candidates.missing_writer", lambda _: None)
    found = [c for c in enumerate_candidates(workload(), tmp_path, PLAIN) if c.scheme.name in ("w7a8", "w8a8")]
    open_ = {c.name for c in found if not c.refused and not c.excluded}
    eight = {f"{m}-w8a8@{r}" for m in ("smoothquant", "dynamic_int8") for r in candidates.ONNX}
    seven = {name.replace("w8a8", "w7a8") for name in eight}
    assert eight <= open_
    assert seven <= open_ if here else not seven & open_
    assert all("exactly" in str(c.excluded) for c in found if c.name in seven - open_)


H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, compute_capability="9.0", place="0")


def on(capability: str) -> Device:
    return on_gpu(PLAIN.model_copy(update={"gpus": (H100.model_copy(update={"compute_capability": capability}),)}), 0)


def test_a_gpu_offers_its_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every runtime with the option that means the GPU, or triton; every baseline, scheme and cache of a GPU."""
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    monkeypatch.setattr(candidates, "refusal", lambda *_: None)
    monkeypatch.setattr(candidates, "missing_writer", lambda _: None)
    listed = enumerate_candidates(workload(), tmp_path, on("9.0"))
    found = {c.name: c for c in listed}
    assert len(found) == len(listed), "each once"
    assert all(c.runtime == "triton" or {"cuda", "tensorrt"} & set(c.options) for c in found.values())
    for name in (
        "none-bf16@torch+cuda", "none-fp16@vllm+cuda", "none-fp32@onnxruntime+cuda", "none-fp32@onnxruntime+tensorrt",
        "none-bf16@llama.cpp+cuda", "none-bf16@triton", "gptq-w4-g64-bf16@vllm+cuda", "rtn-w8-g64-bf16@vllm+cuda",
        "dynamic_int8-w8a8-bf16@triton", "fp8-fp8-bf16@vllm+cuda", "kv_fp8-bf16-kvf8-unit@vllm+cuda",
        "kv_fp8-bf16-kvf8@vllm+cuda",
        "kv_int8-q8_0-kv8@llama.cpp+cuda+fa", "turboquant-bf16-kv4-turbo@triton", "turboquant-bf16-kv4-turbo@vllm+cuda",
        "none-fp16@onnxruntime-genai+cuda", "rtn-w4-g64@onnxruntime-genai+cuda", "kbit-nf4-b64-bf16@torch+cuda",
        "llm_int8-w8a8-outlier-fp16@torch+cuda", "smoothquant-w8a8-static@onnxruntime+tensorrt",
        "kv_int8-fp32-kv8@onnxruntime+cuda",
    ):  # fmt: skip
        assert found[name].refused is None, found[name].refused


@pytest.mark.parametrize(
    ("capability", "fp8", "bf16"),
    [("9.0", None, None), ("8.9", None, None), ("8.0", "no FP8 products: those begin with 8.9", None),
     ("7.5", "no FP8 products", "no bfloat16 products: those begin with 8.0")],
)  # fmt: skip
def test_arithmetic_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, fp8: str | None, bf16: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    monkeypatch.setattr(candidates, "refusal", lambda *_: None)
    monkeypatch.setattr(candidates, "missing_writer", lambda _: None)
    found = {c.name: c.refused for c in enumerate_candidates(workload(), tmp_path, on(capability))}
    for name, said in (("fp8-fp8-bf16@vllm+cuda", fp8), ("none-bf16@torch+cuda", bf16), ("none-fp16@torch+cuda", None)):
        assert (said in str(found[name])) if said else found[name] is None
    baseline = candidates.baseline_name(workload(), on(capability), None, "float32")
    assert baseline == ("none-fp16@torch+cuda" if bf16 else "none-bf16@torch+cuda")


def test_every_scheme_of_the_gpu_s_catalogue_has_an_artifact_that_some_method_writes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    for entry in candidates.GPU_CATALOGUE:
        for place in entry.runtimes:
            writes, made = candidates.recipe(entry.method, scheme(entry.scheme), place.split("+")[0])
            reason = method(writes).refuse(tmp_path, made, place.split("+")[0])
            assert reason is None or "pip install" in reason or "runtime-llama" in reason, (entry, place, reason)


def test_checkpoints_compete_where_the_gpu_reads_them() -> None:
    places = {kind: candidates.places_on(on("9.0"), there) for kind, there in PLACES.items()}
    assert places == {
        "onnx": ("onnxruntime+cuda", "onnxruntime-genai+cuda"),
        "openvino": (),
        "transformers": ("torch+cuda", "vllm+cuda", "triton"),
        "gguf": ("llama.cpp+cuda", "llama.cpp+cuda+fa"),
    }
    assert candidates.places_on(PLAIN, PLACES["gguf"]) == PLACES["gguf"]


def test_llama_cpp_s_4_bit_cache_is_an_option_over_the_same_file() -> None:
    made = scheme("q8_0-kv4")
    assert made.keys is not None and made.keys == made.values
    assert (made.keys.bits, made.keys.group_size) == (4, 32)
    assert session_options("llama.cpp", ("fa",), made) == ("fa", "kvq4")
    assert recipe("kv_int4", made, "llama.cpp") == ("gguf", scheme("q8_0"))
    assert recipe("gguf_imatrix", scheme("q4_0-kv4"), "llama.cpp") == ("gguf_imatrix", scheme("q4_0"))


@pytest.mark.parametrize(("isa", "refused"), [(("avx2",), True), (("avx2", "avx512f"), False), (("asimd",), False)])
def test_int4_on_vllm_needs_more_than_avx2(isa: tuple[str, ...], refused: bool) -> None:
    here = Device(name="planted", isa=isa, cores=1, threads=1, memory_bytes=1 << 30, fingerprint="f")
    reason = "vLLM's INT4 product on a CPU needs AVX-512 (its library for AVX2 has none)" if refused else None
    assert no_kernel_of_vllm(scheme("w4-g64-bf16"), "vllm", here) == reason
    assert no_kernel_of_vllm(scheme("w8a8-bf16"), "vllm", here) is None
    assert "in 4 bits only, not in 8" in str(no_kernel_of_vllm(scheme("w8-g64-bf16"), "vllm", here))
    assert no_kernel_of_vllm(scheme("w4-g64-bf16"), "torch", here) is None
    for cache in ("bf16-kvf8", "bf16-kvf8-unit", "w8a8-bf16-kvf8-unit"):
        assert ("FP8 cache on a CPU needs" in str(no_kernel_of_vllm(scheme(cache), "vllm", here))) == refused
    assert (no_kernel_of_vllm(scheme("w4-g64-bf16-kvf8-unit"), "vllm", here) is not None) == refused


def test_torch_compile_is_a_candidate_where_the_spec_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))

    def offered(device: Device = PLAIN, **changes: object) -> set[str]:
        return {one.name for one in enumerate_candidates(workload(**changes), tmp_path, device) if "compile" in one.options}

    both = {"none-bf16@torch+compile", "none-fp32@torch+compile"}
    assert offered() == offered(runtimes=["torch"]) == set()
    assert offered(runtimes=[{"name": "torch", "options": ["compile"]}]) == both
    assert offered(baseline="none-fp32@torch+compile") == {"none-fp32@torch+compile"}
    gpu = on_gpu(PLAIN.model_copy(update={"gpus": (Gpu(name="G", memory_bytes=1 << 34, compute_capability="9.0"),)}), 0)
    assert "none-bf16@torch+cuda+compile" in offered(gpu, runtimes=[{"name": "torch", "options": ["compile"]}])
    for wrong in ({"name": "torch", "options": ["cuda"]}, {"name": "vllm", "options": ["compile"]}):
        with pytest.raises(BadInput, match="is none to be asked for"):
            offered(runtimes=[wrong])


def test_fp8_of_vllm_on_a_cpu_is_refused_for_its_speed_and_in_blocks_without_amx(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))

    def refused(name: str, *isa: str) -> str | None:
        listed = enumerate_candidates(workload(runtimes=["vllm"]), tmp_path, PLAIN.model_copy(update={"isa": isa}))
        return next(one.refused for one in listed if one.name == f"fp8-{name}@vllm")

    assert "a decode step of SmolLM2-135M took 33 s" in str(refused("fp8-bf16", "amx_int8"))
    assert "needs AMX" in str(refused("fp8-block-bf16", "avx512f"))
    assert "needs AMX" not in str(refused("fp8-block-bf16", "amx_int8"))


def test_finer_ones_are_listed_where_the_coarser_ones_are(tmp_path: Path) -> None:
    """Every row of the table, in both catalogues, at places of what it stands behind; alone where that one is refused."""
    for catalogue in (candidates.CATALOGUE, candidates.GPU_CATALOGUE):
        places = {f"{entry.method}-{entry.scheme}": set(entry.runtimes) for entry in catalogue}
        finer = [name for name in places if coarser_of(name)]
        assert {name.removesuffix("-bf16") for name in finer} >= set(FINER) - {"smoothquant_gptq-w8a8"}
        for name in finer:
            assert places[name] <= places[str(coarser_of(name))], name
        for name in FEWER.keys() & places.keys():
            assert places[name] <= places[FEWER[name]], name
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    listed = enumerate_candidates(workload(runtimes=["onnxruntime"]), tmp_path, PLAIN)
    finer, coarser = (next(c for c in listed if c.name == f"awq-w4-{group}@onnxruntime") for group in ("g32", "g64"))
    assert finer.refused is None is coarser.refused
    assert finer not in standing_alone(listed)
    without = [c.model_copy(update={"refused": "planted"}) if c is coarser else c for c in listed]
    assert finer in standing_alone(without)
    assert kernel_class(finer.scheme) == kernel_class(coarser.scheme)


def test_a_finer_one_is_excluded_where_the_coarser_one_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    asked = workload(runtimes=["onnxruntime"], quality={"kl_mean_max": 0.05})
    listed = enumerate_candidates(asked, tmp_path, PLAIN)
    names = ("rtn-w8-g64@onnxruntime", "rtn-w8-g32@onnxruntime", "gptq-w8-g64@onnxruntime")

    def open_(mean: float) -> set[str]:
        kl, top1 = (Interval(mean=m, low=m * 0.9, high=m * 1.1) for m in (mean, 0.9))
        known = Quality(perplexity=20.0, kl=kl, top1=top1, tokens=512, text="t", simulated=True)
        return {c.name for c in exclude_by_quality(listed, {"rtn-w8-g64": known}, asked) if c.excluded is None} & set(names)

    assert open_(0.01) == {names[0]}
    assert open_(0.045) == set(names)
    assert open_(0.06) == set(names[1:])


def test_a_runtime_elsewhere_does_not_write_its_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp runs in its environment; GGUF files are made in ours, where the package must be too."""
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    monkeypatch.setattr("quantadvisor.advisor.candidates.refusal", lambda *_: None)
    monkeypatch.setattr("quantadvisor.advisor.candidates.crash", lambda *_: None)
    monkeypatch.setattr("quantadvisor.advisor.builds.find_spec", lambda name: None)
    found = enumerate_candidates(workload(runtimes=["llama.cpp", "torch"]), tmp_path, PLAIN)
    gguf = {c.refused for c in found if c.runtime == "llama.cpp" and c.method == "gguf" and c.scheme.name == "q8_0"}
    assert all("llama_cpp is not installed here, where artifacts are written: make runtime-llama" in str(one) for one in gguf)
    assert {c.refused for c in found if c.name == "none-bf16@torch"} == {None}


def test_an_interpreter_is_named_from_any_folder_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    ours = {"name": "vllm", "python": "env/python"}
    assert asked_runtimes(workload(runtimes=[ours])) == {"vllm": str(tmp_path / "env" / "python")}
    assert asked_runtimes(workload(runtimes=[ours, ours, {"name": "vllm", "url": "http://127.0.0.1:1"}]))
    with pytest.raises(BadInput, match="a run starts a runtime in one"):
        asked_runtimes(workload(runtimes=[ours, {"name": "vllm", "python": sys.executable}]))
