"""`advisor explain` on real checkpoints that were built to have one known cause each: it must name them all."""

import re
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.advisor import side_by_side
from quantadvisor.advisor.mends import MUCH_ROUNDING
from quantadvisor.advisor.stages import Quiet
from quantadvisor.advisor.survey import operators_in
from quantadvisor.documents import Peaks
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device, measure_peaks
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

from .documents import workload
from .planted_builds import PLANTED, TOKENS, make, static_qdq, write_model

pytestmark = [pytest.mark.runtime, pytest.mark.filterwarnings("ignore")]


THREADS = 1
"""A busy machine then slows all parts alike, where threads that wait for each other would stall at random."""


class Workshop:
    """Models and their exports, each made once; the roofs of the device, measured once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.peaks: Peaks = measure_peaks(THREADS)

    def model(self, name: str) -> Path:
        folder = self.root / name.replace(" ", "-")
        return folder if folder.exists() else write_model(name, folder)

    def base(self, name: str, runtime: str) -> Path:
        folder = self.root / f"{name.replace(' ', '-')}-{runtime}"
        if not folder.exists():
            method("none").apply(self.model(name), scheme("fp32"), runtime, TOKENS, folder)
        return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_cause_of_a_real_build_is_named(
    name: str, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = PLANTED[name]
    pytest.importorskip(case.package, reason=f"{case.package} is not in this environment")
    if reason := case.absent():
        pytest.skip(reason)
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(workshop.root / "cache"))
    monkeypatch.setattr(side_by_side, "chosen_device", lambda workload: describe_device(THREADS))
    monkeypatch.setattr(side_by_side, "peaks_of", lambda device: device.model_copy(update={"peaks": workshop.peaks}))
    monkeypatch.setattr(side_by_side, "ROUNDS", 3)
    monkeypatch.setattr(side_by_side, "LOOKS", 2)
    model, runtime = workshop.model(case.model), case.place.split("+")[0]
    base = model if runtime == "torch" else workshop.base(case.model, runtime)
    case.build(model, base, tmp_path / "checkpoint")
    prompt, output, users = case.traffic
    asked = workload(model=str(model), traffic={"prompt_tokens": prompt, "output_tokens": output, "concurrency": users})
    found = side_by_side.explain_checkpoint(str(tmp_path / "checkpoint"), asked, case.place, Quiet())
    assert found.largest == case.cause, [(one.cause, round(one.share, 2), one.evidence) for one in found.causes]
    assert case.said in found.change
    assert case.seen in found.causes[0].evidence


def test_static_qdq_tells_what_its_rounding_takes(workshop: Workshop, tmp_path: Path) -> None:
    """As quantize_static writes it, a QuantizeLinear and a DequantizeLinear beside each product are much of a prefill; ours has
    no DequantizeLinear, and says what its QuantizeLinear takes."""
    model, base = workshop.model("flat"), workshop.base("flat", "onnxruntime")
    static_qdq(model, base, tmp_path / "planted")
    make("static_int8", "w8a8-static")(model, base, tmp_path / "ours")
    seen = {}
    for name in ("planted", "ours"):
        with RunningWorker(runtime_file("onnxruntime"), tmp_path / name, (), THREADS) as worker:
            seen[name] = operators_in("prefill", worker.operators(np.random.default_rng(0).integers(3, 250, (8, 48)))["prefill"])
    assert seen["planted"].rounding_share > max(MUCH_ROUNDING, seen["ours"].rounding_share) > 0
    for name, kinds in (("planted", ["DequantizeLinear", "QuantizeLinear"]), ("ours", ["QuantizeLinear"])):
        (told,) = (note for note in seen[name].notes if note.startswith("of the operators' time"))
        shares = dict(re.findall(r"(\w+) ([\d.]+)%", told))
        assert sorted(shares) == kinds
        assert sum(map(float, shares.values())) == pytest.approx(100 * seen[name].rounding_share, abs=0.2)
