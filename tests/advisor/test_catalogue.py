"""What exists here: every runtime, method and kernel is ready or says why not; winners of planted timings are found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantadvisor.advisor.catalogue import RuntimeHere, SchemeHere, devices_here, gpu_path, methods_here, runtimes_here
from quantadvisor.advisor.kernel_truth import crossing, interpreters, probes_here, truth
from quantadvisor.advisor.listings import asked_of
from quantadvisor.advisor.tables import runtimes_table
from quantadvisor.documents import BadInput, Device, Gpu, Inventory, KernelTiming, LinearShape, RuntimeCheck, Scheme, SelfCheck
from quantadvisor.kernels.registry import PROBES
from quantadvisor.methods.registry import METHODS
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.runtimes.registry import RUNTIMES

from .documents import figure

PLAIN = Device(name="d", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f")
GPU = Gpu(name="NVIDIA Virtual V1", memory_bytes=80 << 30, compute_capability="9.0", place="5")
WITH_GPU = PLAIN.model_copy(update={"gpus": (GPU,)})
SHAPE = LinearShape(name="q_proj", n=64, k=64, count=2)
INVENTORY = Inventory(
    architecture="LlamaForCausalLM", layers=2, hidden=64, vocabulary=128, heads=2, kv_heads=2, head_dim=32,
    max_context_tokens=4096, tied_embeddings=True, linears=(SHAPE,),
    embedding_parameters=8192, linear_parameters=8192, other_parameters=128, kv_values_per_token=256,
)  # fmt: skip


def timing(probe: str, name: str, m: int, seconds: float) -> KernelTiming:
    return KernelTiming(
        probe=probe, scheme=scheme(name), runtime="onnxruntime", m=m, n=64, k=64, time_s=figure(seconds), roofline_share=0.5
    )


def test_every_runtime_says_ready_or_why_not() -> None:
    found = {one.name: one for one in runtimes_here(PLAIN)}
    assert list(found) == list(RUNTIMES)
    half = [one for one in found["openvino"].schemes if one.name.endswith("+bf16")]
    assert half and all(one.status == "refused" and one.refused and "bf16" in one.refused for one in half)
    assert all(one.what and one.schemes for one in found.values())


def test_a_gpu_path_has_never_run_until_a_report_shows_it() -> None:
    assert gpu_path("openvino", (), PLAIN) == "no path to an NVIDIA GPU"
    for name in set(RUNTIMES) - {"openvino"}:
        assert gpu_path(name, (), PLAIN).endswith(": never run on a GPU (advisor selfcheck there)")
        assert gpu_path(name, (report("Made-up GPU, sm_90"),), PLAIN) == gpu_path(name, (), PLAIN) or name == "torch"


def report(device: str, right: bool = True) -> SelfCheck:
    """Of torch on a GPU, with `cuda` alone."""
    check = RuntimeCheck(name="torch", options=("cuda",), right=right)
    return SelfCheck(proof="gpu", device=device, versions={}, note="", kernels=(), runtimes=(check,))


def test_a_report_speaks_of_its_options_and_its_gpu_alone() -> None:
    never = "torch+cuda+compile: never run on a GPU (advisor selfcheck there)"
    other, this = "Made-up GPU, sm_80", f"{GPU.name}, sm_90"
    for device, reports, words in (
        (PLAIN, [other], other),
        (WITH_GPU, [this], this),
        (WITH_GPU, [other, this], f"{other} and {this}"),
        (WITH_GPU, [other], f"{other}, not on {this} (advisor selfcheck there)"),
    ):
        assert gpu_path("torch", [report(one) for one in reports], device) == f"torch+cuda: checked on {words}; {never}"
    assert gpu_path("torch", [report(this, right=False)], WITH_GPU) == gpu_path("torch", (), PLAIN)


def test_a_slow_path_is_measured_not_believed() -> None:
    pytest.importorskip("onnxruntime")
    kernels = [timing("fp32", "fp32", 1, 4e-3), timing("fp32", "fp32", 512, 0.1),
               timing("w4", "w4-g64", 1, 1e-3), timing("w4", "w4-g64", 512, 0.14)]  # fmt: skip
    found = {one.name: one for one in runtimes_here(PLAIN, None, kernels, INVENTORY)}
    schemes = {one.name: one for one in found["onnxruntime"].schemes}
    slow = schemes["rtn-w4-g64@onnxruntime"]
    assert slow.status == "slow path"
    assert slow.slow is not None and "1.40x" in slow.slow and "decode" not in slow.slow
    assert schemes["none-fp32@onnxruntime"].status == "ready"
    unknown = schemes["kbit-nf4-b64@onnxruntime"]
    assert (unknown.status, unknown.untimed) == ("not timed", "its linears were not timed in decode and prefill")
    assert schemes["kv_int8-fp32-kv8@onnxruntime"].status == "not timed"
    dynamic = [timing("w8a8", "w8a8-tensor", m, seconds) for m, seconds in ((1, 1e-3), (1024, 0.05))]
    (here,) = runtimes_here(PLAIN, None, [*kernels, *dynamic], INVENTORY, pythons={"onnxruntime": sys.executable})
    status = {one.name: one.status for one in here.schemes}
    assert status["dynamic_int8-w8a8-tensor@onnxruntime"] == "ready"
    for name in ("dynamic_int8-w8a8", "static_int8-w8a8-static", "llm_int8-w8a8-outlier", "rotation-w8a8"):
        assert status[f"{name}@onnxruntime"] == "not timed", "another operator was timed"


def test_without_timings_nothing_quantized_is_called_ready() -> None:
    pytest.importorskip("onnxruntime")
    found = runtimes_here(PLAIN)
    loads = [one for here in found for one in here.schemes if one.refused is None]
    assert {one.name.partition("-")[0] for one in loads if one.status == "ready"} == {"none"}
    assert {(one.status, one.untimed) for one in loads if one.status != "ready"} == {("not timed", "loads; --model M times it")}
    (row,) = [str(cell) for cell in runtimes_table(found).columns[-1].cells if "kv_int8-fp32-kv8@onnxruntime" in str(cell)]
    assert row.endswith(": loads; --model M times it")


def test_a_spec_says_which_runtimes_and_where_they_live(tmp_path: Path) -> None:
    """Another interpreter than the project's own, by a link: what it holds is asked there."""
    other, spec = tmp_path / "other-python", tmp_path / "spec.yaml"
    other.symlink_to(sys.executable)
    spec.write_text(
        "schema: quantadvisor/workload/1\nmodel: builtin:smollm2-135m\n"
        "traffic: {prompt_tokens: 16, output_tokens: 4, concurrency: 1}\n"
        f"runtimes: [{{name: vllm, python: {other}}}, torch]\n"
    )
    asked = asked_of(None, spec)
    assert asked.model == "builtin:smollm2-135m" and asked.pythons["vllm"] == str(other)
    found = runtimes_here(PLAIN, pythons=asked.pythons)
    assert [one.name for one in found] == ["vllm", "torch"]
    assert str(found[0].refused).startswith(f"in {other}: vllm is not installed in this environment")
    assert interpreters(asked.pythons)["vllm"] == str(other)
    with pytest.raises(BadInput, match="names a model already"):
        asked_of("builtin:smollm2-135m", spec)
    spec.write_text(spec.read_text().partition("runtimes:")[0] + "runtimes: [{name: vllm, url: 'http://127.0.0.1:1'}]\n")
    with pytest.raises(BadInput, match="names servers alone"):
        asked_of(None, spec)


