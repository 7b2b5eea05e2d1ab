"""The wheel that the tree builds is whole, and the folders at the root reach it by relative links."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = ("advisor", "kernels", "methods", "profiling", "reports")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the tree; the installed setuptools does, where it is new enough."""
    tree, out = tmp_path_factory.mktemp("tree") / "t", tmp_path_factory.mktemp("wheel")
    tree.mkdir()
    for name in (*FOLDERS, "src"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(out), str(tree)]
    if _setuptools_is_new():
        command.append("--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def _setuptools_is_new() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False


def test_the_wheel_holds_everything(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        folder = package.replace(".", "/")
        sources = {file.name for file in (ROOT / "src" / folder).glob("*.py")}
        assert {f"{folder}/{name}" for name in sources} <= held, package
    assert "quantadvisor/py.typed" in held
    data = (
        "reports/*.j2",
        "advisor/presets/*.yaml",
        "advisor/*.json",
        "kernels/*.json",
        "kernels/gpu/*",
        "kernels/gpu_reports/*",
        "profiling/models/*.json",
    )
    for pattern in data:
        files = sorted(ROOT.glob(pattern))
        assert files
        assert {f"quantadvisor/{file.relative_to(ROOT)}" for file in files} <= held
    tops = {name.split("/")[0] for name in held if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"quantadvisor"}


def test_the_wheel_works_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import quantadvisor; from quantadvisor.advisor.spec import workload_from_preset;"
        "print(quantadvisor.__file__, workload_from_preset('m', 'rag').traffic.concurrency)"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    ).stdout.split()
    assert shown == [str(tmp_path / "site/quantadvisor/__init__.py"), "4"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_links_are_relative(folder: str) -> None:
    link = ROOT / "src" / "quantadvisor" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{folder}"
    assert not (ROOT / folder / "__init__.py").exists()


def test_every_folder_of_python_is_a_package() -> None:
    found = {file.parent for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    named = {"quantadvisor." + ".".join(path.relative_to(ROOT).parts) for path in found}
    assert named <= set(PACKAGES)


def test_torch_is_pinned_for_the_makefile() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert "torch==2.13.0" in pins
    assert "-c constraints.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_ci_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")
