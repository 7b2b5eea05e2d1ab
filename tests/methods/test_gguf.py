"""What `gguf` offers and refuses; the rounding itself is in formats/test_gguf.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods import gguf
from quantadvisor.methods.schemes import scheme


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
    assert "super-blocks of 256 do not divide hidden_size = 64" in str(gguf.refuse(llama, scheme("q6_k"), "llama.cpp"))


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
