"""What `gguf` offers and refuses; the rounding itself is in formats/test_gguf.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.methods import gguf, gguf_imatrix
from quantadvisor.methods.schemes import scheme

from .conftest import write_llama


def test_schemes_are_blocks() -> None:
    for name, bits, group in (("q8_0", 8, 32), ("q4_1", 4, 32), ("q5_0", 5, 32), ("q4_k", 4.5, 256), ("q6_k", 6.5625, 256)):
        offered = next(one for one in gguf.schemes() if one.name == name)
        assert offered.weights
        assert (offered.weights.bits, offered.weights.group_size) == (bits, group)


def test_refusals(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    assert "gemma2" in str(gguf.refuse(tmp_path, scheme("q8_0"), "llama.cpp"))
    assert "writes nothing for openvino" in str(gguf.refuse(llama, scheme("q8_0"), "openvino"))
    assert gguf.refuse(llama, scheme("q4_0"), "llama.cpp") is None
    for name in ("q4_0", "q4_k"):
        assert gguf.refuse(llama, scheme(name), "llama.cpp") is None  # no super-block fits: other types take their place
    odd = json.loads((llama / "config.json").read_text()) | {"intermediate_size": 144}
    (tmp_path / "config.json").write_text(json.dumps(odd))
    for name in ("q4_0", "q4_k"):
        assert "blocks of 32 do not divide intermediate_size = 144" in str(gguf.refuse(tmp_path, scheme(name), "llama.cpp"))


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_scaled_positions_are_refused_not_dropped(field: str, llama: Path, tmp_path: Path) -> None:
    found = json.loads((llama / "config.json").read_text())
    found.pop("rope_parameters", None)
    found[field] = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0}
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert "llama3" in str(gguf.refuse(tmp_path, scheme("q8_0"), "llama.cpp"))


def test_a_cache_is_no_part_of_the_file(llama: Path) -> None:
    assert scheme("q8_0-kv8").quantizes_cache
    assert "does not offer" in str(gguf.refuse(llama, scheme("q8_0-kv8"), "llama.cpp"))


def test_apply_without_a_base(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    gguf.apply(llama, scheme("q8_0"), "llama.cpp", tokens, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]


def test_what_is_simulated_is_what_the_gguf_package_rounds(llama: Path, tokens: np.ndarray) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    import gguf as library

    from quantadvisor.methods.observe import load, weight

    model = load(llama)
    for name, value in gguf.rounded(llama, scheme("q4_0"), tokens).items():
        number = library.GGMLQuantizationType.Q4_0
        np.testing.assert_allclose(value, library.dequantize(library.quantize(weight(model, name), number), number), atol=1e-6)


SMOL = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 8}
"""As in SmolLM2-135M, super-blocks divide the rows of down_proj alone, and three query heads share a key head."""
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
CASES = {
    "smol": SMOL,
    "groups of four": SMOL | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 2},
    "wide": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8},
    "eighty layers": NARROW | {"num_hidden_layers": 80},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sizes")
    return {name: write_llama(root / name, **sizes) for name, sizes in CASES.items()}


def in_file(folder: Path, model: Path) -> dict[str, tuple[str, np.ndarray]]:
    """{linear: (type, values [N, K])} by Hugging Face names, with the rows of q and k back in their places."""
    import gguf as library

    from quantadvisor.methods.formats import gguf as formats
    from quantadvisor.methods.rescale import pairs

    config = json.loads((model / "config.json").read_text())
    tensors = {tensor.name: tensor for tensor in library.GGUFReader(folder / formats.FILE).tensors}
    found = {}
    names = formats.tensor_names(config, [name for pair in pairs(config) for name in pair.targets])
    for name, place in names.items():
        value = library.dequantize(tensors[place].data, tensors[place].tensor_type)
        order = formats.rotated(f"{name}.weight", np.arange(len(value)), config)
        found[name] = tensors[place].tensor_type.name.lower(), value[np.argsort(order)]
    return found


@pytest.mark.parametrize("name", gguf.OFFERED)
@pytest.mark.parametrize("sizes", CASES)
def test_what_is_simulated_is_the_file_bit_for_bit(
    sizes: str, name: str, models: dict[str, Path], tokens: np.ndarray, tmp_path: Path
) -> None:
    """Types of llama.cpp's mix and of rows that super-blocks do not divide, as it writes them, and what is read from them."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    from quantadvisor.methods.formats import gguf as formats

    model = models[sizes]
    notes = gguf.apply(model, scheme(name), "llama.cpp", tokens, tmp_path / "out")
    stored, simulated = in_file(tmp_path / "out", model), gguf.rounded(model, scheme(name), tokens)
    kinds = formats.types(json.loads((model / "config.json").read_text()), stored, name)
    assert {linear: kind for linear, (kind, _) in stored.items()} == kinds
    for linear, (_, value) in stored.items():
        np.testing.assert_array_equal(simulated[linear], value, err_msg=linear)
    assert len(notes) - 1 == len({(kind, simulated[linear].shape[1]) for linear, kind in kinds.items() if kind != name})
    if (sizes, name) == ("smol", "q4_k"):
        assert notes[1:] == (
            "44 of 56 linears in q5_0 instead of q4_k: super-blocks of 256 do not divide their rows of 96",
            "4 of 56 linears in q5_1 instead of q4_k: super-blocks of 256 do not divide their rows of 96",
            "1 of 56 linears in q5_k instead of q4_k: llama.cpp's mix",
        )


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q2_k", "q4_k"])
def test_with_an_importance_matrix_too(name: str, models: dict[str, Path], tokens: np.ndarray, tmp_path: Path) -> None:
    """The matrix has a say in the mix, and weighs errors in every type."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    from quantadvisor.methods.formats import gguf as formats

    model = models["smol"]
    notes = gguf_imatrix.apply(model, scheme(name), "llama.cpp", tokens[:1], tmp_path / "out")
    simulated, stored = gguf_imatrix.rounded(model, scheme(name), tokens[:1]), in_file(tmp_path / "out", model)
    kinds = formats.types(json.loads((model / "config.json").read_text()), stored, name, weighed=True)
    assert {linear: kind for linear, (kind, _) in stored.items()} == kinds
    assert any("llama.cpp's mix" in note for note in notes)
    for linear, (_, value) in stored.items():
        np.testing.assert_array_equal(simulated[linear], value, err_msg=linear)


def test_rows_are_never_left_unrounded() -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    from quantadvisor.methods.formats import gguf as formats

    for name, width in (("q4_k", 576), ("q4_0", 48)):
        with pytest.raises(CandidateFailed, match=f"do not divide rows of {width}"):
            formats.round_rows(np.ones((2, width), np.float32), name)
