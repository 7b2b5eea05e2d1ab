"""What stays in place between two requests, and what goes."""

from typing import Any

import numpy as np
import pytest

from quantadvisor.kernels import probe_child
from quantadvisor.kernels.probe_child import Bench, Flusher, time_probe
from quantadvisor.kernels.problem import Bound, Prepared, Problem


class Counted:
    """A probe that counts what is built and called."""

    def __init__(self) -> None:
        self.built: list[Problem] = []
        self.rows: list[int] = []

    def prepare(self, shape: Problem) -> Prepared:
        self.built.append(shape)

        def bind(x: Any) -> Bound:
            assert x.shape[1] == shape.k
            return Bound(call=lambda: self.rows.append(len(x)), output=lambda: x)

        named = "op 8+QuantizeLinear" if shape.n == 8 else "op 16"
        return Prepared(bind=bind, operator=lambda: named, rounding_share=lambda m: m / 100)


def request(probe: str, m: int, copies: int = 2) -> dict[str, Any]:
    shapes = [{"n": 8, "k": 4, "copies": copies}, {"n": 16, "k": 4, "copies": copies}]
    return {"probe": probe, "option": "", "threads": 1, "m": m, "shapes": shapes, "cold": True, "flush_bytes": 1 << 12,
            "rounds": 3, "limit_s": 1.0}  # fmt: skip


def test_weights_stay_for_every_m_until_another_kernel_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Counted(), Counted()
    monkeypatch.setattr(probe_child, "PROBES", {"a": first, "b": second})
    bench = Bench()
    found = time_probe(request("a", 5), bench)["timings"]
    assert [one["operator"] for one in found] == ["op 8+QuantizeLinear", "op 16"]
    assert [one["rounding_share"] for one in found] == [0.05, None]
    assert all(len(one["samples"]) == 3 for one in found)
    assert set(first.rows) == {5}
    time_probe(request("a", 7), bench)
    assert len(first.built) == 2
    assert set(first.rows) == {5, 7}
    time_probe(request("a", 7, copies=1), bench)
    assert len(first.built) == 4, "fewer copies are other weights"
    time_probe(request("b", 5), bench)
    time_probe(request("a", 5), bench)
    assert len(first.built) == 6


def test_the_flusher_reads_what_it_is_told_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    flusher = Flusher()
    assert flusher.reading(0, 2) is None
    monkeypatch.setattr(np, "max", lambda part: read.append(part.nbytes))
    for size in (1 << 16, 1 << 12, 1 << 17):
        read.clear()
        flush = flusher.reading(size, 2)
        assert flush is not None
        flush()
        assert sum(read) == size
