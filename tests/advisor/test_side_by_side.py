"""The measuring of `advisor explain`: parts put together, exit codes, and the embedded model made slow for real."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quantadvisor.advisor import side_by_side, stored_graphs
from quantadvisor.advisor.checkpoint import described
from quantadvisor.advisor.side_by_side import fit, place_of, steadiest, time_of
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import BadInput, Checkpoint, Explanation, Gpu

from .documents import figure, workload
from .test_checkpoint import openvino_folder, products_folder
from .test_device_choice import plant

SPEC = """schema: quantadvisor/workload/1
model: builtin:smollm2-135m
traffic: {prompt_tokens: 64, output_tokens: 64, concurrency: 1}
"""


def advisor(*arguments: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def test_parts_of_the_profiled_rows_stand_for_the_batch() -> None:
    part = {"linears_s": 1.0, "attention_s": 0.5, "cache_s": 0.0, "other_s": 0.25, "wall_s": 2.0}
    made = time_of("prefill", part, figure(8.0), 4.0, 4, 2048, 512)
    assert (made.linears_s, made.attention_s) == (4.0, 2.0)
    assert made.residue_s == pytest.approx(1.0)


def test_the_least_disturbed_look_counts_and_fits_the_wall() -> None:
    looks = [{"scale": 4.0, "decode": {"wall_s": wall}} for wall in (3.0, 1.0, 2.0)]
    assert steadiest(looks, "decode") == ({"wall_s": 1.0}, 4.0)
    part = {"linears_s": 2.0, "attention_s": 1.0, "cache_s": 0.0, "other_s": 1.0, "wall_s": 5.0}
    assert fit(part, 1.0, 2.0) == 0.5  # the parts alone exceed the plain pass
    assert fit(part, 1.0, 4.5) == 1.0  # the profiler took the rest
    assert fit(part, 1.0, 10.0) == 2.0  # the plain pass was disturbed
    assert fit(part, 4.0, 40.0) == 8.0


@pytest.mark.parametrize(
    ("checkpoint", "more", "said"),
    [
        ("/nowhere", (), "no such file or folder"),
        (".", (), "holds no model.onnx"),
        (".", ("--workload", "nosuch.yaml"), "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, checkpoint: str, more: tuple[str, ...], said: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    folder = str(tmp_path) if checkpoint == "." else checkpoint
    done = advisor("explain", folder, *(more or ("--workload", str(spec))), "--quiet")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_an_explanation_says_why_not_the_gpu_and_that_this_cpu_saturates_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its notes, with everything that measures taken out."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(stored_graphs, "saturates", lambda: True)
    model = SimpleNamespace(inventory=None, source=None, folder=tmp_path)
    for name, made in (("load_model", model), ("check_same_model", None), ("peaks_of", SimpleNamespace(peaks=None))):
        monkeypatch.setattr(side_by_side, name, lambda *_, made=made: made)
    monkeypatch.setattr(side_by_side, "observe_both", lambda *_: (None, None, ("another note",)))
    plant(monkeypatch, H100)
    monkeypatch.setattr(side_by_side, "explain", lambda *given: given[-1])
    notes = side_by_side.explain_checkpoint(str(products_folder(tmp_path / "m", 127)), workload(), None, Quiet())
    assert notes[0] == "another note"
    assert notes[1].startswith(f"device: auto leaves {H100.name} unused: ")
    assert [note.partition(":")[0] for note in notes[2:]] == ["3 linears multiply u8 x s8 with weights beyond 64"]


H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, compute_capability="9.0", place="3")


@pytest.mark.parametrize(
    ("device", "place", "found"),
    [
        ("auto", None, ("cuda", "onnxruntime+cuda")),
        ("cuda:0", "onnxruntime", ("cuda", "onnxruntime+cuda")),
        ("cuda:0", "onnxruntime+cuda", ("cuda", "onnxruntime+cuda")),
        ("auto", "onnxruntime-genai", ("cuda", "onnxruntime-genai+cuda")),
        ("cpu", None, ("cpu", None)),
    ],
)
def test_the_device_of_the_workload_is_where_it_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, place: str | None, found: tuple[str, str | None]
) -> None:
    plant(monkeypatch, H100, able=("onnxruntime",))
    given = str(products_folder(tmp_path / "m", 127))
    where, there = place_of(given, place, workload(device=device))
    assert (where.kind, there) == found


def test_a_runtime_without_a_path_to_the_gpu_explains_on_the_cpu_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, H100, able=("onnxruntime",))
    given = str(openvino_folder(tmp_path / "m", "u4"))
    where, there = place_of(given, "openvino+f32", workload(device="auto"))
    assert (where.kind, there) == ("cpu", "openvino+f32")
    (note,) = where.notes
    assert note == f"device: auto leaves {H100.name} unused: openvino+f32 does not run on {H100.name} here"
    with pytest.raises(BadInput, match=r"openvino\+f32 does not run on NVIDIA H100"):
        place_of(given, "openvino+f32", workload(device="cuda:0"))


def test_a_gpu_s_explanation_rests_on_its_roofs_and_the_interpreters_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that measures is taken out; a CPU's saturation is none of a GPU's."""
    plant(monkeypatch, H100, able=("onnxruntime",))
    monkeypatch.setattr(stored_graphs, "saturates", lambda: True)
    theirs = tmp_path / "python"
    theirs.symlink_to(sys.executable)
    seen: dict[str, object] = {}

    def inspected(path: str, place: str | None, isa: tuple[str, ...], pythons: dict[str, str]) -> Checkpoint:
        seen.update(place=place, pythons=pythons)
        return described(path)

    model = SimpleNamespace(inventory=None, source=None, folder=tmp_path)
    for name, made in (("load_model", model), ("check_same_model", None), ("observe_both", (None, None, ()))):
        monkeypatch.setattr(side_by_side, name, lambda *_, made=made: made)
    monkeypatch.setattr(side_by_side, "inspect", inspected)
    monkeypatch.setattr(side_by_side, "peaks_of", lambda device: SimpleNamespace(peaks=device.name))
    monkeypatch.setattr(side_by_side, "explain", lambda *given: given)
    asked = workload(runtimes=[{"name": "onnxruntime", "python": str(theirs)}])
    *_, peaks, notes = side_by_side.explain_checkpoint(str(products_folder(tmp_path / "m", 127)), asked, None, Quiet())
    assert (peaks, notes) == (H100.name, ())
    assert seen == {"place": "onnxruntime+cuda", "pythons": {"onnxruntime": str(theirs)}}


