"""Quantized folders through transformers in the runtime's worker: the logits are those of what the codes stand for.

The oracle runs the dequantized weights in float32. Bounds: a hundred roundings of the type that the format computes in, far
below what 4 bits change. What needs a package that `make install` leaves out is marked `runtime`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor.stored_transformers import of_transformers
from quantadvisor.documents import CandidateFailed
from quantadvisor.methods.affine import Grouped
from quantadvisor.methods.formats import awq, bridges, gptq, pack_quantized
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.runtimes import torch as runtime
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

from ...methods.conftest import torch_logits, write_llama

TOKENS = np.random.default_rng(3).integers(3, 250, (1, 16)).astype(np.int64)
LINEARS = 14
OF_PACKAGES = pytest.mark.filterwarnings("ignore")  # importing torchao or gptqmodel sets off deprecations, torch's own too
ROUNDINGS = {"float32": 100 * 2**-13, "float16": 100 * 2**-11, "bfloat16": 100 * 2**-8}
"""Half a unit of the type's last place, a hundred times; workers write float16, so float32 is no better than its steps at 4."""


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("checkpoints") / "hf", hidden_size=128, intermediate_size=256)


def grouped(w: np.ndarray, bits: int, symmetric: bool) -> Grouped:
    """w: [N, K] in groups of 64, scales exact in float16."""
    groups = w.reshape(len(w), -1, 64)
    if symmetric:
        scales, zeros = np.abs(groups).max(-1) / (2 ** (bits - 1) - 1), np.full(groups.shape[:2], 2 ** (bits - 1), np.uint8)
    else:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = (high - low) / (2**bits - 1)
        zeros = np.rint(-low / scales).astype(np.uint8)
    scales = scales.astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(groups / scales[..., None]) + zeros[..., None], 0, 2**bits - 1)
    return Grouped(codes.astype(np.uint8).reshape(w.shape), scales, zeros)


def write_ours(form: Any, hf: Path, out: Path, bits: int, symmetric: bool) -> None:
    from safetensors.numpy import load_file

    weights = {n: w for n, w in load_file(hf / "model.safetensors").items() if n.endswith("proj.weight")}
    given = {n.removesuffix(".weight"): partial(grouped, w, bits, symmetric) for n, w in weights.items()}
    form.write(hf, out, given, (bits, 64, symmetric))


