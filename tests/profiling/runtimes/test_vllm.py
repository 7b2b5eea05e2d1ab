"""vLLM, in the environment that `make runtime-vllm` makes, against transformers on a tiny model, through the worker."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from quantadvisor.methods import kv_fp8, rtn
from quantadvisor.methods.affine import quantize_groups
from quantadvisor.methods.formats import bridges, compressed, pack_quantized
from quantadvisor.methods.formats.huggingface import linear_weights
from quantadvisor.methods.linear_format import LinearFormat
from quantadvisor.methods.none import half_precision
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.runtimes import torch_cuda
from quantadvisor.profiling.runtimes import vllm as runtime
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

from ...methods.conftest import torch_logits, write_llama

PYTHON = interpreter_of("vllm")
needs_vllm = [
    pytest.mark.runtime,
    pytest.mark.skipif(refusal("vllm", PYTHON, None, (), ()) is not None, reason="vLLM is not here: make runtime-vllm"),
]
TOKENS = np.random.default_rng(0).integers(3, 256, (3, 24)).astype(np.int64)
SYMMETRIC = LinearFormat(4, 32, True)
SIZES = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vllm")
    write_llama(root / "hf", **SIZES)
    half_precision(root / "hf", root / "bf16", "bfloat16")
    compressed.quantize_w8a8(root / "hf", root / "w8a8")
    rtn.apply(root / "hf", scheme("w4-g32-bf16"), "vllm", TOKENS, root / "w4")
    return {name: root / name for name in ("hf", "bf16", "w8a8", "w4")}


def worker(folder: Path, *options: str) -> RunningWorker:
    return RunningWorker(runtime_file("vllm"), folder, options, 2, python=PYTHON)


def test_refusals_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "make runtime-vllm" in str(runtime.refuse(None, (), ()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    assert "has no option 'kvu8'" in str(runtime.refuse(None, ("kvu8",), ()))
    assert "no config.json" in str(runtime.refuse(str(tmp_path), (), ()))


@pytest.mark.parametrize(
    ("kind", "said"), [("channel", None), ("tensor", "one scale"), ("static", "one scale"), ("block", "AMX")]
)
def test_fp8_weights_that_a_cpu_cannot_multiply(
    kind: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantadvisor.methods.formats.compressed import FP8

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    monkeypatch.setattr(runtime.nvidia, "torch_built_for", lambda: None)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": FP8[kind]}))
    found = runtime.refuse(str(tmp_path), (), ("avx2", "avx512f"))
    assert found is None if said is None else said in str(found)
    with_amx = runtime.refuse(str(tmp_path), (), ("avx512f", "amx_tile"))
    assert (with_amx is None) == (kind in ("channel", "block"))


def test_an_fp8_cache_is_refused_where_the_cpu_has_no_instruction_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain cache does not need it, and other CPUs have their own."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    assert runtime.refuse(None, ("kvfp8",), ("avx2", "fma")) == (
        "vLLM's FP8 cache on a CPU needs AVX-512 or AMX, and this one has neither: it ends at AVX2"
    )
    (tmp_path / "config.json").write_text('{"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}')
    assert "FP8 cache on a CPU needs" in str(runtime.refuse(str(tmp_path), (), ("avx2",)))
    (tmp_path / "config.json").write_text('{"quantization_config": {"kv_cache_scheme": null}}')
    assert runtime.refuse(str(tmp_path), (), ("avx2",)) is None
    for options, isa in ((("kvfp8",), ("avx2", "avx512f")), (("kvfp8",), ("neon",)), ((f"{runtime.POOL}1024",), ("avx2",))):
        assert runtime.refuse(None, options, isa) is None
    assert "AVX" not in str(runtime.refuse(None, ("kvfp8", "cuda"), ("avx2",)))  # a GPU does not care for the CPU


@pytest.mark.parametrize(
    ("options", "version", "refused"),
    [
        (("kvturbo", "cuda"), "0.20.0", None),
        (("kvturbo", "cuda"), "1.0.0rc1", None),
        (("kvturbo", "cuda"), "0.19.1", "vLLM 0.19.1 has no TurboQuant cache: it came with 0.20"),
        (("kvfp8", "cuda"), "0.19.1", None),
        (("kvturbo",), "0.20.0", "vLLM's attention on a CPU reads no TurboQuant cache: it is one of a GPU (option cuda)"),
        (("kvturbo", "kvfp8", "cuda"), "0.20.0", "one cache at a time, not kvfp8 and kvturbo"),
    ],
)
def test_a_turboquant_cache_is_a_gpus(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], version: str, refused: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(runtime.nvidia, "refusal", lambda *_, **__: None)
    monkeypatch.setattr(runtime.nvidia, "torch_built_for", lambda: None)
    assert runtime.refuse(None, options, ("avx2", "avx512f")) == refused
    if refused is None and "kvturbo" in options:
        assert "--kv-cache-dtype turboquant_4bit_nc" in " ".join(runtime.server("f", (*options, "pool=1"), 1, "m", 1)[0])


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"quant_method": "gptq", "bits": 4}, True),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, True),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, False),
        (None, False),
    ],
)
def test_int4_weights_are_refused_where_the_build_has_no_product_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, object] | None, refused: bool
) -> None:
    """Its library for AVX2 has no cpu_gemm_wna16: AttributeError at the first step."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said} if said else {}))
    found = runtime.refuse(str(tmp_path), (), ("avx2",))
    assert found == ("vLLM's INT4 product on a CPU needs AVX-512 (its library for AVX2 has none)" if refused else None)
    assert runtime.refuse(str(tmp_path), (), ("avx2", "avx512f")) is None


