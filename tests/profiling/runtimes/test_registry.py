"""An artifact made for another runtime is refused before it is loaded, with what is missing."""

from pathlib import Path

import pytest

from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.runtimes import triton
from quantadvisor.profiling.runtimes.registry import RUNTIMES

FILES = {
    "torch": ("config.json", "model.safetensors"),
    "vllm": ("config.json", "model.safetensors"),
    "triton": ("config.json", "model.safetensors"),
    "onnxruntime": ("model.onnx", "genai_config.json"),
    "onnxruntime-genai": ("model.onnx", "genai_config.json"),
    "openvino": ("openvino_model.xml", "openvino_model.bin"),
    "llama.cpp": ("model.gguf",),
}


def refused(name: str, path: str | None) -> str | None:
    """Of the triton runtime before it looks for a GPU: whether it can read a folder shows on every machine."""
    return triton.unreadable(path, (), ()) if name == "triton" else refusal(name, interpreter_of(name), path, (), ())


def test_every_runtime_is_here() -> None:
    assert set(FILES) == set(RUNTIMES)


@pytest.mark.parametrize("made_for", sorted(FILES))
@pytest.mark.parametrize("name", sorted(FILES))
def test_an_artifact_made_for_another_runtime(name: str, made_for: str, tmp_path: Path) -> None:
    if refused(name, None):
        pytest.skip(f"{name} is not here")
    for file in FILES[made_for]:
        (tmp_path / file).write_text("{}" if file.endswith(".json") else "")
    found = refused(name, str(tmp_path))
    if set(FILES[name]) <= set(FILES[made_for]):
        assert found is None
    else:
        assert str(tmp_path) in str(found)
        assert any(file in str(found) for file in FILES[name])


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_config_that_is_not_json(name: str, tmp_path: Path) -> None:
    for file in FILES[name]:
        (tmp_path / file).touch()
    assert "config.json is not JSON" in str(refused(name, str(tmp_path)))
