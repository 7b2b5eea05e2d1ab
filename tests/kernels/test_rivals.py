"""Other packages' kernels: who is absent, who raises, who is ready. None of them ever ran here."""

import importlib.util
from typing import Any

import pytest
import torch

from quantadvisor.kernels import rivals
from quantadvisor.kernels.rivals import Rival, prepared


def test_each_is_ready_or_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(x: Any, w: Any) -> Any:
        raise RuntimeError("needs sm_90\nand more")

    def fails_when_called(x: Any, w: Any) -> Any:
        return lambda x: 1 / 0

    there = {"w8a8": (
        Rival("absent", "no_such_package", raises),
        Rival("raises", "torch", raises),
        Rival("fails", "torch", fails_when_called),
        Rival("ready", "torch", lambda x, w: lambda x: x @ w.T),
    )}  # fmt: skip
    monkeypatch.setattr(rivals, "RIVALS", there)
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    ready, refused = prepared("w8a8", x, w)
    assert torch.equal(ready["ready"](), x @ w.T)
    assert refused == {
        "absent": "no_such_package is not installed",
        "raises": "RuntimeError: needs sm_90",
        "fails": "ZeroDivisionError: division by zero",
    }
    assert prepared("unknown", x, w) == ({}, {})


def test_every_package_of_the_issue_is_asked() -> None:
    packages = {rival.package for found in rivals.RIVALS.values() for rival in found}
    assert packages == {"vllm", "torchao", "gemlite", "bitsandbytes", "flashinfer"}


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_names_exist() -> None:
    import bitsandbytes

    assert callable(bitsandbytes.functional.quantize_4bit)
    assert callable(bitsandbytes.matmul_4bit)
    assert callable(bitsandbytes.nn.Linear8bitLt)
