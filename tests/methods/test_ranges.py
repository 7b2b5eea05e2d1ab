"""Percentile and entropy ranges against ONNX Runtime's calibrator."""

import numpy as np
import pytest

from quantadvisor.methods.ranges import entropy_range, percentile_range


def samples() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    x[:10] *= 20
    return x


def histogram(x: np.ndarray, bins: int) -> tuple[np.ndarray, float]:
    edge = float(np.abs(x).max())
    return np.histogram(x, bins, (-edge, edge))[0], edge


def theirs(x: np.ndarray, method: str, bins: int, percentile: float = 99.99) -> tuple[float, float]:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, False, bins, 128, percentile, "same")
    collector.collect({"t": [x]})
    low, high, *_ = collector.compute_collection_result()["t"]
    return float(low), float(high)


@pytest.mark.parametrize(("percentile", "golden"), [(99.99, (-3.9985943, 4.7117195)), (99.9, (-3.310938, 3.285469))])
def test_percentile_like_onnxruntime(percentile: float, golden: tuple[float, float]) -> None:
    found = percentile_range(*histogram(samples(), 2048), percentile)
    assert found == pytest.approx(golden, rel=1e-5)
    assert found == pytest.approx(theirs(samples(), "percentile", 2048, percentile), rel=1e-5)


@pytest.mark.parametrize("kind", ["normal", "outliers", "skewed"])
def test_entropy_like_onnxruntime(kind: str) -> None:
    """To a bin: its sums are float32, ours float64."""
    x = samples()
    if kind == "normal":
        x = x[10:]
    if kind == "skewed":
        x = np.exp(x[10:])
    bins = 600
    ours, other = entropy_range(*histogram(x, bins)), theirs(x, "entropy", bins)
    width = 2 * float(np.abs(x).max()) / bins
    clipped = (max(ours[0], float(x.min())), min(ours[1], float(x.max())))
    assert clipped == pytest.approx(other, abs=1.01 * width)


def test_entropy_leaves_out_what_is_rare() -> None:
    low, high = entropy_range(*histogram(samples(), 2048))
    assert -26 < low < -2
    assert 2 < high < 26
