"""KIVI's groups against torch's own affine quantizer, group by group, and its window against decoding token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import kivi
from quantadvisor.methods.refusals import installed
from quantadvisor.methods.schemes import scheme

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, still an oracle


def theirs(group: torch.Tensor, bits: int) -> torch.Tensor:
    """One group by torch.quantize_per_tensor, shifted so that its least value is code 0."""
    low, top = float(group.min()), 2**bits - 1
    codes = torch.quantize_per_tensor(group - low, (float(group.max()) - low) / top, 0, torch.quint8).int_repr()
    return codes.clamp(0, top).float() * ((float(group.max()) - low) / top) + low


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("width", [64, 16])
def test_keys_per_channel_values_per_token(bits: int, width: int) -> None:
    x = torch.from_numpy(np.random.default_rng(bits).standard_normal((1, 2, 101, width)).astype(np.float32))
    keys, values = kivi.keys(x, bits), kivi.values(x, bits)
    old = 96  # three whole windows of 32; the newest five tokens wait for theirs
    assert torch.equal(keys[..., old:, :], x[..., old:, :])
    assert torch.equal(values[..., old:, :], x[..., old:, :])
    step = 8 / (2**bits - 1)
    for head in range(2):
        for start in range(0, old, 32):
            for channel in (0, width - 1):
                part = x[0, head, start : start + 32, channel]
                torch.testing.assert_close(keys[0, head, start : start + 32, channel], theirs(part, bits), atol=1e-5, rtol=1e-5)
        size = 32 if width % 32 == 0 else width
        for start in range(0, width, size):
            part = x[0, head, 7, start : start + size]
            torch.testing.assert_close(values[0, head, 7, start : start + size], theirs(part, bits), atol=1e-5, rtol=1e-5)
    assert (keys - x).abs().max() < step


@pytest.mark.parametrize(("tokens", "old"), [(0, 0), (1, 0), (32, 0), (33, 32), (64, 32), (65, 64)])
def test_the_newest_window_is_whole(tokens: int, old: int) -> None:
    assert kivi.settled(tokens) == old
    x = torch.randn(1, 1, tokens, 64)
    for rounded in (kivi.keys(x, 2), kivi.values(x, 2)):
        assert rounded.shape == x.shape
        assert torch.equal(rounded[..., old:, :], x[..., old:, :])


def test_loud_channels_are_why_keys_are_rounded_per_channel() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 65, 64)).astype(np.float32))
    x[..., 3] *= 40
    per_channel, per_token = (float((each(x, 4) - x)[..., :3].square().mean()) for each in (kivi.keys, kivi.values))
    assert per_channel < per_token / 50


def test_chunks_see_what_decoding_sees(llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows of eight tokens, eight at a time gives the logits of one at a time."""
    from quantadvisor.methods.fake import applied
    from quantadvisor.methods.observe import load

    monkeypatch.setattr(kivi, "RESIDUAL", 8)
    monkeypatch.setattr(kivi, "GROUP", 8)
    made = kivi.fake(load(llama), scheme("fp32-kv2-kivi"), tokens)
    assert made.chunk == 8
    with applied(made) as together:
        one = together(tokens[0])
    with applied(made._replace(chunk=1)) as alone:
        torch.testing.assert_close(alone(tokens[0]), one, atol=1e-3, rtol=1e-3)


def test_fewer_bits_cost_more(llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantadvisor.methods.observe import load

    from .conftest import fake_kl

    monkeypatch.setattr(kivi, "RESIDUAL", 8)
    monkeypatch.setattr(kivi, "GROUP", 8)
    found = [fake_kl(kivi.fake(load(llama), scheme(f"fp32-kv{b}-kivi"), tokens), llama, tokens) for b in (8, 4, 2)]
    assert 0 <= found[0] < found[1] < found[2]
    assert found[0] < 1e-3


def test_refusals(llama: Path) -> None:
    for runtime in ("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp"):
        assert kivi.refuse(llama, scheme("fp32-kv4-kivi"), runtime)


def test_what_transformers_lacks_is_looked_up(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a package its name and command; with one (an empty module found on the path) what its cache does instead."""
    have = [package for module, package in kivi.BACKENDS.items() if installed(module)]
    said = str(kivi.refuse(llama, scheme("fp32-kv4-kivi"), "torch"))
    assert have[0] in said if have else "optimum-quanto or hqq, and neither is installed: pip install hqq" in said
    (tmp_path / "hqq.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    said = str(kivi.refuse(llama, scheme("fp32-kv4-kivi"), "torch"))
    assert "not installed" not in said and "all of the cache again" in said


def test_transformers_rounds_as_the_refusal_says() -> None:
    """Its QuantizedLayer, with a rounding that counts: the first prompt whole, and each time all that it returns."""
    from transformers.cache_utils import QuantizedLayer

    rounded = []

    class Counted(QuantizedLayer):
        def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
            rounded.append(tensor.shape[-2])
            return tensor

        def _dequantize(self, q_tensor: torch.Tensor) -> torch.Tensor:
            return q_tensor

    layer = Counted(residual_length=4)
    for tokens in (10, 1, 1, 1, 1):
        layer.update(torch.ones(1, 1, tokens, 8), torch.ones(1, 1, tokens, 8))
    assert rounded[:2] == [10, 10]
    assert len(rounded) == 4 and min(rounded[2:]) > 10
