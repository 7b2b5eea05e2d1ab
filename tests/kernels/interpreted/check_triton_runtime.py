"""The triton runtime on a tiny llama in the interpreter, against transformers in float32 on the very same stored numbers.

No bound follows from the formats through a whole model, so torch's own bfloat16 is the measure: the same linears (exact
integers, activations rounded per token) and the same rounded cache, in plain torch bfloat16, are off by some amount; the
kernels may be off by twice that. A wrong kernel is off by the logits' own size.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from quantadvisor.documents import Figure
from quantadvisor.kernels import rivals, triton_modules, triton_products, turbo_tables
from quantadvisor.kernels import triton_decode_attention as kernel
from quantadvisor.methods import fp8, kbit, llm_int8, rtn
from quantadvisor.methods.affine import Grouped, dequantize_groups
from quantadvisor.methods.formats import bridges, compressed, gptq
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling import triton_complete
from quantadvisor.profiling.runtimes import triton as runtime
from quantadvisor.profiling.runtimes.triton_load import problems_of, swapped

PROMPT = np.random.default_rng(3).integers(0, 96, (1, 5))
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96}
FORMATS = ["int-quantized", "float-quantized", "pack-quantized"]
CACHES = ["kvint8", "kvint4", "kvfp8", "kvturbo"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base in float32, and the three formats; ours writes the first, the test the others by their published layout."""
    root = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, num_key_value_heads=1, head_dim=32, max_position_embeddings=64, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.7 if "embed" in name else 0.125)
    model.save_pretrained(root / "base")
    compressed.quantize_w8a8(root / "base", root / "int-quantized")
    state = load_file(root / "base" / "model.safetensors")
    for name in FORMATS[1:]:
        write(root / name, state, json.loads((root / "base" / "config.json").read_text()), name)
    return {name: root / name for name in ("base", *FORMATS)}


def write(folder: Path, state: dict[str, torch.Tensor], config: dict[str, Any], layout: str) -> None:
    stored: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        stem = name.removesuffix("weight")
        if not name.endswith("_proj.weight"):
            stored[name] = value.to(torch.bfloat16)
        elif layout == "float-quantized":
            scale = value.abs().amax(1, keepdim=True) / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored[stem + "weight_scale"] = scale
        else:
            blocks = value.reshape(len(value), -1, 32)
            scale = (blocks.abs().amax(-1) / 7).to(torch.bfloat16)
            codes = ((blocks / scale.float()[..., None]).round().clamp(-8, 7) + 8).reshape(len(value), -1).to(torch.int64)
            packed = sum(codes[:, i::8] << 4 * i for i in range(8))
            stored[stem + "weight_packed"] = torch.as_tensor(packed).to(torch.int32)
            stored[stem + "weight_scale"] = scale
            stored[stem + "weight_shape"] = torch.tensor(value.shape)
    eight = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    group = {
        "weights": eight
        if layout == "float-quantized"
        else {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32},
        "input_activations": {"num_bits": 8, "strategy": "token", "dynamic": True} if layout == "float-quantized" else None,
    }
    folder.mkdir()
    settings = {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "quantization_config": settings}))
    save_file(stored, folder / "model.safetensors")


