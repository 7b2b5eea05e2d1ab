"""Serve commands of an artifact: executed once, and said to be unverified, with the reason, where they cannot run."""

import json
import sys
from pathlib import Path

import pytest
import torch

from quantadvisor.advisor.catalogue import NOMINAL
from quantadvisor.advisor.serve import try_serve
from quantadvisor.documents import Candidate
from quantadvisor.methods.schemes import scheme


def served_by(runtime: str, name: str) -> Candidate:
    return Candidate(name="x", method="none", scheme=scheme(name), runtime=runtime, target="kv_cache", refused=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_triton_without_a_gpu_is_not_verified_and_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(NOMINAL))
    found = try_serve("triton", folder, served_by("triton", "bf16-kv4-turbo"), sys.executable)
    command = "python -m quantadvisor.profiling.triton_complete artifact 'The capital of France is' --cache kvturbo"
    assert (found.runtime, found.command, found.verified) == ("triton", command, False)
    assert found.reason is not None
    assert "exit code 2" in found.reason and "needs an NVIDIA GPU" in found.reason


def test_a_cache_of_another_runtime_is_not_asked_of_triton(tmp_path: Path) -> None:
    found = try_serve("triton", tmp_path / "missing", served_by("vllm", "bf16-kvf8-unit"), sys.executable)
    assert "--cache" not in found.command
    assert "no config.json" in str(found.reason)
