"""`advisor apply` and `advisor convert`: every format that is named is written, and nothing that is there is overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from quantadvisor.advisor import apply_command
from quantadvisor.advisor.builds import Build, Built
from quantadvisor.advisor.cli import app
from quantadvisor.documents import BadInput
from quantadvisor.methods.formats import awq, bitsandbytes, bridges, gptq, pack_quantized
from quantadvisor.methods.kept import Folder
from quantadvisor.methods.registry import method

from ..methods.conftest import write_llama

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds in this process: what a child adds is tested in test_builds.py."""

    def build_all(builds: list[Build], say: object, processes: int) -> dict[Path, Built]:
        [build] = builds
        notes = method(build.method).apply(
            build.model_folder, build.scheme, build.runtime, np.load(build.calibration), build.out, base=build.base
        )
        (build.out / "built.json").write_text("{}")
        return {build.out: Built(out=build.out, notes=notes)}

    monkeypatch.setattr("quantadvisor.advisor.builds.build_all", build_all)
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))


def advisor(*arguments: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if done.exception:
        raise done.exception
    return json.loads(done.stdout)


@pytest.mark.parametrize(("samples", "taken"), [(2, "5 linears taken"), (3, "")])
def test_the_same_command_goes_on_after_an_interruption(
    samples: int, taken: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a layer, as by Ctrl-C: five linears are kept; another number of samples begins anew. Nothing is left behind."""
    command = ("apply", llama, "--method", "gptq", "--scheme", "w4-g32-bf16", "--format", "gptq")
    whole = advisor(*command, "--samples", samples, "--out", tmp_path / "whole")
    store, stored = Folder.__setitem__, []

    def interrupted(*given: object) -> None:
        if len(stored) == 5:
            raise KeyboardInterrupt
        stored.append(given[1])
        store(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "__setitem__", interrupted)
        stopped = CliRunner().invoke(app, [*map(str, command), "--samples", "2", "--out", str(tmp_path / "out")])
    assert stopped.exit_code == 130 and not (tmp_path / "out").exists()
    made = advisor(*command, "--samples", samples, "--out", tmp_path / "out")
    assert made["notes"] == [*whole["notes"], *([f"{taken} from an interrupted run"] if taken else [])]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert {path.name for path in tmp_path.iterdir()} <= {"whole", "out", "cache"}


def test_a_second_one_to_the_same_folder_is_refused(llama: Path, tmp_path: Path) -> None:
    """What the first has there is left alone; once it is over the same command runs."""
    out = tmp_path / "out"
    command = ("apply", llama, "--method", "rtn", "--scheme", "w4-g32-bf16", "--format", "gptq", "--out", out)
    with apply_command.scratch_beside(out) as scratch:
        (scratch / "calibration.npy").write_bytes(b"of the first")
        with pytest.raises(BadInput, match="out: another advisor apply is writing it; wait") as caught:
            advisor(*command)
        assert (caught.value.exit_code, len(str(caught.value).splitlines())) == (2, 1)
        assert (scratch / "calibration.npy").read_bytes() == b"of the first"
        assert not out.exists()
    advisor(*command)
    with pytest.raises(BadInput, match="exists already"), apply_command.scratch_beside(out):
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "cache"}


def test_a_failure_that_keeps_nothing_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has zero points"), apply_command.scratch_beside(tmp_path / "out") as scratch:
        (scratch / "calibration.npy").touch()
        raise BadInput("model.layers.0", "has zero points", "")
    assert not any(tmp_path.iterdir())


READERS = {"gptq": gptq, "awq": awq, "compressed-tensors": pack_quantized}


@pytest.mark.parametrize("layout", READERS)
def test_a_layout_by_its_name(layout: str, llama: Path, tmp_path: Path) -> None:
    """The integers are those of the method, whatever the layout: rounded to nearest here."""
    out = tmp_path / "out"
    found = advisor("apply", llama, "--method", "rtn", "--scheme", "w4-g32-bf16", "--format", layout, "--out", out)
    assert found["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    read, form = READERS[layout].read(out)
    assert (len(read), form[:2]) == (14, (4, 32))
    assert (out / "quantize_config.json").exists() == (layout == "gptq")
    assert not (out / "built.json").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "cache"}
    advisor("apply", llama, "--method", "rtn", "--scheme", "w4-g32-bf16", "--runtime", "torch", "--out", tmp_path / "plain")
    for name, linear in bridges.read(tmp_path / "plain")[0].items():
        np.testing.assert_array_equal(linear.codes, read[name].codes, err_msg=name)


@pytest.mark.parametrize(
    ("name", "scheme", "kind"), [("kbit", "nf4-b64-dq-bf16", "nf4"), ("llm_int8", "w8a8-outlier-fp16", "int8")]
)
def test_bitsandbytes_by_its_name(name: str, scheme: str, kind: str, llama: Path, tmp_path: Path) -> None:
    advisor("apply", llama, "--method", name, "--scheme", scheme, "--format", "bitsandbytes", "--out", tmp_path / "out")
    assert len(bitsandbytes.read(tmp_path / "out")) == 14
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["load_in_4bit"], config["load_in_8bit"]) == (kind == "nf4", kind == "int8")


def test_a_graph_for_npus(llama: Path, tmp_path: Path) -> None:
    found = advisor("apply", llama, "--method", "static_int8", "--scheme", "w8a8-static-npu", "--format", "onnx", "--samples", 2,
                    "--out", tmp_path / "out")  # fmt: skip
    assert any("256 calibration tokens" in note for note in found["notes"])
    assert (tmp_path / "out" / "scoring.onnx").exists()


def test_convert_there_and_back(llama: Path, tmp_path: Path) -> None:
    advisor("apply", llama, "--method", "rtn", "--scheme", "w4-g32-bf16", "--format", "gptq", "--out", tmp_path / "gptq")
    advisor("convert", tmp_path / "gptq", "--runtime", "onnxruntime", "--out", tmp_path / "onnx")
    advisor("convert", tmp_path / "onnx", "--format", "gptq", "--model", llama, "--out", tmp_path / "again")
    a, b = (bridges.read(tmp_path / folder)[0] for folder in ("gptq", "again"))
    assert all(np.array_equal(mine, theirs) for name in a for mine, theirs in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "exl2"], "'exl2' is unknown; known are gptq"),
        (["--runtime", "tensorrt"], "'tensorrt' is unknown"),
        ([], "neither given"),
        (["--format", "awq", "--runtime", "torch"], "both given"),
        (["--runtime", "openvino", "--scheme", "w4-g32-bf16"], "is not for openvino"),
        (["--runtime", "onnxruntime", "--scheme", "w5a5"], "'w5a5' is unknown"),
        (["--runtime", "onnxruntime", "--scheme", "w8a8-static-npu"], "does not offer"),
    ],
)
def test_bad_input(arguments: list[str], said: str, llama: Path, tmp_path: Path) -> None:
    more = [] if "--scheme" in arguments else ["--scheme", "w4-g32"]
    with pytest.raises(BadInput, match=said):
        advisor("apply", llama, "--method", "rtn", *more, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_convert_into_gguf(llama: Path, tmp_path: Path) -> None:
    """8 bits are symmetric, and become blocks of Q8_0; 4 bits have zero points here, which no block of Q4_0 holds."""
    for bits in (4, 8):
        wanted = f"w{bits}-g64-bf16"
        advisor("apply", llama, "--method", "rtn", "--scheme", wanted, "--format", "gptq", "--out", tmp_path / str(bits))
    for place in (("--format", "gguf"), ("--runtime", "llama.cpp")):
        made = advisor("convert", tmp_path / "8", *place, "--out", tmp_path / place[1])
        assert [path.name for path in (tmp_path / place[1]).iterdir()] == ["model.gguf"]
        assert "14 linears with the codes of 8" in made["notes"][0]
        with pytest.raises(BadInput, match="has zero points") as caught:
            advisor("convert", tmp_path / "4", *place, "--out", tmp_path / "out")
        assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "out")
    for command in (("apply", llama, "--method", "rtn", "--scheme", "w4-g32"), ("convert", llama)):
        with pytest.raises(BadInput, match="exists already"):
            advisor(*command, "--runtime", "onnxruntime", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    with pytest.raises(BadInput, match="is no folder"):
        advisor("convert", tmp_path / "nowhere", "--runtime", "onnxruntime", "--out", tmp_path / "new")


def test_every_format_names_a_runtime_that_reads_it() -> None:
    from quantadvisor.advisor.context import export_format

    kinds = {name: export_format(runtime) for name, runtime in apply_command.RUNTIME_OF.items()}
    assert kinds == {"gptq": "torch", "awq": "torch", "bitsandbytes": "torch", "compressed-tensors": "compressed", "gguf": "gguf",
                     "onnx": "onnx", "openvino": "openvino"}  # fmt: skip
    assert set(apply_command.RUNTIME_OF) >= set(bridges.CHECKPOINTS)