def test_a_kernel_that_crashed_is_refused_with_the_option_that_avoids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock llama.cpp build with gcc 12 crashes on AMX tiles: its rows say so, and no other runtime's do."""
    monkeypatch.setattr("quantadvisor.profiling.runtimes.llama_cpp.refuse", lambda *_: None)
    monkeypatch.setattr("quantadvisor.advisor.candidates.missing_writer", lambda _: None)

    def probed(option: str, refused: str | None) -> KernelTiming:
        made = {"probe": "q4_0_llama_cpp", "scheme": scheme("q4_0"), "runtime": "llama.cpp", "m": 1, "n": 64, "k": 64}
        return KernelTiming.model_validate(
            made | {"option": option, "refused": refused, "time_s": None if refused else figure(1e-3)}
        )

    kernels = [probed("", "its process died at q4_0_llama_cpp (signal SIGSEGV)"), probed("plain", None)]
    found = {one.name: one for one in runtimes_here(PLAIN, None, kernels, INVENTORY)}
    schemes = {one.name: one for one in found["llama.cpp"].schemes}
    for name in ("gguf-q4_0@llama.cpp", "gguf-q4_0@llama.cpp+fa"):
        assert schemes[name].status == "refused"
        assert "SIGSEGV" in str(schemes[name].refused) and "the option plain avoids it" in str(schemes[name].refused)
    assert schemes["none-bf16@llama.cpp"].refused is None
    assert not any("crashes here" in str(one.refused) for one in found["onnxruntime"].schemes)
    (here,) = runtimes_here(WITH_GPU, None, kernels, INVENTORY, pythons={"llama.cpp": sys.executable})
    offloaded = [one for one in here.schemes if one.name.startswith("gguf-q4_0@llama.cpp+cuda")]
    assert [one.status for one in offloaded] == ["not timed"] * 2, "the CPU's kernels say nothing of a GPU's"


