import subprocess
import sys
from pathlib import Path

import pytest

from quantadvisor.documents import Peaks
from quantadvisor.kernels.timing import figure
from quantadvisor.profiling import device as module
from quantadvisor.profiling.device import describe_device, kept_peaks, measure_peaks


def test_identity_is_stable_and_plausible() -> None:
    one, two = describe_device(), describe_device(threads=1)
    assert one.fingerprint == two.fingerprint
    assert (one.cores, two.threads) == (two.cores, 1)
    assert 1 <= one.threads <= one.cores
    assert one.memory_bytes > 1 << 28
    assert describe_device(threads=10_000).threads == one.cores


def test_fingerprint_follows_identity_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_device().fingerprint
    monkeypatch.setattr(module, "last_level_cache", lambda: 123)
    assert describe_device().fingerprint == before
    monkeypatch.setattr(module, "usable_cores", lambda: 77)
    assert describe_device().fingerprint != before


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        ("vendor_id\t: X\nmodel name\t: Some CPU\nflags\t\t: avx2 amx_int8\n", "Some CPU", "avx2 amx_int8"),
        ("CPU implementer\t: 0x41\nFeatures\t: asimd i8mm\n", None, "asimd i8mm"),
    ],
)
def test_cpuinfo(tmp_path: Path, text: str, name: str | None, flags: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    cpu = module._cpuinfo(tmp_path / "cpuinfo")
    assert cpu["flags"] == flags
    assert name is None or cpu["name"] == name


def test_peaks_have_samples_and_sources() -> None:
    peaks = measure_peaks(describe_device().threads, budget_s=0.4)
    for one in (peaks.read_bytes_per_s, *peaks.flops_per_s.values()):
        assert len(one.samples) >= 3
        assert one.low <= one.median <= one.high
        assert one.source
    assert set(peaks.flops_per_s) | set(peaks.refused) == {"fp32", "bf16", "int8"}
    assert peaks.flops_per_s["fp32"].median > 1e9


def test_roofs_are_kept_by_device_threads_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(threads: int) -> Peaks:
        measured.append(threads)
        return Peaks(read_bytes_per_s=figure([float(len(measured))]), flops_per_s={})

    monkeypatch.setattr(module, "measure_peaks", measure)
    here = describe_device(threads=1)
    first = kept_peaks(here, tmp_path)
    assert kept_peaks(here, tmp_path) == first
    assert measured == [1]
    assert kept_peaks(here.model_copy(update={"fingerprint": "other"}), tmp_path) != first
    monkeypatch.setattr(module, "versions", lambda name: {name: "another"})
    kept_peaks(here, tmp_path)
    assert len(measured) == 3
    for path in tmp_path.iterdir():
        path.write_text("torn")
    kept_peaks(here, tmp_path)
    assert len(measured) == 4


def test_import_is_light() -> None:
    heavy = "('torch', 'onnxruntime', 'pynvml')"
    code = f"import sys, quantadvisor.profiling.device; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