def plain(folder: Path, layout: str, dtype: Any) -> Any:
    """transformers in `dtype` on the stored numbers, activations rounded as the format says: the oracle in float32."""
    stored = load_file(folder / "model.safetensors")
    state = {}
    for name, value in stored.items():
        stem = name.rsplit(".", 1)[0]
        if name.endswith("weight_packed"):
            codes = torch.stack([(value >> 4 * i) & 15 for i in range(8)], -1).reshape(len(value), -1).float() - 8
            state[f"{stem}.weight"] = codes * stored[f"{stem}.weight_scale"].float().repeat_interleave(32, 1)
        elif f"{stem}.weight_scale" in stored and name.endswith(".weight"):
            state[name] = value.float() * stored[f"{stem}.weight_scale"].float()
        elif not name.endswith(("weight_scale", "weight_shape")):
            state[name] = value.float()
    config = LlamaConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    most = {"int-quantized": 127.0, "float-quantized": 448.0}.get(layout)

    def rounded(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        x = given[0].float()
        scale = x.abs().amax(-1, keepdim=True) / most
        codes = (x / scale).round() if most == 127 else (x / scale).to(torch.float8_e4m3fn).float()
        return ((codes * scale).to(given[0].dtype),)

    for name, module in model.named_modules():
        if most and name.endswith("_proj"):
            module.register_forward_pre_hook(rounded)
    return model.to(dtype).eval()


class Rounded(DynamicCache):
    """Stores what the kernel's quantizer would, and gives it back in float32 once something was stored before."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *more: Any, **options: Any) -> Any:
        fresh = self.get_seq_length(layer_idx) == 0
        stored = super().update(self.stored(key_states), self.stored(value_states), layer_idx, *more, **options)
        return (key_states, value_states) if fresh else stored

    def stored(self, x: torch.Tensor) -> torch.Tensor:
        kind = triton_modules.CACHES[self.option]
        if kind == "turbo":
            codebook, turn = torch.from_numpy(turbo_tables.codebook(4)).float(), turbo_tables.rotation(x.shape[-1])
            one = kernel.quantize_turbo(x, codebook, turn)
            codes = torch.cat([one.codes & 15, one.codes >> 4], -1).long()
            return (one.scales[..., None] * codebook[codes] @ turn).to(x.dtype)
        one = getattr(kernel, f"quantize_{kind}")(x)
        return kernel.dequantized(one, torch.float32).to(x.dtype)


def decoded(model: Any, cache: Any, tokens: list[int]) -> list[np.ndarray[Any, Any]]:
    """Logits after the prompt and after each further token."""
    with torch.inference_mode():
        found = [model(torch.from_numpy(PROMPT), past_key_values=cache).logits[0, -1]]
        found += [model(torch.tensor([[one]]), past_key_values=cache).logits[0, -1] for one in tokens]
    return [one.float().numpy() for one in found]


@pytest.mark.parametrize(("layout", "option"), [(FORMATS[0], CACHES[0]), (FORMATS[1], CACHES[2]), (FORMATS[2], CACHES[1]),
                                                (FORMATS[2], CACHES[3])])  # fmt: skip
def test_logits_are_off_by_no_more_than_torchs_own_rounding(folders: dict[str, Path], layout: str, option: str) -> None:
    tokens = [5]
    session = runtime.TritonSession(str(folders[layout]), (option,), 1, "cpu")
    found = [session.prefill(PROMPT, 16)[0], *(session.decode(np.array([[one]]))[0] for one in tokens)]
    exact = decoded(plain(folders[layout], layout, torch.float32), Rounded(option), tokens)
    half = decoded(plain(folders[layout], layout, torch.bfloat16), Rounded(option), tokens)
    for ours, theirs, true in zip(found, half, exact, strict=True):
        off, allowed = np.linalg.norm(ours - true), np.linalg.norm(theirs - true)
        assert off <= 2 * allowed, (
            f"{off / np.linalg.norm(true):.4f} of the logits; torch bfloat16 {allowed / np.linalg.norm(true):.4f}"
        )
        assert allowed < 0.2 * np.linalg.norm(true)


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """int32 [N, W] -> [N, 8 W], the lowest four bits first."""
    return torch.stack([(words >> 4 * i) & 15 for i in range(8)], -1).reshape(len(words), -1)


@pytest.mark.parametrize(
    ("method", "name"), [(fp8, "fp8-bf16"), (rtn, "w4-g32-bf16"), (rtn, "w8-g32-bf16")], ids=["fp8", "w4", "w8"]
)
def test_what_our_methods_write_is_read(folders: dict[str, Path], tmp_path: Path, method: Any, name: str) -> None:
    """FP8, INT4 with zero points, weight-only INT8: each linear against float32 on the stored numbers."""
    method.apply(folders["base"], scheme(name), "triton", np.zeros((1, 4), np.int64), tmp_path / "out")
    assert triton_modules.refusal(json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]) is None
    stored, model = load_file(tmp_path / "out" / "model.safetensors"), swapped(str(tmp_path / "out"), "cpu")
    stem = "model.layers.1.mlp.down_proj"  # [64, 96]
    scales = stored[f"{stem}.weight_scale"].float()
    if method is fp8:
        w = stored[f"{stem}.weight"].float() * scales
    elif name.startswith("w8"):
        codes = stored[f"{stem}.weight_packed"].view(torch.uint8).reshape(64, 3, 32).float()
        w = ((codes - 128) * scales[..., None]).reshape(64, 96)
        assert model.get_submodule(stem).kernel == "w8a16"
        assert ("w8a16-g32", (1, 64, 96)) in problems_of(model, "16 bit")
    else:
        assert not (unpacked(stored[f"{stem}.weight_zero_point"].T)[:, :64] == 8).all()
        zeros = unpacked(stored[f"{stem}.weight_zero_point"].T)[:, :64].T
        codes = unpacked(stored[f"{stem}.weight_packed"]).reshape(64, 3, 32)
        w = ((codes - zeros[..., None]) * scales[..., None]).reshape(64, 96)
    x = torch.linspace(-1, 1, 3 * 96).reshape(3, 96).to(torch.bfloat16)
    found, true = model.get_submodule(stem)(x).float(), x.float() @ w.T
    tolerance = 2.0**-4 if method is fp8 else 0.0  # x is rounded to E4M3: half of 2^-3 of each product at most
    allowed = 2.0**-8 * true.abs() + (tolerance + 1e-5) * (x.float().abs() @ w.abs().T)
    assert ((found - true).abs() <= allowed).all()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose rows are whole blocks of 64; two channels of the first layer reach LLM.int8()'s threshold."""
    torch.manual_seed(1)
    sizes = SMALL | {"intermediate_size": 128, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.7 if "embed" in name else 0.125)
    model.model.layers[0].input_layernorm.weight.data[[3, 40]] = 12.0
    model.save_pretrained(folder := tmp_path_factory.mktemp("wide"))
    return folder


@pytest.mark.parametrize(
    ("method", "name", "kernel"),
    [
        (kbit, "nf4-b64-bf16", "codebook_kernel"),
        (kbit, "nf4-b64-dq-bf16", "codebook_kernel"),
        (llm_int8, "w8a8-outlier-fp16", "llm_int8_kernel"),
    ],
    ids=["nf4", "double", "int8"],
)
def test_folders_of_bitsandbytes_are_as_near_as_its_own_kernels(
    wide: Path, tmp_path: Path, method: Any, name: str, kernel: str
) -> None:
    """Against float32 on the stored numbers, which for INT8 rounds activations as the format says. All positions together: of a
    single one either may be three times as far off as the other."""
    folder, tokens = tmp_path / "out", [5, 9, 17, 33]
    assert method.refuse(wide, scheme(name), "triton") is None
    method.apply(wide, scheme(name), "triton", np.zeros((1, 4), np.int64), folder)
    assert runtime.unreadable(str(folder), (), ()) is None
    session = runtime.TritonSession(str(folder), (), 1, "cpu")
    found = [session.prefill(PROMPT, 16)[0], *(session.decode(np.array([[one]]))[0] for one in tokens)]
    bridges.dequantized(folder, tmp_path / "plain")
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    loud = []

    def rounded(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        loud.append(int((given[0].abs() >= llm_int8.THRESHOLD).flatten(0, -2).any(0).sum()))
        return (llm_int8.rounded(given[0]),)

    for path, module in oracle.named_modules():
        if method is llm_int8 and path.endswith("_proj"):
            module.register_forward_pre_hook(rounded)
    exact = decoded(oracle, DynamicCache(), tokens)
    theirs = decoded(AutoModelForCausalLM.from_pretrained(folder).eval(), DynamicCache(), tokens)
    ours, their, true = (np.stack([np.asarray(one) for one in each]) for each in (found, theirs, exact))
    off, allowed, whole = np.linalg.norm(ours - true), np.linalg.norm(their - true), np.linalg.norm(true)
    assert off <= 2 * allowed, f"{off / whole:.4f} of the logits; bitsandbytes {allowed / whole:.4f}"
    assert allowed < 0.2 * whole
    assert method is kbit or max(loud) >= 1
    seen = session.operators(PROMPT, batch=None)["decode"]
    assert {one["name"]: one["count"] for one in seen["operators"]}[kernel] == seen["quantized_linears"] == 14
    for path, linear in session.model.named_modules():
        if hasattr(linear, "dense"):
            assert torch.equal(linear.dense(), oracle.get_submodule(path).weight.to(torch.bfloat16))


@pytest.mark.parametrize("symmetric", [True, False])
def test_folders_of_gptq_are_read(wide: Path, tmp_path: Path, symmetric: bool) -> None:
    """v1 and v2, in float16: each linear against float32 on the integers that the method's own reader finds."""
    given: dict[str, Any] = {}
    for name, value in load_file(wide / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            made = integers_of(value.numpy(), 64, symmetric)
            given[name.removesuffix(".weight")] = lambda made=made: made
    gptq.write(wide, tmp_path / "out", given, (4, 64, symmetric))
    assert runtime.unreadable(str(tmp_path / "out"), (), ()) is None
    model = swapped(str(tmp_path / "out"), "cpu")
    assert model.dtype == torch.float16
    for name, linear in gptq.read(tmp_path / "out")[0].items():
        ours = model.get_submodule(name)
        assert ours.name == ("w4a16-g64" if symmetric else "w4a16-g64-asymmetric")
        w = torch.from_numpy(dequantize_groups(linear.codes, linear.scales, linear.zeros, 64)).double()
        x = torch.linspace(-1, 1, 3 * w.shape[1]).reshape(3, -1).to(torch.float16)
        true, sizes = x.double() @ w.T, x.double().abs() @ w.abs().T
        assert ((ours(x).double() - true).abs() <= 2.0**-11 * true.abs() + (w.shape[1] + 4) * 2.0**-24 * sizes + 2.0**-25).all()


def integers_of(w: np.ndarray[Any, Any], group: int, symmetric: bool) -> Grouped:
    """w: [N, K] to the nearest of 16 steps in each group; zero points 8, or what the least weight asks for."""
    blocks = w.reshape(len(w), -1, group)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = (np.abs(blocks).max(-1) / 7 if symmetric else (high - low) / 15).astype(np.float16).astype(np.float32)
    zeros = np.full(scales.shape, 8, np.uint8) if symmetric else np.clip(np.rint(-low / scales), 0, 15).astype(np.uint8)
    codes = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    return Grouped(codes.reshape(w.shape), scales, zeros)


def test_blocks_over_the_ends_of_rows_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Rows of 96 in blocks of 64, which bitsandbytes writes and torch reads."""
    kbit.apply(folders["base"], scheme("nf4-b64-bf16"), "torch", np.zeros((1, 4), np.int64), tmp_path / "out")
    with pytest.raises(ValueError, match="NF4 in blocks of 64 over rows of 96"):
        swapped(str(tmp_path / "out"), "cpu")


def test_a_sixteen_bit_cache_too(folders: dict[str, Path]) -> None:
    session = runtime.TritonSession(str(folders["base"]), (), 1, "cpu")
    found = [session.prefill(PROMPT, 16)[0], session.decode(np.array([[5]]))[0]]
    model = AutoModelForCausalLM.from_pretrained(folders["base"], dtype=torch.float32)
    for ours, true in zip(found, decoded(model, DynamicCache(), [5]), strict=True):
        assert np.linalg.norm(ours - true) < 0.03 * np.linalg.norm(true)


def test_what_is_launched_is_written_down(folders: dict[str, Path]) -> None:
    session = runtime.TritonSession(str(folders["int-quantized"]), ("kvint8",), 1, "cpu")
    seen = session.operators(PROMPT, batch=2)
    assert (seen["decode"]["linears"], seen["decode"]["quantized_linears"]) == (15, 14)
    counts = {one["name"]: one["count"] for one in seen["decode"]["operators"]}
    assert counts["w8a8_kernel"] == counts["quantize_rows_kernel"] == 14
    assert counts["attend_kernel"] == counts["join_kernel"] == 2
    assert "attend_kernel" not in {one["name"] for one in seen["prefill"]["operators"]}
    precision = {one["name"]: one["precision"] for one in seen["decode"]["operators"] if "precision" in one}
    assert precision == {"w8a8_kernel": "w8a8", "attend_kernel": "int8"}
    assert all(one["time_s"] > 0 for one in seen["decode"]["operators"])


def test_parts_of_a_pass_are_told_apart(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is made slow is the part that takes the time; looking leaves no trace."""

    def slowed(*given: Any) -> Any:
        time.sleep(0.2)
        return stored(*given)

    stored = triton_modules.quantized
    session = runtime.TritonSession(str(folders["base"]), ("kvturbo",), 1, "cpu")
    forward, update = torch.nn.Linear.forward, Cache.update
    fast = session.operators(PROMPT, batch=None)["decode"]
    monkeypatch.setattr(triton_modules, "quantized", slowed)
    slow = session.operators(PROMPT, batch=None)["decode"]
    layers = 2
    assert slow["cache_s"] - fast["cache_s"] > 0.8 * 2 * layers * 0.2
    assert slow["linears_s"] < 0.2 * slow["cache_s"]
    assert 0 < fast["linears_s"] < fast["wall_s"]
    assert fast["attention_s"] > 0
    assert fast["linears_s"] + fast["attention_s"] + fast["cache_s"] + fast["other_s"] >= fast["wall_s"]
    assert "interpreter" in fast["notes"][0]
    assert (torch.nn.Linear.forward, Cache.update) == (forward, update)
    assert not [one for one in session.model.modules() if "forward" in vars(one)]


def test_a_prompt_is_completed_as_if_every_token_were_prefilled(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(folders["base"], folder)
    vocabulary = {f"t{i}": i for i in range(96)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    assert triton_complete.main([str(folder), "t5 t9", "--interpreted", "--tokens", "3"]) == 0
    said = capsys.readouterr().out.split()
    session, tokens = runtime.TritonSession(str(folder), (), 1, "cpu"), [5, 9]
    for _ in range(3):
        tokens.append(int(session.prefill(np.array([tokens]), 8)[0].argmax()))
    assert said == [f"t{one}" for one in tokens]
    assert triton_complete.main([str(folder), "", "--interpreted"]) == 2
    assert "no tokens" in capsys.readouterr().err


def test_an_end_ends_it(folders: dict[str, Path]) -> None:
    session = runtime.TritonSession(str(folders["base"]), ("kvint8",), 1, "cpu")
    first = int(session.prefill(PROMPT, 8)[0].argmax())
    assert triton_complete.completion(session, PROMPT[0], 9, first) == [first]


def test_what_a_gpu_would_time_is_each_size_of_a_linear_once(folders: dict[str, Path]) -> None:
    found = problems_of(swapped(str(folders["int-quantized"]), "cpu"), "int8")
    assert len(found) == len(set(found))
    assert {problem for problem in found if problem[1][0] == 16} == {
        ("w8a8", (16, 64, 64)), ("w8a8", (16, 32, 64)), ("w8a8", (16, 96, 64)), ("w8a8", (16, 64, 96)),
        ("decode-attention-int8", (16, 2, 32)),
    }  # fmt: skip
    assert problems_of(swapped(str(folders["base"]), "cpu"), "16 bit") == []


def test_a_full_cache_is_said(folders: dict[str, Path]) -> None:
    session = runtime.TritonSession(str(folders["base"]), ("kvfp8",), 1, "cpu")
    session.prefill(PROMPT, 5)
    with pytest.raises(ValueError, match="made for 5 tokens; 5 are held and 1 come"):
        session.decode(np.array([[5]]))


def test_every_row_has_a_cache_of_its_own_and_chunks_read_the_stored_one(folders: dict[str, Path]) -> None:
    session = runtime.TritonSession(str(folders["base"]), ("kvint8",), 1, "cpu")
    session.prefill(PROMPT, 16)
    session.fill(2, 16)
    same = session.decode(np.array([[5], [5]]))
    assert np.array_equal(same[0], same[1])
    other = session.decode(np.array([[7], [8]]))
    assert not np.array_equal(other[0], other[1])
    whole = np.concatenate(list(session.score(PROMPT[0], None)))
    chunked = np.concatenate(list(session.score(PROMPT[0], 3)))
    assert whole.shape == chunked.shape == (5, 96)
    assert np.array_equal(whole[:3], chunked[:3])
    assert 0 < np.abs(whole[3:] - chunked[3:]).max() < 0.2 * np.abs(whole).max()


def as_stored(w: torch.Tensor) -> torch.Tensor:
    """Rounded per channel to 127 steps: the codes that such weights came from, again."""
    scales = w.float().abs().amax(1, keepdim=True) / 127
    return (w.float() / scales).round() * scales


def exact_int8(_: torch.Tensor, w: torch.Tensor) -> Any:
    """A package that rounds as the format says and computes in float32."""
    weights = as_stored(w)

    def product(x: torch.Tensor) -> torch.Tensor:
        scale = x.float().abs().amax(-1, keepdim=True) / 127
        return (((x.float() / scale).round() * scale) @ weights.T).to(torch.float16)

    return product


def won(product: str, m: int) -> list[triton_products.Winner]:
    """At every size of the model's linears; another's product in a quarter of our time."""
    ours, theirs = (Figure(median=t, low=t, high=t, kind="measured") for t in (4e-6, 1e-6))
    return [
        triton_products.Winner(
            kernel="w8a8", m=m, n=n, k=k, product=product, time_s=ours if product == "triton" else theirs, ours_s=ours
        )
        for n, k in ((64, 64), (32, 64), (96, 64), (64, 96))
    ]


def test_a_package_that_won_is_called_where_it_won(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "RIVALS", {"w8a8": (rivals.Rival("Fast", "torch", exact_int8),)})
    session = runtime.TritonSession(str(folders["int-quantized"]), (), 1, "cpu")
    session.take([*won("Fast", 1), *won("triton", 5)])
    seen = session.operators(PROMPT, batch=None)
    launched = {phase: {one["name"]: one["count"] for one in seen[phase]["operators"]} for phase in seen}
    assert launched["prefill"]["w8a8_kernel"] == 14  # five rows
    assert "w8a8_kernel" not in launched["decode"]
    assert seen["decode"]["quantized_linears"] == 14
    assert "14 linears: Fast was 4.00x as fast as our w8a8 at M = 1 and is called about there" in seen["decode"]["notes"]
    session.prefill(PROMPT, 16)
    found = session.decode(np.array([[5]]))[0]
    half, true = (
        decoded(plain(folders["int-quantized"], "int-quantized", dtype), DynamicCache(), [5])[1]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert np.linalg.norm(found - true) <= 2 * np.linalg.norm(half - true)


def test_other_numbers_are_not_taken(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of four bits, and a package that raises: ours stays, and it is said why."""

    def four_bits(_: torch.Tensor, w: torch.Tensor) -> Any:
        scale = w.float().abs().amax(1, keepdim=True) / 7
        rounded = (w.float() / scale).round() * scale
        return lambda x: (x.float() @ rounded.T).to(x.dtype)

    def raises(_: torch.Tensor, w: torch.Tensor) -> Any:
        raise RuntimeError("needs sm_90")

    for prepare, words in ((four_bits, "its numbers on these weights are off by"), (raises, "needs sm_90")):
        monkeypatch.setattr(rivals, "RIVALS", {"w8a8": (rivals.Rival("Fast", "torch", prepare),)})
        session = runtime.TritonSession(str(folders["int-quantized"]), (), 1, "cpu")
        session.take(won("Fast", 1))
        (said,) = {note.partition(": ")[2] for note in session.taken if "14 linears" in note} or {str(session.taken)}
        assert "ours stays" in said and words in said
        counts = {one["name"]: one["count"] for one in session.operators(PROMPT, batch=None)["decode"]["operators"]}
        assert counts["w8a8_kernel"] == 14


@pytest.mark.parametrize("layout", FORMATS)
def test_weights_for_another_package_are_the_stored_ones(folders: dict[str, Path], layout: str) -> None:
    ours, oracle = swapped(str(folders[layout]), "cpu"), plain(folders[layout], layout, torch.float32)
    for name, linear in ours.named_modules():
        if hasattr(linear, "dense"):
            true = oracle.get_submodule(name).weight
            assert linear.sizes == tuple(true.shape)
            assert torch.equal(linear.dense(), true.to(torch.bfloat16))
