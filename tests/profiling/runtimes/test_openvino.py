"""The OpenVINO session on a tiny random llama, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from quantadvisor.methods.formats import openvino as formats
from quantadvisor.profiling.runtimes import openvino as runtime

pytestmark = pytest.mark.filterwarnings(
    r"ignore:.*(swigvarlink|SwigPy|torch\.jit|`torch_dtype`|TracerWarning).*",
)
F32 = ("f32", "kvf32")


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).float().eval()


@pytest.fixture(scope="module")
def base(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("openvino")
    model.save_pretrained(root / "hf")
    formats.export_base(root / "hf", root / "base")
    return root / "base"


@pytest.fixture
def tokens() -> Any:
    return np.random.default_rng(1).integers(0, 256, (3, 40))


def expected(model: Any, tokens: Any) -> Any:
    """Logits of all positions by transformers: tokens [B, S] -> [B, S, V]."""
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(tokens)).logits.numpy()


def test_prefill_and_decode_are_those_of_transformers(model: Any, base: Path, tokens: Any) -> None:
    session = runtime.open_session(str(base), F32, 2)
    want = expected(model, tokens)
    np.testing.assert_allclose(session.prefill(tokens[:, :30], 40), want[:, 29], atol=1e-3)
    for at in range(30, 40):
        np.testing.assert_allclose(session.decode(tokens[:, at : at + 1]), want[:, at], atol=1e-3)


def test_prompts_in_chunks_are_the_prompts(model: Any, base: Path, tokens: Any) -> None:
    session = runtime.open_session(str(base), F32, 2)
    session.prefill(tokens[:, :16], 40)
    session.append(tokens[:, 16:32])
    np.testing.assert_allclose(session.append(tokens[:, 32:]), expected(model, tokens)[:, -1], atol=1e-3)


def test_a_prefill_starts_anew(model: Any, base: Path, tokens: Any) -> None:
    session = runtime.open_session(str(base), F32, 2)
    session.prefill(tokens, 40)
    session.decode(tokens[:, :1])
    np.testing.assert_allclose(session.prefill(tokens[:1, :7], 8), expected(model, tokens[:1, :7])[:, -1], atol=1e-3)


@pytest.mark.parametrize(("options", "tolerance"), [(F32, 1e-4), (("f32", "kvf16"), 1e-4), (("f32", "kvu8"), 1e-2)])
def test_filled_rows_decode_as_prefilled_ones(base: Path, tokens: Any, options: tuple[str, ...], tolerance: float) -> None:
    session = runtime.open_session(str(base), options, 2)
    one, batch = tokens[:1], np.repeat(tokens[:1], 5, 0)
    session.prefill(batch[:, :30], 40)
    want = [session.decode(batch[:, at : at + 1]) for at in range(30, 40)]
    session.prefill(one[:, :30], 40)
    session.fill(5, 40)
    for at, logits in zip(range(30, 40), want, strict=True):
        got = session.decode(batch[:, at : at + 1])
        np.testing.assert_array_equal(got, np.repeat(got[:1], 5, 0))
        np.testing.assert_allclose(got, logits, atol=tolerance)


def test_filled_rows_do_not_share_their_cache(base: Path, tokens: Any) -> None:
    session = runtime.open_session(str(base), F32, 2)
    session.prefill(tokens[:1, :30], 40)
    session.fill(2, 40)
    session.decode(np.array([[5], [9]]))
    after = session.decode(np.array([[7], [7]]))
    for row, second in enumerate((5, 9)):
        alone = np.concatenate([tokens[:1, :30], [[second, 7]]], 1)
        np.testing.assert_allclose(after[row], session.prefill(alone, 40)[0], atol=1e-4)


def test_fill_before_prefill_is_an_error(base: Path) -> None:
    with pytest.raises(ValueError, match="prefill one first"):
        runtime.open_session(str(base), F32, 2).fill(2, 8)


@pytest.mark.parametrize("chunk", [None, 7, 40])
def test_score_gives_every_position(model: Any, base: Path, tokens: Any, chunk: int | None) -> None:
    session = runtime.open_session(str(base), F32, 2)
    for _ in range(2):
        pieces = list(session.score(tokens[0], chunk))
        assert [len(piece) for piece in pieces] == ([40] if chunk in (None, 40) else [7, 7, 7, 7, 7, 5])
        np.testing.assert_allclose(np.concatenate(pieces), expected(model, tokens[:1])[0], atol=1e-3)


def test_chunks_read_the_quantized_cache(base: Path, tokens: Any) -> None:
    session = runtime.open_session(str(base), ("f32", "kvu8"), 2)
    whole, chunked = (np.concatenate(list(session.score(tokens[0], chunk))) for chunk in (None, 10))
    assert 1e-4 < np.abs(whole - chunked).max() < 0.5
    np.testing.assert_allclose(whole[:10], chunked[:10], atol=1e-3)


def test_score_leaves_the_cache_of_decode_alone(model: Any, base: Path, tokens: Any) -> None:
    session = runtime.open_session(str(base), F32, 2)
    session.prefill(tokens[:, :30], 40)
    list(session.score(tokens[0], None))
    np.testing.assert_allclose(session.decode(tokens[:, 30:31]), expected(model, tokens)[:, 30], atol=1e-3)


@pytest.mark.parametrize(("width", "number"), [(None, "f32"), (8, "i8"), (4, "u4")])
def test_operators_tell_what_ran(base: Path, tmp_path: Path, tokens: Any, width: int | None, number: str) -> None:
    if width:
        formats.compress_weights(base, tmp_path / "out", width, 32, symmetric=False, head_bits=width)
    session = runtime.open_session(str(tmp_path / "out" if width else base), ("f32", "kvu8"), 2)
    phases = session.operators(tokens[:1], 4)
    for phase in phases.values():
        assert phase["linears"] == 15  # 7 in each of 2 layers, and the output layer
        assert phase["quantized_linears"] == (15 if width else 0)
        linears = [row for row in phase["operators"] if row["linear"]]
        assert {row["precision"].split()[0] for row in linears} == {number}
        parts = [phase[part] for part in ("linears_s", "attention_s", "cache_s", "other_s")]
        assert 0 < sum(parts) < 2 * phase["wall_s"]
        assert sum(row["time_s"] for row in phase["operators"]) == pytest.approx(sum(parts))
        assert phase["cache"] == "u8" and "cache stored in u8" in phase["notes"]
        assert "INFERENCE_NUM_THREADS=2" in phase["notes"]


def test_options_become_properties(base: Path) -> None:
    compiled = runtime.open_session(str(base), (), 1).decoder.compiled
    notes = runtime.graph_notes(compiled, runtime.stored_cache(compiled))
    assert {"INFERENCE_PRECISION_HINT=f32", "cache stored in f32", "INFERENCE_NUM_THREADS=1"} <= set(notes)
    assert runtime.stored_cache(runtime.open_session(str(base), ("kvf16",), 1).decoder.compiled) == "f16"


@pytest.mark.parametrize(
    ("options", "isa", "words"),
    [
        (("bf16",), ("avx512_vnni",), "needs a CPU with amx_bf16 or avx512_bf16"),
        (("bf16", "kvf32"), ("avx512_bf16",), "kvf32 would be untrue"),
        (("kvu4",), (), "no option 'kvu4'"),
        (("f32", "bf16"), ("amx_bf16",), "one precision"),
    ],
)
def test_refusals(options: tuple[str, ...], isa: tuple[str, ...], words: str) -> None:
    assert words in str(runtime.refuse(None, options, isa))


@pytest.mark.parametrize("options", [(), ("f32", "kvu8"), ("bf16", "kvu8"), ("bf16", "kvf16"), ("bf16",)])
def test_nothing_else_is_refused(options: tuple[str, ...]) -> None:
    assert runtime.refuse(None, options, ("avx512_bf16",)) is None
    assert runtime.refuse(None, options, ("amx_bf16",)) is None


def test_a_missing_file_is_named(base: Path, tmp_path: Path) -> None:
    assert runtime.refuse(str(base), (), ()) is None
    assert runtime.refuse(str(tmp_path), (), ()) == f"{tmp_path} holds no openvino_model.xml"


def test_openvino_missing_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'quantadvisor[openvino]'" in str(runtime.refuse(None, (), ()))


def test_a_wrong_option_is_an_error(base: Path) -> None:
    with pytest.raises(ValueError, match="no option 'int8'"):
        runtime.open_session(str(base), ("int8",), 2)
