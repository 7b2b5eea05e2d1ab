"""Models that are hard or broken, against every method: a clear refusal, or finite logits; nothing half written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantadvisor.documents import CandidateFailed
from quantadvisor.methods import adapters, awq, gptq, lkd, llm_qat, obq
from quantadvisor.methods.affine import dequantize_groups, quantize_channels, quantize_groups
from quantadvisor.methods.fake import applied, with_weights
from quantadvisor.methods.formats import bridges, pack_quantized
from quantadvisor.methods.layerwise import gram, hessian
from quantadvisor.methods.linear_format import LinearFormat
from quantadvisor.methods.registry import METHODS, method
from quantadvisor.methods.schemes import scheme

from .conftest import kl, run, torch_logits, write_llama

VLLM = (("rtn", "w4-g32-bf16"), ("gptq", "w4-g32-bf16"), ("awq", "w4-g32-bf16"), ("dynamic_int8", "w8a8-bf16"),
        ("smoothquant", "w8a8-bf16"), ("smoothquant_gptq", "w8a8-bf16"), ("kv_fp8", "bf16-kvf8"))  # fmt: skip
"""Methods that write without an export: a failure of theirs is of the method alone."""


def changed(folder: Path, out: Path, change: Any) -> Path:
    shutil.copytree(folder, out)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file({name: w.contiguous() for name, w in state.items()}, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.fixture(scope="module")
def dead(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, columns and a whole linear of zeros; a norm that silences channels, so that Hessians are singular."""

    def silence(state: dict[str, Any]) -> None:
        for layer in (0, 1):
            root = f"model.layers.{layer}"
            state[f"{root}.mlp.up_proj.weight"][7] = 0
            state[f"{root}.self_attn.q_proj.weight"][:, 9] = 0
            state[f"{root}.input_layernorm.weight"][20:40] = 0
        state["model.layers.1.self_attn.k_proj.weight"].zero_()

    return changed(llama, tmp_path_factory.mktemp("dead") / "hf", silence)


