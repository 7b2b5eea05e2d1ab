"""`advisor apply` and `advisor convert`: every format that is named is written, and nothing that is there is overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from quantadvisor.advisor import apply_command
from quantadvisor.advisor.builds import Build, Built
from quantadvisor.advisor.cli import app
from quantadvisor.advisor.stored_transformers import of_transformers
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
        if build.below:
            build_all([build.below], say, processes)
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
    assert [note for note in made["notes"] if note not in whole["notes"]] == (
        [f"{taken} from an interrupted run"] if taken else []
    )
    assert {*whole["notes"]} <= {*made["notes"]}
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


def test_a_cache_on_any_weights(llama: Path, tmp_path: Path) -> None:
    """As `advisor methods` lists it: in the artifact of ONNX Runtime; of OpenVINO an option, and the folder is the weights'."""
    command = ("apply", llama, "--method", "kv_int8")
    made = advisor(*command, "--scheme", "w8-g64-kv8", "--runtime", "onnxruntime", "--out", tmp_path / "both")
    graph = onnx.load(tmp_path / "both" / "model.onnx", load_external_data=False).graph
    caches = {one.type.tensor_type.elem_type for one in graph.input if "past" in one.name}
    assert caches == {onnx.TensorProto.INT8} or caches == {onnx.TensorProto.UINT8}
    assert sum(node.op_type == "MatMulNBits" for node in graph.node) == 11  # 5 of a layer, and lm_head
    assert not [note for note in made["notes"] if "option of the session" in note]
    made = advisor(*command, "--scheme", "fp32-kv8", "--runtime", "openvino", "--out", tmp_path / "plain")
    assert "the cache is no part of the folder but an option of the session: openvino+kvu8" in made["notes"]
    assert (tmp_path / "plain" / "openvino_model.xml").exists()


def test_activations_beyond_float16_are_refused_where_it_computes(llama: Path, tmp_path: Path) -> None:
    """Its weights fit; what its up projections make of them does not. bfloat16 holds it."""
    shutil.copytree(llama, tmp_path / "loud")
    state = load_file(tmp_path / "loud" / "model.safetensors")
    for name in state:
        if "up_proj" in name:
            state[name] *= 6e4 / state[name].abs().max()
    save_file(state, tmp_path / "loud" / "model.safetensors", {"format": "pt"})
    command = ("apply", tmp_path / "loud", "--method", "rtn", "--scheme", "w4-g64-bf16")
    with pytest.raises(
        BadInput, match=r"an input of model\.layers\.\d\.mlp\.down_proj holds .*beyond float16.*compressed-tensors"
    ):
        advisor(*command, "--format", "gptq", "--out", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"loud", "cache"}
    advisor(*command, "--format", "compressed-tensors", "--out", tmp_path / "out")
    quiet = advisor("apply", llama, *command[2:], "--format", "gptq", "--out", tmp_path / "quiet")
    assert any(note.startswith("in float16: the loudest input of a layer") for note in quiet["notes"])


def test_a_folder_of_old_autogptq(llama: Path, tmp_path: Path) -> None:
    """Its settings lie beside a config that says nothing of them: transformers would load noise. Converted, they are said."""
    advisor("apply", llama, "--method", "rtn", "--scheme", "w4-g64-sym-bf16", "--format", "gptq", "--out", tmp_path / "new")
    wanted, form = gptq.read(tmp_path / "new")
    old = shutil.copytree(tmp_path / "new", tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["quantization_config"]
    (old / "config.json").write_text(json.dumps(config))
    (old / "quantize_config.json").write_text(
        json.dumps({"bits": 4, "group_size": 64, "sym": True, "desc_act": False, "model_file_base_name": "gptq_model-4bit-64g"})
    )
    (old / "model.safetensors").rename(old / "gptq_model-4bit-64g.safetensors")
    with pytest.raises(BadInput, match=r"lie in quantize_config\.json alone.*advisor convert FOLDER --format gptq"):
        of_transformers(old)
    advisor("convert", old, "--format", "gptq", "--out", tmp_path / "mended")
    assert of_transformers(tmp_path / "mended")["stored_quantized"] == 14
    found, again = gptq.read(tmp_path / "mended")
    assert again == form
    for name, linear in wanted.items():
        for mine, theirs in zip(linear, found[name], strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


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