def seen_through(folder: Path, out: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(log-probabilities [tokens, V], the decode step's operators), from the runtime's worker."""
    assert runtime.refuse(str(folder), (), ()) is None
    with RunningWorker(runtime_file("torch"), folder, (), 1) as worker:
        worker.write_reference(TOKENS, out)
        return np.load(out).astype(np.float64).reshape(TOKENS.size, -1), worker.operators(TOKENS)["decode"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@OF_PACKAGES
@pytest.mark.parametrize(
    ("package", "form", "bits", "symmetric", "number", "quantized"),
    [
        pytest.param("compressed_tensors", pack_quantized, 4, False, "bfloat16", 0, marks=pytest.mark.slow),
        pytest.param("gptqmodel", gptq, 4, True, "float16", LINEARS, marks=pytest.mark.runtime),
        pytest.param("gptqmodel", gptq, 4, False, "float16", LINEARS, marks=pytest.mark.runtime),
        pytest.param("gptqmodel", awq, 4, False, "float16", LINEARS, marks=pytest.mark.runtime),
    ],
)
def test_our_formats_load_as_what_their_codes_stand_for(
    package: str, form: Any, bits: int, symmetric: bool, number: str, quantized: int, hf: Path, tmp_path: Path
) -> None:
    """transformers expands compressed-tensors at load: that is what the evidence must say."""
    pytest.importorskip(package, reason=f"{package} is not in this environment: docs/checkpoints.md", exc_type=ImportError)
    write_ours(form, hf, tmp_path / "low", bits, symmetric)
    bridges.dequantized(tmp_path / "low", tmp_path / "plain")
    found, ran = seen_through(tmp_path / "low", tmp_path / "logs.npy")
    exact, unrounded = (log_softmax(torch_logits(folder, TOKENS[0])) for folder in (tmp_path / "plain", hf))
    assert np.abs(found - exact).max() < ROUNDINGS[number]
    assert np.abs(found - unrounded).max() > ROUNDINGS[number]
    assert (ran["linears"], ran["quantized_linears"]) == (LINEARS + 1, quantized)
    assert of_transformers(tmp_path / "low")["stored_quantized"] == LINEARS


@OF_PACKAGES
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme_name", "bound"),
    [("kbit", "nf4-b64-bf16", ROUNDINGS["bfloat16"]), ("kbit", "nf4-b64-dq-bf16", ROUNDINGS["bfloat16"]),
     ("llm_int8", "w8a8-outlier-fp16", 0.3)],
)  # fmt: skip
def test_what_methods_write_for_bitsandbytes_multiplies_codes(
    name: str, scheme_name: str, bound: float, hf: Path, tmp_path: Path
) -> None:
    """INT8 rounds activations as well: its bound is theirs."""
    pytest.importorskip("bitsandbytes")
    made = scheme(scheme_name)
    assert method(name).refuse(hf, made, "torch") is None
    method(name).apply(hf, made, "torch", TOKENS, tmp_path / "low")
    bridges.dequantized(tmp_path / "low", tmp_path / "plain")
    found, ran = seen_through(tmp_path / "low", tmp_path / "logs.npy")
    exact, unrounded = (log_softmax(torch_logits(folder, TOKENS[0])) for folder in (tmp_path / "plain", hf))
    assert np.abs(found - exact).max() < bound
    assert np.abs(found - exact).mean() < np.abs(found - unrounded).mean()
    assert (ran["linears"], ran["quantized_linears"]) == (LINEARS + 1, LINEARS)
    stored = of_transformers(tmp_path / "low")
    assert (stored["stored_quantized"], stored["scheme"].weights) == (LINEARS, made.weights)


def by_torchao(hf: Path, out: Path) -> Any:
    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(hf, quantization_config=config, device_map="cpu", dtype=torch.float32)
    model.save_pretrained(out)
    return model


def by_quanto(hf: Path, out: Path) -> Any:
    import torch
    from optimum.quanto import QuantizedModelForCausalLM, qint8
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    QuantizedModelForCausalLM.quantize(model, weights=qint8, exclude="lm_head").save_pretrained(out)
    return model


@pytest.mark.runtime
@OF_PACKAGES
@pytest.mark.parametrize(("package", "write"), [("torchao", by_torchao), ("optimum.quanto", by_quanto)])
def test_a_package_s_own_folder_loads_as_what_its_codes_stand_for(
    package: str, write: Callable[[Path, Path], Any], hf: Path, tmp_path: Path
) -> None:
    pytest.importorskip(package, reason=f"{package} is not in this environment: docs/checkpoints.md", exc_type=ImportError)
    import torch
    from transformers import AutoModelForCausalLM

    model = write(hf, tmp_path / "low")
    plain = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    for name, module in model.named_modules():
        if name.endswith("proj"):
            plain.get_submodule(name).weight.data = module.weight.dequantize().detach().float()
    with torch.inference_mode():
        exact = log_softmax(plain(torch.from_numpy(TOKENS)).logits[0].numpy())
    found, ran = seen_through(tmp_path / "low", tmp_path / "logs.npy")
    assert np.abs(found - exact).max() < ROUNDINGS["float32"]
    assert (ran["linears"], ran["quantized_linears"]) == (LINEARS + 1, LINEARS)
    stored = of_transformers(tmp_path / "low")
    assert (stored["stored_quantized"], stored["scheme"].weights.bits) == (LINEARS, 8)


def test_a_folder_without_all_weights_does_not_run_on_random_ones(tmp_path: Path) -> None:
    """What transformers does with codes that it cannot read (hqq's, quanto's own): it logs that, and computes noise."""
    from safetensors.numpy import load_file, save_file

    folder = write_llama(tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("up_proj.weight", "up_proj.W_q"): w for name, w in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    said = r"holds no model\.layers\.0\.mlp\.up_proj\.weight \(2 weights missing\)"
    with pytest.raises(CandidateFailed, match=said), RunningWorker(runtime_file("torch"), folder, (), 1):
        pass


@pytest.mark.parametrize(
    ("method", "file", "said"),
    [
        ("gptq", None, "needs gptqmodel, which is not installed: pip install --no-deps gptqmodel"),
        ("awq", None, "needs gptqmodel"),
        ("torchao", None, "pip install torchao"),
        ("compressed-tensors", None, "pip install compressed-tensors"),
        ("hqq", None, "transformers 5 does not read it"),
        ("quanto", None, "QuantizedModelForCausalLM"),
        (None, "quanto_qmap.json", "pip install --no-deps optimum-quanto"),
    ],
)
def test_a_format_whose_package_is_missing_is_refused_with_the_command(
    method: str | None, file: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"quantization_config": {"quant_method": method}} if method else {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if file:
        (tmp_path / file).write_text("{}")
    there = ("torch", "transformers", "optimum", "accelerate")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in there else None)
    assert said in str(runtime.refuse(str(tmp_path), (), ()))


def test_products_on_codes_are_told_from_plain_ones() -> None:
    """Names as torch 2.13, bitsandbytes 0.50 and optimum-quanto 0.2.7 register them."""
    low = ("aten::_weight_int4pack_mm_for_cpu", "aten::_weight_int8pack_mm", "aten::_int_mm", "bitsandbytes::gemv_4bit",
           "bitsandbytes::int8_linear_matmul", "quanto::qbytes_mm")  # fmt: skip
    plain, others = ("aten::mm", "aten::addmm", "aten::linear"), ("aten::mul", "torchao::quantize_affine", "ProfilerStep#1")
    events = [SimpleNamespace(key=key, count=1, self_cpu_time_total=1.0) for key in (*low, *plain, *others)]
    rows = runtime.operator_counts(SimpleNamespace(key_averages=lambda: events), "float32")
    assert {row["name"] for row in rows if row["quantized"]} == set(low)
    assert {row["name"] for row in rows if row["linear"]} == {*low, *plain}
    assert "ProfilerStep#1" not in {row["name"] for row in rows}
