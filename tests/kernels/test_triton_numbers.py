"""The Triton kernels' numbers, in triton's interpreter: no GPU is here, and none ever ran them.

The interpreter is chosen when triton is imported, so the checks in `interpreted/` run in one process of their own.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHECKS = sorted((HERE / "interpreted").glob("check_*.py"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    """File -> (how many checks ran, what failed)."""
    report = tmp_path_factory.mktemp("interpreted") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    command += ["-o", "junit_family=xunit1"]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, f"--junitxml={report}", *map(str, CHECKS)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths},
    )
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, tuple[int, list[str]]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = Path(case.get("file") or case.get("classname", "").replace(".", "/") + ".py").name
        ran, failed = found.get(name, (0, []))
        bad = [f"{case.get('name')}: {(one.text or '')[-600:]}" for one in case if one.tag in ("failure", "error", "skipped")]
        found[name] = (ran + 1, failed + bad)
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.stem)
def test_numbers(check: Path, outcomes: dict[str, tuple[int, list[str]]]) -> None:
    ran, failed = outcomes[check.name]
    assert ran
    assert not failed, "\n".join(failed)