def test_the_pool_is_what_is_asked_for_and_bounds_the_longest_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, small = (f"{runtime.POOL}4096",), ("kvfp8", f"{runtime.POOL}2048")
    assert runtime.settings_of(plain) == {"kv_cache_memory_bytes": 4096, "max_model_len": -1}
    assert runtime.settings_of(small) == {"kv_cache_memory_bytes": 2048, "max_model_len": -1, "kv_cache_dtype": "fp8"}
    assert runtime.settings_of((*plain, "cuda")) == runtime.settings_of(plain) | {"gpu_memory_utilization": runtime.CACHE_SHARE}
    monkeypatch.setattr(runtime, "memory_bytes", lambda: 1000)
    assert runtime.settings_of(())["kv_cache_memory_bytes"] == 1000 * runtime.CACHE_SHARE


@pytest.mark.parametrize("options", [("kvfp8",), ("kvfp8", "cuda")])
def test_a_server_takes_the_cache_that_is_declared_on_either_device(options: tuple[str, ...]) -> None:
    arguments, environment = runtime.server("folder", (*options, f"{runtime.POOL}{3 << 30}"), 8000, "name", 1)
    pairs = [tuple(arguments[i : i + 2]) for i in range(len(arguments))]
    assert {("--kv-cache-dtype", "fp8"), ("--kv-cache-memory-bytes", "3221225472"), ("--max-model-len", "-1")} <= set(pairs)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == ""  # unset: it would go before the pool


@pytest.mark.parametrize(("options", "eager"), [((f"{runtime.POOL}4096",), True), ((f"{runtime.POOL}4096", "cuda"), False)])
def test_a_gpu_has_its_graphs(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], eager: bool) -> None:
    """Engine and server alike: eager decode is bound by launches there, which is not what users run."""
    asked: dict[str, object] = {}
    model = SimpleNamespace(compute_logits=None)
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
    engine = SimpleNamespace(
        model_executor=SimpleNamespace(driver_worker=SimpleNamespace(worker=worker)),
        engine_core=SimpleNamespace(engine_core=SimpleNamespace(scheduler=None)),
    )

    def llm(**given: object) -> SimpleNamespace:
        asked.update(given)
        return SimpleNamespace(llm_engine=engine)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm))
    monkeypatch.setattr(torch_cuda, "reset_memory", lambda: None)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "")
    runtime.open_session("folder", options, 1)
    assert asked["enforce_eager"] is eager
    assert ("--enforce-eager" in runtime.server("folder", options, 8000, "name", 1)[0]) is eager


