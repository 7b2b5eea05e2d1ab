"""Artifacts in the order of their bases, in real child processes."""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.advisor.builds import Build, build_all
from quantadvisor.documents import CandidateFailed
from quantadvisor.methods.schemes import scheme

from ..methods.conftest import write_llama


@pytest.mark.slow
def test_a_build_waits_for_its_base_and_shares_its_failure(tmp_path: Path) -> None:
    write_llama(tmp_path / "hf")
    np.save(tmp_path / "calibration.npy", np.zeros((1, 8), np.int64))
    (tmp_path / "broken").mkdir()

    def build(method: str, name: str, out: str, base: str | None = None, ghost: bool = False, model: str = "hf") -> Build:
        return Build(
            method=method, scheme=scheme(name), runtime="onnxruntime", model_folder=tmp_path / model, out=tmp_path / out,
            calibration=tmp_path / "calibration.npy", base=tmp_path / base if base else None, ghost=ghost,
        )  # fmt: skip

    said: list[str] = []
    done = build_all(
        [
            build("rtn", "w8-g64", "w8", base="twin", ghost=True),
            build("none", "fp32", "twin", base="base", ghost=True),
            build("none", "fp32", "base"),
            build("none", "fp32", "nothing", model="broken"),
            build("rtn", "w8-g64", "never", base="nothing"),
        ],
        said.append,
    )
    reasons = {out.name: result.failed for out, result in done.items()}
    assert [name for name, reason in reasons.items() if reason] == ["nothing", "never"]
    assert reasons["nothing"] == reasons["never"]
    assert done[tmp_path / "w8"].bytes < done[tmp_path / "twin"].bytes
    assert not (tmp_path / "never").exists()
    order = [line.split()[1] for line in said if line.startswith("built")]
    assert order == ["base", "twin", "w8"]
    assert build_all([build("none", "fp32", "base")], said.append)[tmp_path / "base"].bytes > 0


def test_what_trains_gets_its_seconds_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantadvisor.advisor import builds
    from quantadvisor.methods import awq

    monkeypatch.setattr(awq, "COST", "training")
    heard = []

    def apply(*inputs: object, base: Path | None, train_s: float, say: Callable[[str], None]) -> tuple[str, ...]:
        say(f"step 1 of 2, {train_s:g} s left")
        heard.append(builds.said(build))
        return ("trained",)

    monkeypatch.setattr(awq, "apply", apply)
    build = Build(method="awq", scheme=scheme("w4-g64"), runtime="onnxruntime", model_folder=tmp_path, out=tmp_path / "out",
                  calibration=tmp_path / "c.npy", train_s=7.0)  # fmt: skip
    assert builds.make(build, None) == ("trained",)
    assert heard == ["out: step 1 of 2, 7 s left"]
    assert builds.said(build) is None
    with pytest.raises(CandidateFailed, match=r"awq trains, and budget.train_s is 0"):
        builds.make(build.model_copy(update={"train_s": 0.0}), None)


def test_what_weighs_widths_gets_the_kernels_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantadvisor.advisor import builds
    from quantadvisor.methods import mixed

    heard = []

    def apply(*inputs: object, base: Path | None, **more: object) -> tuple[str, ...]:
        heard.append(more)
        return ()

    monkeypatch.setattr(mixed, "apply", apply)
    build = Build(method="mixed", scheme=scheme("w4w8-g64"), runtime="onnxruntime", model_folder=tmp_path, out=tmp_path / "out",
                  calibration=tmp_path / "c.npy", linear_s={(64, 32, 4): 0.5})  # fmt: skip
    builds.make(build, None)
    builds.make(build.model_copy(update={"linear_s": {}}), None)
    assert heard == [{"linear_s": {(64, 32, 4): 0.5}}, {}]


def test_what_goes_layer_by_layer_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not train is heard too; what takes no `say` is not given one."""
    from quantadvisor.advisor import builds
    from quantadvisor.methods import awq, gguf_imatrix, gptq, layerwise, llm_int8, obq, rtn, smoothquant, static_int8

    def stand_in(*inputs: object) -> tuple[str, ...]:
        inputs[-1]("layer 1 of 2 done, 3 s left")  # type: ignore[operator]
        return (str(builds.said(build)),)

    build = Build(method="gptq", scheme=scheme("w4-g64"), runtime="onnxruntime", model_folder=tmp_path, out=tmp_path / "out",
                  calibration=tmp_path / "c.npy")  # fmt: skip
    monkeypatch.setattr(layerwise, "apply", stand_in)
    for module in (gptq, obq):
        assert builds.make(build.model_copy(update={"method": module.NAME}), None) == ("out: layer 1 of 2 done, 3 s left",)
    for module in (awq, gguf_imatrix, llm_int8, smoothquant, static_int8):
        assert "say" in inspect.signature(module.apply).parameters
    assert builds.said(build) is None
    monkeypatch.setattr(rtn, "apply", lambda *inputs, base: ("rounded",))
    assert builds.make(build.model_copy(update={"method": "rtn"}), None) == ("rounded",)
