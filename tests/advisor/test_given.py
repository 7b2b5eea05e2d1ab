"""Existing checkpoints through the stages of a run: linked, measured under the workload and scored, nothing applied."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantadvisor.advisor.checkpoint import existing_checkpoints
from quantadvisor.advisor.context import Context
from quantadvisor.advisor.prove import run_trials
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import SourceCheckpoint
from quantadvisor.methods.affine import quantize_groups
from quantadvisor.methods.formats import bridges
from quantadvisor.methods.formats import gptq as formats_gptq
from quantadvisor.methods.formats.huggingface import linear_weights
from quantadvisor.methods.linear_format import LinearFormat
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.inventory import inventory_from_config

from ..methods.conftest import write_llama
from .documents import workload
from .planted_builds import TOKENS, bitsandbytes_nf4, blocks_of_fp8

pytestmark = [pytest.mark.runtime, pytest.mark.filterwarnings("ignore")]
LINEARS = 15
FUSED = 11
"""ONNX graphs hold q, k and v in one."""


def gguf(model: Path, out: Path) -> Path:
    method("gguf").apply(model, scheme("q8_0"), "llama.cpp", TOKENS, out)
    return shutil.move(out / "model.gguf", out.with_suffix(".gguf"))


def onnx(model: Path, out: Path) -> Path:
    method("rtn").apply(model, scheme("w8-g64"), "onnxruntime", TOKENS, out)
    return out


def bitsandbytes(model: Path, out: Path) -> Path:
    bitsandbytes_nf4(model, model, out)
    return out


def fp8(model: Path, out: Path) -> Path:
    blocks_of_fp8(model, model, out)
    return out


def compressed(model: Path, out: Path) -> Path:
    method("rtn").apply(model, scheme("w4-g64-bf16"), "vllm", TOKENS, out)
    return out


def awq(model: Path, out: Path) -> Path:
    bridges.convert(compressed(model, out.with_name("packed")), "awq", out)
    return out


def gptq(model: Path, out: Path) -> Path:
    """Symmetric, as vLLM reads them."""
    names = linear_weights(model, json.loads((model / "config.json").read_text()))
    given = {name: partial(lambda read: quantize_groups(read(), *SYMMETRIC), read) for name, read in names.items()}
    formats_gptq.write(model, out, given, SYMMETRIC)
    return out


SYMMETRIC = LinearFormat(4, 64, True)
LLAMA = ["llama.cpp", "llama.cpp+fa", "llama.cpp+plain", "llama.cpp+fa+plain"]
VLLM = 9
"""vLLM holds q, k and v in one, gate and up too; lm_head is the ninth of two layers."""


@pytest.mark.parametrize(
    ("runtime", "package", "make", "places", "linears"),
    [
        ("onnxruntime", "onnxruntime_genai", onnx, ["onnxruntime", "onnxruntime-genai"], (FUSED, FUSED)),
        ("torch", "bitsandbytes", bitsandbytes, ["torch"], (LINEARS, LINEARS - 1)),
        ("torch", "accelerate", fp8, ["torch"], (LINEARS, 0)),  # transformers expands it on a CPU: it loads, and runs unquantized
        ("torch", "compressed_tensors", compressed, ["torch"], (LINEARS, 0)),  # likewise
        (
            "llama.cpp",
            "llama_cpp",
            gguf,
            ["llama.cpp", "llama.cpp+fa", "llama.cpp+plain", "llama.cpp+fa+plain"],
            (LINEARS, LINEARS),
        ),
        ("vllm", "", compressed, ["vllm"], (VLLM, VLLM - 1)),
        ("vllm", "", awq, ["vllm"], (VLLM, VLLM - 1)),
        ("vllm", "", gptq, ["vllm"], (VLLM, VLLM - 1)),
    ],
)
def test_a_checkpoint_is_measured_and_scored_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    package: str,
    make: Callable[[Path, Path], Path],
    places: list[str],
    linears: tuple[int, int],
) -> None:
    if package:
        pytest.importorskip(package, reason=f"{package} is not in this environment")
    if reason := refusal(runtime, interpreter_of(runtime), None, (), ()):
        pytest.skip(reason)
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    hf = write_llama(tmp_path / "hf", hidden_size=128, intermediate_size=384, num_key_value_heads=4, max_position_embeddings=1024)
    mine = make(hf, tmp_path / "mine")
    runtimes = list(dict.fromkeys(place.split("+")[0] for place in places))
    asked = workload(
        model=str(hf), checkpoints=[str(mine)], runtimes=runtimes,
        traffic={"prompt_tokens": 16, "output_tokens": 4, "concurrency": 2},
    )  # fmt: skip
    inventory, device = inventory_from_config(json.loads((hf / "config.json").read_text())), describe_device()
    found = existing_checkpoints(asked, inventory, device)
    assert [one.name for one in found] == [f"given-mine@{place}" for place in places]
    assert [one.refused for one in found] == [None] * len(places)
    source = SourceCheckpoint(model=str(hf), path=str(hf), sha256="0" * 64)
    context = Context(asked, device, inventory, source, hf, tmp_path / "out", Quiet())
    trials = run_trials(context, found, SimpleNamespace(name="another"), rounds=2).trials  # type: ignore[arg-type]
    for trial in trials:
        if trial.name.startswith("given-mine@llama.cpp") and "plain" not in trial.name and "signal SIG" in str(trial.failed):
            continue  # a build whose AMX path crashes is refused with that reason
        assert trial.failed is None
        assert len(trial.rounds) == 2
        assert trial.quality is not None and 0 < trial.quality.kl.mean < 0.5
        assert trial.built is not None and "nothing was applied" in trial.built.notes[0]
        assert trial.operators is not None
        assert (trial.operators.linears, trial.operators.quantized_linears) == linears
