"""Slow passes in planted ratios: what is said of them, and what is not; and one real pair from the model to the table."""

import json
from pathlib import Path

import pytest

from quantadvisor.advisor import catalogue, slow_passes
from quantadvisor.advisor.candidates import CATALOGUE, candidate_name
from quantadvisor.advisor.slow_passes import AT_ONCE, CHUNKS, DECODE, ONE_ROW, PREFILL, Contrast, chunk_traps, slow_pass
from quantadvisor.kernels.timing import figure
from quantadvisor.profiling.device import describe_device

from ..methods.conftest import write_llama

F32, BF16 = "none-fp32@openvino+f32", "none-fp32@openvino+bf16"
CACHE = "kv_fp8-bf16-kvf8-unit@vllm"


def contrast(ours: str, theirs: str, what: str, *ratios: float) -> Contrast:
    return Contrast(ours=ours, theirs=theirs, what=what, ratio=figure(ratios))


def test_rivals_are_candidates_of_one_runtime() -> None:
    names = {
        candidate_name(entry.method, entry.scheme, place.split("+")[0], tuple(place.split("+")[1:]))
        for entry in CATALOGUE
        for place in entry.runtimes
    }
    for ours, theirs in slow_passes.RIVALS:
        assert {ours, theirs} <= names
        assert ours.partition("@")[2].split("+")[0] == theirs.partition("@")[2].split("+")[0]
    assert set(slow_passes.CHUNKED) <= names


def test_each_option_is_slow_where_the_other_is_faster() -> None:
    """bfloat16 wins prefill by 2.5x and loses decode by 2x: both options are slow somewhere."""
    found = [contrast(BF16, F32, PREFILL, 0.4, 0.38, 0.42), contrast(BF16, F32, DECODE, 2.0, 1.9, 2.1)]
    assert slow_pass(F32, found) == f"{PREFILL} takes 2.50x [2.38, 2.63] the time of {BF16}"
    assert slow_pass(BF16, found) == f"{DECODE} takes 2.00x [1.90, 2.10] the time of {F32}"
    assert slow_pass("none-fp32@onnxruntime", found) is None


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((0.99, 1.01, 1.0), "1.00x [0.99, 1.01] the time of none-bf16@vllm: its cache shrinks, its time does not"),
        ((1.5, 1.4, 1.6), "takes 1.50x [1.40, 1.60] the time of none-bf16@vllm"),
        ((0.5, 0.6, 0.55), None),
        ((0.8, 1.3, 1.0), None),
    ],
)
def test_a_smaller_cache_must_make_a_decode_step_faster(ratios: tuple[float, ...], said: str | None) -> None:
    """What the spread leaves open is not said, and nothing of the plain cache, whatever the smaller one gains."""
    found = [contrast(CACHE, "none-bf16@vllm", DECODE, *ratios)]
    mine = slow_pass(CACHE, found)
    assert mine is None if said is None else said in str(mine)
    assert slow_pass("none-bf16@vllm", found) is None


def test_a_smaller_cache_need_not_make_prefill_faster() -> None:
    assert slow_pass(CACHE, [contrast(CACHE, "none-bf16@vllm", PREFILL, 1.0, 0.99, 1.01)]) is None
    assert slow_pass(CACHE, [contrast(CACHE, "none-bf16@vllm", PREFILL, 2.0, 1.9, 2.1)]) is not None


def test_chunks_are_a_trap_that_no_candidate_runs() -> None:
    found = [contrast(BF16, ONE_ROW, CHUNKS, 6.0, 5.5, 6.5), contrast(BF16, ONE_ROW, AT_ONCE, 1.0, 0.99, 1.01)]
    ((name, words),) = chunk_traps("openvino", found)
    assert name == "fp32@openvino+bf16"
    assert words == f"{CHUNKS} takes 6.00x [5.50, 6.50], {AT_ONCE} takes 1.00x [0.99, 1.01] the time of {ONE_ROW}"
    assert slow_pass(BF16, found) is None and not chunk_traps("llama.cpp", found)
    assert not chunk_traps("openvino", [contrast(BF16, ONE_ROW, CHUNKS, 1.0, 1.04, 1.2)])


def test_they_stand_in_the_table_of_runtimes() -> None:
    pytest.importorskip("openvino")
    cache, chunks = "kv_int8-fp32-kv8@openvino+f32", contrast(F32, ONE_ROW, CHUNKS, 6.0, 5.5, 6.5)
    passes = [contrast(cache, F32, DECODE, 1.0, 0.99, 1.01), chunks]
    found = {one.name: one for one in catalogue.runtimes_here(describe_device(), passes=passes)}["openvino"]
    slow = {one.name: one.slow for one in found.schemes if one.status == "slow path"}
    assert set(slow) == {cache, "fp32@openvino+f32"}
    assert "its time does not" in str(slow[cache]) and "6.00x" in str(slow["fp32@openvino+f32"])


@pytest.mark.slow
def test_real_rivals_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tiny sizes: every pair that is ready leaves its ratios, a second look starts nothing; short contexts have none."""
    pytest.importorskip("openvino")
    pytest.importorskip("optimum.intel")
    for name, value in {"TOKENS": 48, "CHUNK": 16, "ROWS": 2, "STEPS": 2, "TURNS": 2}.items():
        monkeypatch.setattr(slow_passes, name, value)
    model, device = write_llama(tmp_path / "model"), describe_device()
    ready, said = ["kv_int8-fp32-kv8@openvino+f32", F32], list[str]()
    found = slow_passes.contrasts_here(model, device, ready, tmp_path / "cache", said.append)
    assert [(one.ours, one.theirs, one.what) for one in found] == [
        (ready[0], F32, PREFILL), (ready[0], F32, DECODE), (F32, ONE_ROW, CHUNKS), (F32, ONE_ROW, AT_ONCE),
    ]  # fmt: skip
    assert all(len(one.ratio.samples) == 2 and one.ratio.low > 0 for one in found)
    assert said
    monkeypatch.setattr(slow_passes, "build_all", None)
    assert slow_passes.contrasts_here(model, device, ready, tmp_path / "cache", said.append) == found
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    assert slow_passes.contrasts_here(model, device, ready, tmp_path / "cache", said.append) == ()


def test_who_cannot_be_measured_is_said_and_asked_again(tmp_path: Path) -> None:
    """A model type that transformers does not know: nothing is made, nothing is kept, and nothing ends."""
    sizes = {"model_type": "made_up", "hidden_size": 64, "num_hidden_layers": 9, "vocab_size": 99, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_attention_heads": 4}))
    said: list[str] = []
    assert slow_passes.contrasts_here(tmp_path, describe_device(), [F32, BF16], tmp_path / "cache", said.append) == ()
    assert f"{BF16}: transformers has no model type 'made_up' of its own" in said
    assert not (tmp_path / "cache").exists()


def test_the_shallow_model_is_of_the_text() -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 34, "layer_types": ["sliding_attention"] * 34, "hidden_size": 64}
    found = slow_passes.shallow_sizes({"model_type": "gemma3", "text_config": text})
    assert found["model_type"] == "gemma3_text" and found["hidden_size"] == 64
    assert (found["num_hidden_layers"], len(found["layer_types"])) == (slow_passes.LAYERS,) * 2  # type: ignore[arg-type]
