"""Artifacts in the order of their bases, in real child processes."""

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.advisor import builds
from quantadvisor.advisor.builds import Build, build_all
from quantadvisor.documents import CandidateFailed
from quantadvisor.methods.schemes import scheme

from ..kernels.test_guardian import leaves_nobody
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


PLANTED = """
import os, signal, time
from pathlib import Path
from quantadvisor.advisor import builds
from quantadvisor.methods import none
from quantadvisor.methods.formats.folders import new_folder

real = none.apply


def apply(*inputs, **more):
    out = inputs[-1]
    fault = out.name
    if fault == "segfault":
        with new_folder(out) as work:
            (work / "half").touch()
            os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "exit":
        os._exit(3)
    if fault == "hang":
        (out.parent / "started").touch()
        time.sleep(600)
    if fault == "hog":
        kept = bytearray(b"x") * (2 << 30)
        time.sleep(600)
    if fault == "large":
        again = (out.parent / "seen").exists()
        (out.parent / "seen").touch()
        kept = bytearray(b"x") * (800 << 20)
        time.sleep(0 if again else 600)
    if fault == "small":
        kept = bytearray(b"x") * (500 << 20)
        while not (out.parent / "seen").exists():
            time.sleep(0.1)
        time.sleep(5)
    return real(*inputs, **more)


none.apply = apply
builds.main()
"""
"""The child, and a method in it that breaks, or takes memory, by the name of its folder; whatever else it does is real."""
LIMIT = 3 << 29


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Build]:
    """A bfloat16 folder for torch, made by the child above."""
    write_llama(tmp_path / "hf")
    np.save(tmp_path / "calibration.npy", np.zeros((1, 8), np.int64))
    (tmp_path / "child.py").write_text(PLANTED)
    monkeypatch.setattr(builds, "CHILD", tmp_path / "child.py")

    def build(name: str, **more: object) -> Build:
        return Build(
            method="none", scheme=scheme("bf16"), runtime="torch", model_folder=tmp_path / "hf", out=tmp_path / name,
            calibration=tmp_path / "calibration.npy", **more,
        )  # fmt: skip

    return build


@pytest.mark.slow
def test_a_build_that_dies_hangs_or_takes_too_much_fails_alone(planted: Callable[..., Build], tmp_path: Path) -> None:
    done = build_all(
        [planted("segfault"), planted("whole"), planted("exit"), planted("hang", apply_s=6.0), planted("hog"), planted("last")],
        lambda _: None,
        memory_limit_bytes=LIMIT,
    )
    failed = {out.name: result.failed for out, result in done.items() if result.failed}
    assert failed.pop("hog").startswith("its build used ")  # type: ignore[union-attr]
    assert failed == {
        "segfault": "its process died at its build (signal SIGSEGV)",
        "exit": "its process died at its build (exit status 3)",
        "hang": "no answer within 6 s; a larger budget.apply_s gives it more",
    }
    assert not list(tmp_path.glob(".*.partial"))
    for name in ("whole", "last"):
        assert done[tmp_path / name].bytes > (tmp_path / name / "model.safetensors").stat().st_size > 0


@pytest.mark.slow
def test_the_larger_of_two_that_are_too_much_together_begins_again_alone(planted: Callable[..., Build]) -> None:
    said: list[str] = []
    done = build_all([planted("large"), planted("small")], said.append, memory_limit_bytes=LIMIT)
    assert not any(result.failed for result in done.values())
    assert "large: begins again when it has the memory alone" in said
    assert [line.split()[1] for line in said if line.startswith("built")] == ["small", "large"]


@pytest.mark.slow
def test_no_build_is_left_when_we_are_killed(planted: Callable[..., Build], tmp_path: Path) -> None:
    planted("hang").write(tmp_path / "build.json")
    code = (
        "import sys; from pathlib import Path; from quantadvisor.advisor import builds\n"
        "builds.CHILD = Path(sys.argv[1]) / 'child.py'\n"
        "builds.build_all([builds.Build.read(Path(sys.argv[1]) / 'build.json')], lambda _: None)"
    )
    leaves_nobody(code, tmp_path / "started", str(tmp_path))


def test_a_build_comes_to_its_process_as_it_is(tmp_path: Path) -> None:
    below = Build(method="mixed", scheme=scheme("w4w8-g64"), runtime="onnxruntime", model_folder=tmp_path, out=tmp_path / "out",
                  calibration=tmp_path / "c.npy", linear_s={(64, 32, 4): 0.5}, apply_s=math.inf)  # fmt: skip
    build = below.with_cache("kv_int8", scheme("w4w8-g64-kv8"), tmp_path / "cache", shared=False)
    assert Build.model_validate(json.loads(json.dumps(build.model_dump(mode="json")))) == build


def test_what_trains_gets_its_seconds_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    from quantadvisor.methods import (
        awq,
        gguf_imatrix,
        gptq,
        kv_int4,
        kv_int8,
        layerwise,
        llm_int8,
        obq,
        rtn,
        smoothquant,
        smoothquant_gptq,
        static_int8,
    )

    def stand_in(*inputs: object) -> tuple[str, ...]:
        inputs[-2]("layer 1 of 2 done, 3 s left")  # type: ignore[operator]
        return (str(builds.said(build)),)

    build = Build(method="gptq", scheme=scheme("w4-g64"), runtime="onnxruntime", model_folder=tmp_path, out=tmp_path / "out",
                  calibration=tmp_path / "c.npy")  # fmt: skip
    monkeypatch.setattr(layerwise, "apply", stand_in)
    for module in (gptq, obq):
        assert builds.make(build.model_copy(update={"method": module.NAME}), None) == ("out: layer 1 of 2 done, 3 s left",)
    for module in (awq, gguf_imatrix, kv_int4, kv_int8, llm_int8, smoothquant, smoothquant_gptq, static_int8):
        assert "say" in inspect.signature(module.apply).parameters
    assert builds.said(build) is None
    monkeypatch.setattr(rtn, "apply", lambda *inputs, base: ("rounded",))
    assert builds.make(build.model_copy(update={"method": "rtn"}), None) == ("rounded",)


def test_what_is_given_is_linked_without_the_libraries_of_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may live in another interpreter alone."""

    def missing(runtime: str) -> None:
        raise ModuleNotFoundError(runtime)

    monkeypatch.setattr(builds, "warm_libraries", missing)
    np.save(tmp_path / "calibration.npy", np.zeros((1, 8), np.int64))
    (tmp_path / "given.gguf").write_bytes(b"GGUF")
    build = Build(method="given", scheme=scheme("q8_0"), runtime="llama.cpp", model_folder=tmp_path, out=tmp_path / "out",
                  calibration=tmp_path / "calibration.npy", base=tmp_path / "given.gguf")  # fmt: skip
    assert builds.run_build(build).failed is None
    assert (tmp_path / "out" / "model.gguf").read_bytes() == b"GGUF"
    with pytest.raises(ModuleNotFoundError):
        builds.run_build(build.model_copy(update={"method": "gguf"}))