def test_every_operator_belongs_to_one_part_of_a_step() -> None:
    names = (
        "_C::onednn_scaled_mm",
        "aten::addmm",
        "_C::cpu_attention_with_kv_cache",
        "_C::cpu_attn_reshape_and_cache",
        "aten::mul",
    )
    assert [runtime.part_of(name) for name in names] == ["linears", "linears", "attention", "cache", "other"]


class TestVllm:
    pytestmark = needs_vllm

    def test_it_generates_and_scores_what_torch_computes(self, folders: dict[str, Path], tmp_path: Path) -> None:
        exact = np.concatenate([torch_logits(folders["hf"], row) for row in TOKENS])
        reference = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
        np.save(tmp_path / "reference.npy", reference.astype(np.float16))
        with worker(folders["bf16"]) as running:
            made = running.generate(TOKENS, 4)
            nll, kl, _ = running.score(TOKENS, tmp_path / "reference.npy", None)
            chunked = running.score(TOKENS, tmp_path / "reference.npy", 8)
            steady = running.steady(TOKENS[:1], 3, 3)
            again = running.generate(TOKENS, 4)
        assert kl.mean() < 1e-3
        assert np.nanmax(np.abs(chunked[1] - kl)) < 1e-2
        assert np.isnan(nll.reshape(3, 24)[:, -1]).all()
        assert np.isfinite(nll.reshape(3, 24)[:, :-1]).all()
        assert [row[0] for row in made.generated] == [int(rows[-1].argmax()) for rows in exact.reshape(3, 24, -1)]
        assert steady.rows_equal
        assert again.generated == made.generated

    def test_the_integer_kernel_is_seen_to_run(self, folders: dict[str, Path]) -> None:
        with worker(folders["w8a8"]) as running:
            phases = running.operators(TOKENS[:1])
        with worker(folders["bf16"]) as running:
            plain = running.operators(TOKENS[:1])
        assert "cache stored as torch.bfloat16 (kv_cache_dtype auto)" in plain["decode"]["notes"]
        assert plain["decode"]["cache"] == "bfloat16"
        assert phases["decode"]["quantized_linears"] == 2 * 4  # qkv and gate_up are one linear each
        assert any("Int8" in note for note in phases["decode"]["notes"])
        assert any(o["quantized"] and o["linear"] for o in phases["decode"]["operators"])
        assert plain["decode"]["quantized_linears"] == 0
        assert not any(o["quantized"] for o in plain["decode"]["operators"])
        for phase in phases.values():
            parts = sum(phase[key] for key in ("linears_s", "attention_s", "cache_s", "other_s"))
            assert parts == pytest.approx(phase["wall_s"])

    @pytest.mark.skipif(runtime.fp8_cache_refusal(describe_device().isa) is not None, reason="no AVX-512 and no AMX")
    def test_an_fp8_cache_is_stored_as_such(self, folders: dict[str, Path]) -> None:
        with worker(folders["bf16"], "kvfp8") as running:
            small = running.operators(TOKENS[:1])
        assert "cache stored as torch.uint8 (kv_cache_dtype fp8)" in small["decode"]["notes"]
        assert small["decode"]["cache"] == "fp8"

    @pytest.mark.skipif(runtime.fp8_cache_refusal(describe_device().isa) is not None, reason="no AVX-512 and no AMX")
    @pytest.mark.parametrize("factor", [1000.0, 0.001])
    def test_scales_of_an_fp8_cache_are_applied(self, factor: float, folders: dict[str, Path], tmp_path: Path) -> None:
        """Values a thousand times as loud, or as quiet, and o_proj as much quieter or louder: the same function. With scales of 1
        they are clipped at 448, or lose their bits; with those of the folder, which no option asks for, nothing is lost."""
        shutil.copytree(folders["hf"], tmp_path / "hf")
        state = load_file(tmp_path / "hf" / "model.safetensors")
        for layer in (0, 1):
            state[f"model.layers.{layer}.self_attn.v_proj.weight"] *= factor
            state[f"model.layers.{layer}.self_attn.o_proj.weight"] /= factor
        save_file(state, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
        half_precision(tmp_path / "hf", tmp_path / "bf16", "bfloat16")
        kv_fp8.apply(tmp_path / "hf", scheme("bf16-kvf8"), "vllm", TOKENS, tmp_path / "kvf8")
        exact = np.concatenate([torch_logits(tmp_path / "hf", row) for row in TOKENS])
        reference = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
        np.save(tmp_path / "reference.npy", reference.astype(np.float16))
        found = {}
        for name, options in (("bf16", ("kvfp8",)), ("kvf8", ())):
            with worker(tmp_path / name, *options) as running:
                found[name] = running.score(TOKENS, tmp_path / "reference.npy", 8)[1].mean()
                assert running.operators(TOKENS[:1])["decode"]["cache"] == "fp8"
        assert found["kvf8"] < 0.05 < 0.2 < found["bf16"]

    def test_one_process_runs_one_folder_after_another(self, folders: dict[str, Path]) -> None:
        """With a pool of the second's own size: its blocks hold four times the tokens."""
        with worker(folders["bf16"], f"{runtime.POOL}{1 << 20}") as running:
            first = running.generate(TOKENS, 4)
            running.load(str(folders["w8a8"]), (f"{runtime.POOL}{4 << 20}",), 2)
            phases = running.operators(TOKENS[:1])
            running.load(str(folders["bf16"]), (f"{runtime.POOL}{1 << 20}",), 2)
            assert running.generate(TOKENS, 4).generated == first.generated
        assert phases["decode"]["quantized_linears"] == 2 * 4

    @pytest.mark.skipif(runtime.int4_refusal(describe_device().isa) is not None, reason="no AVX-512")
    def test_int4_in_groups_runs_as_int4_and_computes_what_the_integers_say(
        self, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        bridges.dequantized(folders["w4"], tmp_path / "plain")
        exact = np.concatenate([torch_logits(tmp_path / "plain", row) for row in TOKENS])
        reference = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
        np.save(tmp_path / "reference.npy", reference.astype(np.float16))
        with worker(folders["w4"]) as running:
            _, kl, _ = running.score(TOKENS, tmp_path / "reference.npy", None)
            seen = running.operators(TOKENS)["decode"]
        assert kl.mean() < 0.02  # the CPU kernel rounds activations to 8 bits
        assert seen["quantized_linears"] == seen["linears"] - 1  # all but lm_head
        assert any(row["precision"] == "int4" and row["quantized"] for row in seen["operators"])

    @pytest.mark.skipif(runtime.int4_refusal(describe_device().isa) is not None, reason="no AVX-512")
    @pytest.mark.parametrize("layout", ["gptq", "awq"])
    def test_the_same_integers_in_other_layouts_run_as_int4(self, layout: str, folders: dict[str, Path], tmp_path: Path) -> None:
        """Their linears have no scheme, but a method whose kernel is named; log-probabilities are those of compressed-tensors.
        vLLM reads symmetric integers alone in GPTQ's."""
        packed = folders["w4"]
        if layout == "gptq":
            weights = linear_weights(folders["hf"], json.loads((folders["hf"] / "config.json").read_text()))
            given = {name: partial(lambda read: quantize_groups(read(), *SYMMETRIC), read) for name, read in weights.items()}
            pack_quantized.write(folders["hf"], packed := tmp_path / "packed", given, SYMMETRIC)
        bridges.convert(packed, layout, tmp_path / layout)
        with worker(packed) as running:
            running.write_reference(TOKENS, tmp_path / "reference.npy")
        with worker(tmp_path / layout) as running:
            _, kl, _ = running.score(TOKENS, tmp_path / "reference.npy", None)
            seen = running.operators(TOKENS)["decode"]
        assert kl.mean() < 1e-3
        assert seen["quantized_linears"] == seen["linears"] - 1  # all but lm_head
        assert any("Kernel" in note and "Linear" in note for note in seen["notes"]), seen["notes"]
        assert any(row["precision"] == "int4" and row["quantized"] for row in seen["operators"])