@pytest.fixture(scope="module")
def dead_model(dead: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(dead, dtype=torch.float32).eval()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dead divides by zero in the first step; the many that win quality back are beside the point here."""
    for module, steps in ((lkd, 25), (llm_qat, 40), (adapters, 40)):
        monkeypatch.setattr(module, "STEPS", steps)


FAKED = [name for name in METHODS if hasattr(method(name), "fake") or hasattr(method(name), "rounded")]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("name", FAKED)
def test_dead_channels_never_give_nan(name: str, dead: Path, dead_model: Any, tokens: np.ndarray) -> None:
    if name.startswith("gguf"):
        pytest.importorskip("llama_cpp")
    module: Any = method(name)
    chosen = [one for one in module.schemes() if one.compute == "fp32"]
    for one in dict.fromkeys((chosen[0], chosen[-1])):  # the same where there is one
        if hasattr(module, "fake"):
            fake = module.fake(dead_model, one, tokens[:2])
        else:
            fake = with_weights(dead_model, module.rounded(dead, one, tokens[:2]))
        with applied(fake) as logits:
            assert bool(torch.isfinite(logits(tokens[2])).all()), one.name


@pytest.fixture(scope="module")
def dead_base(dead: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from quantadvisor.methods.formats import onnx

    out = tmp_path_factory.mktemp("dead_base") / "base"
    onnx.export_base(dead, out)
    return out


@pytest.mark.parametrize("name", METHODS)
def test_dead_channels_run_in_onnxruntime_or_are_refused(
    name: str, dead: Path, dead_base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first scheme that the method writes for it, through the runtime and its cache: finite, and still the model."""
    module: Any = method(name)
    for trained in (lkd, llm_qat, adapters):  # what is dead divides by zero in the first step
        monkeypatch.setattr(trained, "STEPS", 2)
    reasons = {one.name: module.refuse(dead, one, "onnxruntime") for one in module.schemes()}
    written = next((one for one, reason in reasons.items() if reason is None), None)
    if written is None:
        assert all(reasons.values())
        return
    module.apply(dead, scheme(written), "onnxruntime", tokens[:2], tmp_path / "out", base=dead_base)
    found = run(tmp_path / "out", tokens[3], chunk=8)
    assert np.isfinite(found).all()
    assert -1e-9 < kl(torch_logits(dead, tokens[3]), found) < 0.5


@pytest.mark.parametrize(("name", "wanted"), VLLM)
def test_dead_channels_are_written_finite(name: str, wanted: str, dead: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    method(name).apply(dead, scheme(wanted), "vllm", tokens[:2], tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert all(bool(torch.isfinite(w.float()).all()) for w in state.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "wanted"), VLLM)
def test_weights_that_are_not_finite_are_refused(
    name: str, wanted: str, bad: float, llama: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    def break_one(state: dict[str, Any]) -> None:
        state["model.layers.0.mlp.down_proj.weight"][3, 5] = bad

    folder = changed(llama, tmp_path / "hf", break_one)
    with pytest.raises(CandidateFailed, match="not finite") as caught:
        method(name).apply(folder, scheme(wanted), "vllm", tokens[:2], tmp_path / "made" / "out")
    assert "\n" not in str(caught.value)
    left = tmp_path / "made"
    assert not (left / "out").exists()
    assert not [path for path in left.glob(".out.*") if "kept" not in path.name]


LAYOUTS = (
    ("none", "fp32", "torch"), ("none", "bf16", "torch"), ("none", "fp32", "onnxruntime"), ("none", "fp16", "onnxruntime"),
    ("none", "fp32", "openvino"), ("none", "bf16", "llama.cpp"), ("rtn", "w4-g64", "onnxruntime"), ("rtn", "w4-g64", "openvino"),
    ("rtn", "w4-g32-bf16", "torch"), ("gguf", "q4_0", "llama.cpp"), ("gguf", "q4_k", "llama.cpp"),
    ("kbit", "nf4-b64", "onnxruntime"), ("kbit", "nf4-b64-bf16", "torch"), ("fp8", "fp8-bf16", "vllm"),
    ("llm_int8", "w8a8-outlier-fp16", "torch"),
)  # fmt: skip
"""Every layout of an artifact, by a method that writes it."""


@pytest.mark.parametrize("place", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize(("name", "wanted", "runtime"), LAYOUTS)
def test_no_layout_holds_a_nan(
    name: str, wanted: str, runtime: str, place: str, llama: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    def break_one(state: dict[str, Any]) -> None:
        state[place].view(-1)[5] = float("nan")

    folder = changed(llama, tmp_path / "hf", break_one)
    with pytest.raises(CandidateFailed, match=f"{place}: values that are not finite"):
        method(name).apply(folder, scheme(wanted), runtime, tokens[:2], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if ".kept-" not in path.name] == ["hf"]


UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("name", "wanted", "runtime", "place"),
    [("none", "fp16", "torch", UP), ("none", "fp16", "torch", NORM), ("none", "fp16", "onnxruntime", UP),
     ("rtn", "w4-g32-bf16", "torch", UP), ("rtn", "w4-g32-bf16", "torch", NORM), ("llm_int8", "w8a8-outlier-fp16", "torch", NORM),
     ("gguf", "q4_0", "llama.cpp", UP)],
)  # fmt: skip
def test_float16_holds_no_infinity(
    name: str, wanted: str, runtime: str, place: str, llama: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """A weight of 1e6, as it is or as the scale of 4 bits."""
    if runtime == "llama.cpp":
        pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")

    def enlarge(state: dict[str, Any]) -> None:
        state[place].view(-1)[5] = 1e6

    folder = changed(llama, tmp_path / "hf", enlarge)
    with pytest.raises(CandidateFailed, match=r"beyond float16|llama_model_quantize gave 1 for q4_0: .*failed"):
        method(name).apply(folder, scheme(wanted), runtime, tokens[:2], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_codebooks_and_layouts_hold_no_nan() -> None:
    from quantadvisor.methods.codebooks import normal_floats, quantize_blocks, to_blocks
    from quantadvisor.methods.formats import awq as awq_layout

    w = np.ones((8, 64), np.float32)
    w[1, 40] = np.nan
    for rounding in (quantize_blocks, to_blocks):
        with pytest.raises(CandidateFailed, match="not finite"):
            rounding(w, normal_floats(4), 32)
    loud = np.tile(np.linspace(-1e6, 1e6, 64, dtype=np.float32), (8, 1))
    with pytest.raises(CandidateFailed, match=r"awq layout holds 1\.33e\+05, beyond float16"):
        awq_layout.stored(quantize_groups(loud, 4, 64, False))


def test_not_finite_in_a_group_or_a_row() -> None:
    w = np.ones((2, 64), np.float32)
    w[1, 40] = np.nan
    with pytest.raises(CandidateFailed, match="not finite"):
        quantize_groups(w, 4, 32, False)
    with pytest.raises(CandidateFailed, match="not finite"):
        quantize_channels(w)


@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_of_one_element(symmetric: bool) -> None:
    """Every weight its own scale: it comes back to a rounding of the scale, zeros exactly."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((8, 16)).astype(np.float32), rng.standard_normal((64, 16)).astype(np.float32)
    w[2, 3] = 0
    grid = LinearFormat(4, 1, symmetric)
    for found in (quantize_groups(w, *grid), gptq.solve(w, hessian([x]), grid), obq.solve(w, hessian([x]), grid)):
        assert found.scales.shape == (8, 16)
        if not symmetric:
            np.testing.assert_allclose(dequantize_groups(*found, 1), w, rtol=0.5, atol=1e-6)
        assert np.isfinite(dequantize_groups(*found, 1)).all()
    for found in (quantize_groups(w, *grid), awq.clipped(w, gram(x) / 64, grid, awq.CLIPS)):
        np.testing.assert_allclose(dequantize_groups(*found, 1), w, rtol=1e-5, atol=1e-7)


def test_groups_of_one_element_are_distilled_to_about_what_they_were(
    llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lkd, "STEPS", 2)
    state = load_file(llama / "model.safetensors")
    for name, w in lkd.rounded(llama, scheme("w4-g1"), tokens[:2]).items():
        exact = state[f"{name}.weight"].numpy()
        assert np.abs(w - exact).max() < 0.1 * np.abs(exact).max()


def test_rows_that_groups_do_not_divide_are_padded_or_refused(llama: Path) -> None:
    """The tiny Llama's rows are 64 and 128 wide: ONNX Runtime's last group is short, the others say so."""
    for name in ("gptq", "awq"):
        refuse = method(name).refuse
        assert refuse(llama, scheme("w4-g128"), "onnxruntime") is None
        assert "do not divide" in str(refuse(llama, scheme("w4-g128"), "openvino"))
    odd = write_llama(llama.parent / "odd", hidden_size=80, intermediate_size=96, head_dim=20)
    assert "do not divide" in str(gptq.refuse(odd, scheme("w4-g64-bf16"), "vllm"))


def test_a_short_last_group_is_said(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """Where ONNX Runtime's rows are filled up, a note; what is written runs."""
    narrow = write_llama(tmp_path / "narrow", hidden_size=96, num_attention_heads=6)
    cases = (("rtn", narrow, None, 64, 96), ("gptq", llama, base, 128, 64), ("awq", llama, base, 128, 64))
    for name, folder, export, group, width in cases:
        notes = method(name).apply(folder, scheme(f"w4-g{group}"), "onnxruntime", tokens[:2], tmp_path / name, base=export)
        said = f"groups of {group} do not divide hidden_size = {width}: the last group of such a row is shorter"
        assert sum(note.startswith(said) for note in notes) == 1
        assert np.isfinite(run(tmp_path / name, tokens[3])).all()
        even = method(name).apply(llama, scheme("w4-g32"), "onnxruntime", tokens[:2], tmp_path / f"{name}-even", base=base)
        assert not any("shorter" in note for note in even)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_or_not_the_output_layer_stays(tied: bool, tokens: np.ndarray, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", tied=tied)
    method("rtn").apply(folder, scheme("w4-g32-bf16"), "vllm", tokens, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in state) == (not tied)
    bridges.dequantized(tmp_path / "out", tmp_path / "plain")
    assert ("lm_head.weight" in load_file(tmp_path / "plain" / "model.safetensors")) == (not tied)


@pytest.mark.parametrize(
    ("name", "wanted", "runtime"),
    [("gptq", "w4-g64", "onnxruntime"), ("awq", "w4-g64", "onnxruntime"), ("smoothquant", "w8a8", "onnxruntime"),
     ("llm_int8", "w8a8-outlier", "onnxruntime"), ("rtn", "w4-g64-bf16", "vllm"), ("dynamic_int8", "w8a8-bf16", "vllm"),
     ("fp8", "fp8-bf16", "vllm"), ("fp8", "fp8-bf16", "triton")],
)  # fmt: skip
def test_an_architecture_without_a_map_is_refused_by_its_name(name: str, wanted: str, runtime: str, tmp_path: Path) -> None:
    """In Mixtral w1, w2 and w3 are linears, which compressed-tensors' config would declare and nothing would have rounded."""
    for kind in ("gemma2", "mixtral"):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        assert f"'{kind}'" in str(method(name).refuse(tmp_path, scheme(wanted), runtime))


@pytest.fixture(scope="module")
def undisturbed(llama: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What AWQ writes when nothing stops it."""
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    awq.apply(llama, scheme("w4-g32-bf16"), "vllm", tokens[:2], out)
    return out


@pytest.mark.parametrize("stop", range(8))
def test_awq_interrupted_at_any_group_resumes_to_the_same_bytes(
    stop: int, undisturbed: Path, llama: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = scheme("w4-g32-bf16")
    real, calls = awq.best_scale, iter(range(100))

    def interrupted(*given: Any) -> Any:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(awq, "best_scale", interrupted)
    with pytest.raises(KeyboardInterrupt):
        awq.apply(llama, chosen, "vllm", tokens[:2], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(awq, "best_scale", real)
    notes = awq.apply(llama, chosen, "vllm", tokens[:2], tmp_path / "out")
    assert any("interrupted run" in note for note in notes) == (stop > 0)
    for path in undisturbed.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    pack_quantized.read(tmp_path / "out")


def test_a_dead_reader_does_not_stop_smoothquants_search(dead: Path, tokens: np.ndarray) -> None:
    """The zeroed k_proj shares its input with q and v, whose loud channel is still worth moving."""
    from quantadvisor.methods.smoothquant import fake_tokens, search

    found = search(dead, tokens[:2], fake_tokens, linear=True)
    assert "model.layers.1.input_layernorm" in {pair.source for pair, _ in found.scales}


def test_blocks_of_zeros_stay_zero() -> None:
    from quantadvisor.methods.codebooks import normal_floats, quantize_blocks

    w = np.zeros((4, 128), np.float32)
    w[1] = 1
    got = quantize_blocks(w, normal_floats(4), 64)
    np.testing.assert_array_equal(got[0], 0)
