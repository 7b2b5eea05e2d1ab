"""Workload specs as sides: what they name is built or asked, and what cannot be gated is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantadvisor.advisor import gate_sides, gate_specs
from quantadvisor.advisor.gate_input import Asked, kinds_of
from quantadvisor.advisor.gate_open import servers_of, workload_of
from quantadvisor.advisor.gate_specs import check_same_traffic, server_of, side_of_spec
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import BadInput, Device, NotComparable, SourceCheckpoint, Unavailable

from ..methods.conftest import write_llama
from .documents import workload
from .test_checkpoint import CONFIG
from .test_gate_command import SPEC, gate

DEVICE = Device(name="here", cores=2, threads=2, memory_bytes=1 << 30, fingerprint="f")
URL = "http://127.0.0.1:8000"


def asked(**more: Any) -> Asked:
    data = {"sides": ("a", "b"), "kinds": ("spec", "spec"), "pythons": (None, None), "workload": None, "runtime": None}
    return Asked(**(data | {"quality": "none", "alpha": 0.01, "threshold": 0.025, "budget_s": None} | more))


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("")
    spec, run, artifact = str(tmp_path / "a.yaml"), str(tmp_path / "run"), str(tmp_path)
    assert kinds_of(spec, artifact) == ("spec", "artifact")
    assert kinds_of(run, run) == ("stored", "stored")
    assert kinds_of(URL, URL) == ("server", "server")
    for one, other in ((URL, spec), (run, spec), (URL, run)):
        with pytest.raises(BadInput, match="two of a kind"):
            kinds_of(one, other)


def test_the_traffic_of_both_specs_is_the_same() -> None:
    one = workload()
    other = workload(model="another", traffic={"prompt_tokens": 512, "output_tokens": 128, "concurrency": 4})
    assert workload_of(asked(), [one, workload(model="another")]) is one
    with pytest.raises(NotComparable, match=r"traffic\.concurrency differs: 1 in the baseline, 4 in the candidate") as caught:
        check_same_traffic(one, other)
    assert caught.value.exit_code == 3


def test_a_spec_may_name_a_server() -> None:
    served = workload(runtimes=[{"name": "vllm", "url": URL}])
    assert server_of(served) == URL
    assert server_of(workload()) is None
    assert servers_of(asked(), [served, served]) == (URL, URL)
    assert servers_of(asked(sides=("http://a", "b"), kinds=("server", "spec")), [None, served]) == ("http://a", URL)
    assert servers_of(asked(), [workload(), workload()]) is None
    with pytest.raises(BadInput, match="the other none"):
        servers_of(asked(), [served, workload()])


@pytest.mark.parametrize("name", ["fast", "rtn-w9@torch", "none-fp32@tensorrt", "rtn@onnxruntime"])
def test_a_baseline_that_nobody_knows_is_bad_input(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceCheckpoint(model="m", path="", sha256="0" * 64)
    monkeypatch.setattr(gate_specs, "resolve_model", lambda *_: (tmp_path, source))
    with pytest.raises(BadInput, match="baseline: baseline") as caught:
        side_of_spec("baseline", workload(baseline=name), None, DEVICE, tmp_path, Quiet())
    assert len(str(caught.value).splitlines()) == 1


def test_a_baseline_whose_runtime_cannot_run_here_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an interpreter that the user names it is not asked before the worker starts; but it has to be one."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    source = SourceCheckpoint(model="m", path="", sha256="0" * 64)
    monkeypatch.setattr(gate_specs, "resolve_model", lambda *_: (tmp_path, source))
    monkeypatch.setattr(gate_sides, "refusal", lambda *_: "not installed")
    given = workload(baseline="none-fp32@torch")
    with pytest.raises(Unavailable, match=r"^baseline: none-fp32@torch: not installed$"):
        side_of_spec("baseline", given, None, DEVICE, tmp_path, Quiet())
    with pytest.raises(BadInput, match=r"^--baseline-env: nowhere is not an executable"):
        side_of_spec("baseline", given, "nowhere", DEVICE, tmp_path, Quiet())


@pytest.mark.alone
@pytest.mark.slow
def test_two_specs_are_built_and_gated(tmp_path: Path) -> None:
    """RTN INT8 against fp32 of a tiny model, each by its spec, in a shell; the history is kept and drawn."""
    model = write_llama(tmp_path / "model")
    specs = {}
    for name, baseline in (("plain", "none-fp32@torch"), ("rtn", "rtn-w8-g64@onnxruntime")):
        specs[name] = tmp_path / f"{name}.yaml"
        specs[name].write_text(SPEC.format(model=model, prompt=8, more=f"baseline: {baseline}"))
    sides = (str(specs["plain"]), str(specs["rtn"]))
    done = gate(
        *sides, "--quality", "none", "--alpha", "0.2", "--time-budget", "60", "--json", QUANTADVISOR_CACHE=str(tmp_path / "cache")
    )
    assert done.stdout, done.stderr
    made = json.loads(done.stdout)
    assert made["mode"] == "live"
    assert (made["baseline"], made["candidate"]) == sides
    assert {"ttft_s", "tpot_s", "artifact_bytes", "peak_bytes"} <= {metric["name"] for metric in made["metrics"]}
    assert any(metric["name"] == "decode_operators" and metric["state"] == "regression" for metric in made["metrics"])
