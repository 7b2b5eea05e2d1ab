"""A tiny random Llama as a Hugging Face folder, and its ONNX export: made once a session."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

VOCABULARY = 256


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("TRANSFORMERS_OFFLINE", "1")
    yield
    patch.undo()


def write_llama(folder: Path, tied: bool = True, **changes: object) -> Path:
    """Hidden 64, 2 layers, 4 heads over 2 key heads; a few loud channels, as trained models have."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
    }  # fmt: skip
    config = LlamaConfig(**(sizes | changes), tie_word_embeddings=tied, initializer_range=0.08)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("layernorm.weight"):
                value.mul_(torch.exp(0.5 * torch.randn_like(value)))
                value[3] *= 12
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", eos_token="t2", bos_token="t1").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "hf")


def interrupt(*_: object, **__: object) -> None:
    """In the place of a writer: an artifact that is never written."""
    raise KeyboardInterrupt


LOUD = 60.0


def plant_outliers(folder: Path, out: Path) -> Path:
    """The model with loud channels: an inverse SmoothQuant multiplies channels 5 and 17 of what norms and up_proj write by
    LOUD and divides the weights that read them. It computes the same; its activations are hard to round."""
    import shutil

    from transformers import AutoModelForCausalLM

    from quantadvisor.methods.rescale import move, pairs

    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    for pair in pairs(model.config.to_dict()):
        if not pair.source.endswith("v_proj"):
            scale = np.ones(state[f"{pair.source}.weight"].shape[0], np.float32)
            scale[[5, 17]] = 1 / LOUD
            move(state, pair, scale)
    shutil.copytree(folder, out)
    model.save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def planted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_outliers(llama, tmp_path_factory.mktemp("planted") / "hf")


def fake_kl(fake: object, folder: Path, rows: np.ndarray) -> float:
    """Mean KL of a fake against the fp32 model of `folder` over rows int64 [samples, length]."""
    from quantadvisor.methods.fake import applied

    with applied(fake) as logits:
        return float(np.mean([kl(torch_logits(folder, row), logits(row).numpy()) for row in rows]))


@pytest.fixture(scope="session")
def base(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from quantadvisor.methods.formats import onnx

    out = tmp_path_factory.mktemp("base") / "base"
    onnx.export_base(llama, out)
    return out


@pytest.fixture(scope="session")
def openvino_base(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    pytest.importorskip("optimum.intel")
    from quantadvisor.methods.formats import openvino

    out = tmp_path_factory.mktemp("openvino") / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        openvino.export_base(llama, out)
    return out


@pytest.fixture(scope="session")
def planted_base(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from quantadvisor.methods.formats import onnx

    out = tmp_path_factory.mktemp("planted_base") / "base"
    onnx.export_base(planted, out)
    return out


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """[4 samples, 32 tokens]"""
    return np.random.default_rng(0).integers(3, VOCABULARY, (4, 32)).astype(np.int64)


def draws(tokens: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(calibration, the sample that is judged), each sample left out once: what holds on average need not hold of one."""
    for index, row in enumerate(tokens):
        yield np.delete(tokens, index, axis=0), row


def mean_kls(llama: Path, tokens: np.ndarray, plain: Path, search: Callable[[np.ndarray], Path]) -> tuple[float, float]:
    """Over the draws: of the folder that `search` writes from a calibration, and of `plain`, which needs none."""
    searched, nearest = [], []
    for calibration, row in draws(tokens):
        exact = torch_logits(llama, row)
        searched.append(kl(exact, run(search(calibration), row)))
        nearest.append(kl(exact, run(plain, row)))
    return float(np.mean(searched)), float(np.mean(nearest))


def torch_logits(folder: Path, row: np.ndarray) -> np.ndarray:
    """Of every position: [S, V], by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own deprecations
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(row)[None]).logits[0].numpy()


def session(folder: Path, name: str, optimised: Path | None = None):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that a dumped optimised graph fits only this machine
    options.intra_op_num_threads = 1
    if optimised:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])


def run(folder: Path, row: np.ndarray, chunk: int | None = None, name: str = "scoring.onnx") -> np.ndarray:
    """Logits [positions, V] of a folder, later chunks reading the cache that earlier ones left."""
    opened = session(folder, name)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3] if isinstance(value.shape[3], int) else 16), kinds[value.type])
        for value in opened.get_inputs()
        if value.name.startswith("past")
    }
    names, parts = [value.name for value in opened.get_outputs()], []
    for start in range(0, len(row), chunk or len(row)):
        part = row[start : start + (chunk or len(row))]
        mask = np.ones((1, start + len(part)), np.int64)
        found = dict(zip(names, opened.run(names, {"input_ids": part[None], "attention_mask": mask, **past}), strict=True))
        parts.append(found["logits"][0])
        past = {key: found[key.replace("past_key_values", "present")] for key in past}
    return np.concatenate(parts)


def operators(folder: Path, scratch: Path) -> dict[str, int]:
    """Operator types after ONNX Runtime's own optimisation, with counts."""
    import onnx

    session(folder, "model.onnx", scratch / "optimised.onnx")
    counts: dict[str, int] = {}
    for node in onnx.load(scratch / "optimised.onnx", load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def kl(exact: np.ndarray, other: np.ndarray) -> float:
    """Mean over positions of KL(exact || other), in nats."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_softmax(exact), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Products in float32, and as on a CPU with instructions for bfloat16 (elsewhere torch computes the same, slowly)."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": request.param})
    return bool(request.param)