@pytest.mark.slow
def test_int4_without_accuracy_level_is_a_slow_kernel(tmp_path: Path) -> None:
    """The embedded model, exported as most recipes do: MatMulNBits dequantizes to fp32 instead of multiplying INT8."""
    pytest.importorskip("onnxruntime_genai")
    from quantadvisor.advisor.builtin_model import resolve
    from quantadvisor.advisor.context import cache_folder
    from quantadvisor.advisor.model_cache import derived
    from quantadvisor.methods.registry import method
    from quantadvisor.methods.schemes import scheme

    folder, source = resolve("builtin:smollm2-135m", cache_folder(), lambda _: None)
    kept = derived(cache_folder(), source, folder) / "onnx-fp32"
    base = kept if (kept / "built.json").exists() else None
    out, tokens = tmp_path / "w4", np.zeros((1, 8), np.int64)
    method("rtn").apply(folder, scheme("w4-g64"), "onnxruntime", tokens, out, base=base, accuracy_level=0)  # type: ignore[call-arg]
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = advisor("explain", str(out), "--workload", str(tmp_path / "spec.yaml"), "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1
    found = Explanation.model_validate(json.loads(done.stdout))
    assert found.checkpoint.accuracy_levels == (0,)
    assert found.quantized.decode_operators.quantized_share == 1.0
    assert found.largest == "fallback_or_slow_kernel"
    assert "accuracy_level 4" in found.change
