"""GGUF files of tiny random models: what is stored, against the gguf package's own reader and rounding."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods.formats import gguf as formats

from ..conftest import write_llama


@pytest.fixture(scope="module")
def exported(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "base"
    formats.export_base(llama, out)
    return out


def stored(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """{name: (type, float values [rows, columns])}."""
    return {
        tensor.name: (tensor.tensor_type.name, gguf.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(folder / formats.FILE).tensors
    }


def test_transformers_reads_back_what_was_written(llama: Path, exported: Path, tokens: np.ndarray) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(exported, gguf_file=formats.FILE, dtype=torch.float32).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).state_dict()
    assert set(theirs) == set(ours)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name].numpy(), value.numpy(), atol=1e-6, err_msg=name)


def test_a_random_twin_keeps_vectors_and_shapes(exported: Path, tmp_path: Path) -> None:
    formats.randomise(exported, tmp_path / "twin")
    before, after = stored(exported), stored(tmp_path / "twin")
    assert before.keys() == after.keys()
    for name, (kind, value) in before.items():
        assert (kind, value.shape) == (after[name][0], after[name][1].shape)
        assert np.array_equal(value, after[name][1]) == (value.ndim == 1)


@pytest.mark.parametrize(("name", "kind"), [("q8_0", "Q8_0"), ("q4_0", "Q4_0"), ("bf16", "BF16")])
def test_llama_cpp_rounds_as_the_gguf_package_does(name: str, kind: str, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    formats.quantize(exported, tmp_path / name, name)
    plain, rounded = stored(exported), stored(tmp_path / name)
    number = gguf.GGMLQuantizationType[kind]
    for tensor, (found, value) in rounded.items():
        if "ffn" not in tensor or value.ndim == 1:
            continue
        assert found == kind
        expected = gguf.dequantize(gguf.quantize(plain[tensor][1], number), number)
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_a_byte_level_tokenizer_goes_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    write_llama(tmp_path / "hf")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(["some text to merge", "merge some text"] * 4,
                             trainers.BpeTrainer(vocab_size=64, special_tokens=["<|end|>"]))  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>").save_pretrained(tmp_path / "hf")
    formats.export_base(tmp_path / "hf", tmp_path / "out")
    fields = gguf.GGUFReader(tmp_path / "out" / formats.FILE).fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 256
    assert fields["tokenizer.ggml.token_type"].contents()[0] == formats.CONTROL
    assert fields["tokenizer.ggml.token_type"].contents()[255] == formats.UNUSED
    assert fields["tokenizer.ggml.merges"].contents()


def test_an_unknown_architecture_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(CandidateFailed, match="gemma2"):
        formats.export_base(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
