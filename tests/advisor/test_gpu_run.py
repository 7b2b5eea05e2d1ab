"""`advisor run` from spec to report on a GPU that is not there: a fake of NVML, and runtimes whose times are planted.

What is real: the device's choice, builds, workers and their environment, kernel tables, prediction, decision, documents, report.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pynvml
import pytest

from quantadvisor.advisor import cli, first_contact, gpu_home, pipeline, serve
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import Results
from quantadvisor.kernels import gpu_timing
from quantadvisor.kernels.gpu_fractions import reached
from quantadvisor.profiling import environments, gpu_peaks
from quantadvisor.profiling.runtimes.registry import RUNTIMES, runtime_file

from ..profiling.fake_nvml import fake, gives, text
from . import virtual_cuda
from .documents import workload

pytestmark = pytest.mark.slow


def write_model(folder: Path) -> Path:
    """A tiny Llama whose tokens are characters."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=virtual_cuda.VOCABULARY, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)
    letters = {chr(i): i for i in range(virtual_cuda.VOCABULARY)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, [], unk_token="?")), unk_token="?").save_pretrained(
        folder
    )
    return folder


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"virtual_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that nobody knows under NVML, the second of them number 5 of nvidia-smi, and three runtimes on it."""
    library = fake(nvmlDeviceGetCount_v2=gives(6), nvmlDeviceGetName=text(b"NVIDIA Virtual V1"))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"4,{virtual_cuda.PLACE}")
    monkeypatch.setitem(serve.COMMANDS, "torch", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QA_REAL_TORCH", str(runtime_file("torch")))
    monkeypatch.setenv("QA_ROOFS", json.dumps([virtual_cuda.READ_BYTES_PER_S, virtual_cuda.FLOPS_PER_S]))
    monkeypatch.setenv("QA_GPU", "NVIDIA Virtual V1, sm_90")
    monkeypatch.setenv("QA_VERSIONS", json.dumps(gpu_timing.versions()))
    monkeypatch.setenv("QA_CHECKED", str(tmp_path / "checked"))
    monkeypatch.setattr(gpu_peaks, "CHILD", Path(__file__).with_name("virtual_peaks.py"))
    monkeypatch.setattr(gpu_home, "CHILD", Path(__file__).with_name("virtual_kernels.py"))
    monkeypatch.setenv("QA_TIMED", str(tmp_path / "timed"))
    monkeypatch.setattr(first_contact, "CHILD", Path(__file__).with_name("virtual_selfcheck.py"))
    files = {name: tmp_path / "runtimes" / f"{name}.py" for name in virtual_cuda.FIXED_S}
    (tmp_path / "runtimes").mkdir()
    for file in files.values():
        shutil.copyfile(virtual_cuda.__file__, file)
    for name in tuple(RUNTIMES):
        monkeypatch.delitem(RUNTIMES, name)
    for name, file in files.items():
        monkeypatch.setitem(RUNTIMES, name, str(file))
    monkeypatch.setattr(environments, "APART", ())
    monkeypatch.setattr(environments, "runtime", lambda name: loaded(files[name]))


def test_from_spec_to_report(machine: None, tmp_path: Path) -> None:
    traffic = {"prompt_tokens": 64, "output_tokens": 24, "concurrency": 2}
    model = str(write_model(tmp_path / "model"))
    work = workload(model=model, device="cuda:1", traffic=traffic, budget={"advise_s": 900})
    found = pipeline.run(work, tmp_path / "out", Quiet())
    cli.write_results(found, tmp_path / "out")
    the_gpu_is_the_device(found)
    the_baseline_calibrates(found)
    kernels_are_timed_at_the_model_s_sizes(found)
    the_planted_times_decide(found)
    predictions_say_their_source(found)
    assert found.artifact
    assert "it does not continue the prompt: '5'" in [one.reason for one in found.artifact.serve]
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["device"]["kind"] == "cuda"
    assert "NVIDIA Virtual V1" in (tmp_path / "out" / "report.html").read_text()


def the_gpu_is_the_device(found: Results) -> None:
    device = found.device
    assert (device.kind, device.name, device.memory_bytes) == ("cuda", "NVIDIA Virtual V1", 80 << 30)
    assert device.peaks
    assert device.peaks.read_bytes_per_s.median == virtual_cuda.READ_BYTES_PER_S
    assert device.last_level_cache_bytes == 1024
    assert {one.runtime for one in found.candidates} == {"torch", "vllm", "triton"}


def the_baseline_calibrates(found: Results) -> None:
    """Kernels reach the share of measured roofs that they do elsewhere: the planted ones are SLOWER than that by what is left."""
    assert found.profile.baseline == "none-bf16@torch+cuda"
    by = found.profile.calibration
    assert by
    share = reached("NVIDIA Virtual V1", "bf16")
    assert by.reading == pytest.approx(virtual_cuda.SLOWER * share.read, rel=0.1)
    assert by.arithmetic == pytest.approx(virtual_cuda.SLOWER * share.peak, rel=0.1)


def kernels_are_timed_at_the_model_s_sizes(found: Results) -> None:
    timed = {(one.runtime, one.option, one.scheme.name) for one in found.profile.kernels if one.source == "measured"}
    assert {("torch", "cuda", "bf16"), ("vllm", "cuda", "bf16"), ("triton", "", "fp8-bf16")} <= timed
    assert ("triton", "", "w8a8-bf16") not in timed  # its kernel is wrong
    assert {one.m for one in found.profile.kernels if one.source == "measured"} == {2, 128}


def the_planted_times_decide(found: Results) -> None:
    """INT4 is the fastest and breaks the quality budget; then comes FP8, on the runtime that adds least."""
    by_name = {one.name: one for one in found.candidates}
    assert found.verdict.choice == "fp8-fp8-bf16@vllm+cuda"
    int4 = [one for one in found.candidates if one.runtime == "vllm" and one.scheme.name == "w4-g64-bf16" and one.measured]
    assert int4
    assert all("mean KL" in (one.excluded or "") for one in int4)
    wrong = by_name["dynamic_int8-w8a8-bf16@triton"]
    assert "w8a8 is wrong on NVIDIA Virtual V1" in (wrong.refused or "")
    crashed = by_name["rtn-w8-g64-bf16@vllm+cuda"]
    assert "illegal memory access" in (crashed.refused or "")
    assert found.verdict.speedup
    assert found.verdict.speedup.total > 1.3


def predictions_say_their_source(found: Results) -> None:
    predicted = {one.name: one.predicted for one in found.candidates if one.predicted}
    chosen, half = predicted["fp8-fp8-bf16@vllm+cuda"], predicted["none-fp16@torch+cuda"]
    assert (chosen.kernels, chosen.basis) == ("measured", "ghost")
    assert half.kernels == "roofline"
    assert "calibrated on the baseline" in half.basis
    base = predicted["none-bf16@torch+cuda"]
    assert base.tpot_s
    assert half.tpot_s == pytest.approx(base.tpot_s, rel=0.05)