def test_a_trap_that_no_candidate_runs_is_named_where_it_is_slow() -> None:
    """torch's own INT8 product at many rows: timed, and said of the kernel; at few rows nothing is to be said."""

    def probed(runtime: str, option: str, made: Scheme, few_s: float, many_s: float) -> list[KernelTiming]:
        of = {"runtime": runtime, "option": option, "scheme": made}
        return [timing("x", "fp32", m, seconds).model_copy(update=of) for m, seconds in ((1, few_s), (1024, many_s))]

    kernels = [
        *probed("torch", "", scheme("bf16"), 2e-3, 0.1),
        *probed("torch", "int8pack", PROBES["w8_torch"].scheme, 1e-3, 1.1),
        *probed("openvino", "bf16", scheme("w8-g64"), 1e-3, 0.11),
    ]
    found = {one.name: one for one in runtimes_here(PLAIN, None, kernels, INVENTORY)}
    (trap,) = [one for one in found["torch"].schemes if "int8pack" in one.name]
    assert (trap.name, trap.status) == ("w8-channel-bf16@torch+int8pack", "slow path")
    assert str(trap.slow).startswith(
        "prefill (M = 1024): linears take 11.00x the time of unquantized ones, openvino+bf16 is 10.00x faster; it is torch's own"
    )
    untimed = [scheme.name for one in runtimes_here(PLAIN) for scheme in one.schemes]
    assert not any("int8pack" in name for name in untimed), "nothing is believed"


def test_a_reason_is_said_once() -> None:
    mine = [SchemeHere(name=f"{name}@torch", slow="too slow") for name in "ab"]
    here = RuntimeHere(name="torch", what="x", versions={}, refused=None, gpu="", schemes=tuple(mine))
    table = runtimes_table([here])
    assert list(table.columns[-1].cells)[1:] == ["a@torch, b@torch: too slow"]


def test_every_method_says_where_it_can_write() -> None:
    found = {one.name: one for one in methods_here(PLAIN)}
    assert list(found) == list(METHODS)
    for one in found.values():
        assert list(one.runtimes) == list(RUNTIMES)
        assert one.schemes and one.what and one.cost
    assert found["rtn"].runtimes["torch"] is not None
    assert "pip install gptqmodel" in (found["rtn"].runtimes["torch"] or "")
    assert "writes nothing for torch" in (found["mixed"].runtimes["torch"] or "")
    assert found["none"].runtimes["torch"] is None


def test_a_method_is_ready_wherever_it_is_a_candidate() -> None:
    """Caches that are an option of the session too: they lie on top of weights that another method writes."""
    found = {one.name: one for one in methods_here(PLAIN)}
    for one in (one for here in runtimes_here(PLAIN) for one in here.schemes if one.refused is None):
        method_name, _, rest = one.name.partition("-")
        name, _, place = rest.partition("@")
        assert found[method_name].runtimes[place.split("+")[0]] is None, one.name
        assert name in found[method_name].schemes, one.name
    assert "q8_0-kv8" in found["kv_int8"].schemes


def test_every_probe_is_listed() -> None:
    found = probes_here(PLAIN)
    assert {one.probe for one in found} == set(PROBES)
    triton = next(one for one in found if one.probe == "w4_triton")
    assert triton.refused and "GPU" in triton.refused


def test_the_winner_changes_where_the_lines_cross() -> None:
    flat = [timing("flat", "fp32", m, 8.0) for m in (1, 16, 256)]
    steep = [timing("steep", "w4-g64", m, m / 4) for m in (1, 16, 256)]
    (found,) = truth([SHAPE], [*flat, *steep], (1, 16, 256))
    assert [row.kernel for row in found.winners] == ["steep", "steep", "flat"]
    assert found.winners[0].over_runner_up == pytest.approx(32)
    (change,) = found.changes
    assert (change.before, change.after) == ("steep", "flat")
    assert change.m == pytest.approx(32)  # 8 = m / 4


def test_without_both_lines_the_change_is_at_the_measured_m() -> None:
    assert crossing({1: 1.0}, {16: 1.0}, 1, 16) == 16


def test_a_cliff_is_named() -> None:
    timings = [timing("k", "fp32", m, seconds) for m, seconds in ((16, 1.0), (64, 12.0), (256, 40.0))]
    (found,) = truth([SHAPE], timings, (16, 256))
    assert [row.m for row in found.winners] == [16, 256]
    (cliff,) = found.cliffs
    assert (cliff.kernel, cliff.after_m, cliff.m) == ("k", 16, 64)
    assert cliff.factor == pytest.approx(3.0)


@pytest.mark.parametrize("command", ["runtimes", "methods", "kernels", "devices"])
def test_json_is_one_document(command: str) -> None:
    run = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", command]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout)
    shown = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout == ""
    assert "ready" in shown.stderr or "shrinks" in shown.stderr


def test_an_unknown_model_is_one_line() -> None:
    run = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", "kernels", "--model", "/nowhere/at/all"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no such model" in done.stderr


def test_devices_are_this_machine_and_those_to_plan_for() -> None:
    this, *others = devices_here(describe_device())
    assert (this.here, this.refused) == (True, None)
    known = {one.name: one for one in others}
    assert {"a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm", "rtx_pro_6000_server"} <= known.keys()
    assert all("advisor plan --device" in str(one.refused) for one in others)
    assert "fp8" not in known["a100_sxm"].flops_per_s
    assert "vllm" in known["b200_sxm"].kernels["nvfp4"]
