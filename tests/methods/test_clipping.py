"""Static ranges against onnxruntime's own collectors on a sample with ten planted outliers."""

from __future__ import annotations

import numpy as np
import pytest

from quantadvisor.methods.clipping import BINS, CLIPS, LEVELS, Clip, least_divergent, limits, rounding_error


def planted() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    x[:10] *= 20
    return x


def test_minmax_and_percentile_golden() -> None:
    """onnxruntime, 2,048 bins of 0.0255: (-25.30843, 26.08) and (-3.9985943, 4.7117195), which cuts five on either side."""
    x = planted()
    assert limits(x, "minmax") == (pytest.approx(-25.30843, abs=1e-5), pytest.approx(26.08, abs=1e-3))
    low, high = limits(x, "percentile")
    assert low == pytest.approx(-3.9985943, abs=2 * 26.08 / 2048)
    for a, b in ((low, high), (-3.9985943, 4.7117195)):
        assert ((x < a).sum(), (x > b).sum()) == (5, 5)


@pytest.mark.parametrize("kind", ["normal", "outliers", "skewed"])
def test_entropy_like_onnxruntime(kind: str) -> None:
    """To a bin: its sums are float32, ours float64. Its lower bound lies one bin nearer to 0 than its upper one."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    x = planted() if kind == "outliers" else planted()[10:]
    x, bins = np.exp(x) if kind == "skewed" else x, 600
    bound = float(np.abs(x).max())
    counts, edges = np.histogram(x, bins, (-bound, bound))
    collector = HistogramCollector("entropy", False, bins, LEVELS, 99.99, "same")
    collector.collect({"t": [x]})
    low, high, *_ = collector.compute_collection_result()["t"]
    cut = float(edges[least_divergent(counts, LEVELS)])
    width = 2 * bound / bins
    assert min(cut, float(x.max())) == pytest.approx(float(high), abs=1.01 * width)
    assert max(width - cut, float(x.min())) == pytest.approx(float(low), abs=1.01 * width)


def test_mse_by_trying_every_range() -> None:
    x = planted()[:20_000]
    low, high = limits(x, "mse", 4)
    error = rounding_error(x, low, high, 4)
    by_hand = []
    for share in np.arange(0.11, 1.001, 0.01):
        a, b = float(x.min()) * share, float(x.max()) * share
        step = (b - a) / 15
        zero = np.rint(-a / step)
        by_hand.append(float(((((np.clip(np.rint(x / step) + zero, 0, 15)) - zero) * step - x) ** 2).mean()))
    assert error == pytest.approx(min(by_hand), rel=1e-3)
    assert error < 0.3 * rounding_error(x, float(x.min()), float(x.max()), 4)


@pytest.mark.parametrize("clip", CLIPS)
def test_ranges_lie_inside_the_extremes(clip: str) -> None:
    for x in (planted(), np.abs(planted()), np.full(8, 3.0, np.float32), np.linspace(-1, 2, 50, dtype=np.float32)):
        low, high = limits(x, clip)  # type: ignore[arg-type]
        assert min(float(x.min()), 0) - 1e-6 <= low <= high <= x.max() + 1e-6


def test_a_clean_sample_is_hardly_cut() -> None:
    assert BINS > LEVELS
    x = np.random.default_rng(1).uniform(-1, 1, 50_000).astype(np.float32)
    for clip in CLIPS:
        low, high = limits(x, clip)
        assert low < -0.95
        assert high > 0.95


@pytest.mark.parametrize("clip", ["percentile", "entropy", "mse"])
def test_a_counted_value_is_as_many(clip: Clip) -> None:
    """The range of values with counts is that of the values written out."""
    rng = np.random.default_rng(3)
    x, counts = rng.standard_t(4, 4000).astype(np.float32), rng.integers(1, 6, 4000)
    assert limits(x, clip, counts=counts) == pytest.approx(limits(np.repeat(x, counts), clip), rel=1e-6)
