"""Training by the clock and by the step: plans, budgets, resuming, against Adam written out in numpy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods import adapters, lkd, llm_qat, registry, training
from quantadvisor.methods.kept import Arrays, Folder
from quantadvisor.methods.observe import load
from quantadvisor.methods.training import Limits, plan, share, straight_through, train

TARGET = torch.tensor([1.0, -2.0, 3.0])


class Clock:
    """Seconds that pass only where a loss says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def distance(x: torch.Tensor, clock: Clock | None = None, seconds: float = 0.0) -> Callable[[int], torch.Tensor]:
    def loss(step: int) -> torch.Tensor:
        if clock:
            clock.now += seconds
        noise = torch.from_numpy(np.random.default_rng(step).standard_normal(3).astype(np.float32))
        return (x - TARGET + 0.1 * noise).square().sum()

    return loss


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(3))


def test_steps_are_those_of_adam() -> None:
    """Kingma and Ba's update with the rate of each step, written out."""
    x, rate, steps = start(), 0.3, 30
    assert train("x", {"x": x}, distance(x), steps, rate, Limits(60), {}).steps == steps
    y, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    for step in range(steps):
        g = 2 * (y - TARGET.numpy() + 0.1 * np.random.default_rng(step).standard_normal(3))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        here = rate * ((step + 1) / 4 if step < 4 else (steps - step) / (steps - 4))
        y -= here * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    np.testing.assert_allclose(x.detach().numpy(), y, atol=1e-4)


@pytest.mark.parametrize("broken_at", [1, 7, 29])
def test_an_interruption_changes_no_byte(broken_at: int, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)
    whole = start()
    train("x", {"x": whole}, distance(whole), 30, 0.3, Limits(60), {})
    x, seen = start(), []

    def breaking(step: int) -> torch.Tensor:
        seen.append(step)
        if step == broken_at and len(seen) == broken_at + 1:
            raise KeyboardInterrupt
        return distance(x)(step)

    kept = Folder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train("x", {"x": x}, breaking, 30, 0.3, Limits(60), kept)
    x = start()
    train("x", {"x": x}, breaking, 30, 0.3, Limits(60), kept)
    assert x.detach().numpy().tobytes() == whole.detach().numpy().tobytes()
    again = broken_at if broken_at > 4 else 0  # before the plan is settled nothing is kept
    assert seen[broken_at + 1] == again


def test_the_budget_settles_how_many_steps_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 s at 0.5 s a step: 2 s of warm-up, then 0.95 of the other 8."""
    clock, x, said = Clock(), start(), []
    monkeypatch.setattr(training, "time", clock)
    done = train("x", {"x": x}, distance(x, clock, 0.5), 1000, 0.3, Limits(10.0, said.append), {})
    assert (done.steps, done.asked, done.seconds) == (4 + 15, 1000, 9.5)
    assert "19 steps of 1000: budget.train_s ended it" in done.note("LKD")
    assert said[-1].startswith("x: step 18 of 19, loss ") and said[-1].endswith("0 s left")
    assert "1 s left" in said[-2] or "2 s left" in said[-2]


def test_training_stops_where_steps_grow_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, x = Clock(), start()
    monkeypatch.setattr(training, "time", clock)

    def loss(step: int) -> torch.Tensor:
        return distance(x, clock, 0.5 if step < 4 else 3.0)(step)

    done = train("x", {"x": x}, loss, 1000, 0.3, Limits(10.0), {})
    assert done.steps == 7 and 10.0 <= done.seconds <= 13.0


class Library:
    """bitsandbytes' native library, as one built with or without CUDA says of itself."""

    def __init__(self, cuda: bool) -> None:
        self.compiled_with_cuda = cuda


@pytest.mark.parametrize(
    ("place", "installed", "cuda", "wanted"),
    [
        ("cuda", True, True, "PagedAdamW32bit on cuda"),
        ("cuda", True, False, "AdamW on cuda"),
        ("cuda", False, True, "AdamW on cuda"),
        ("cpu", True, True, "AdamW on cpu"),
    ],
)
def test_moments_are_paged_on_a_gpu_that_bitsandbytes_is_built_for(
    place: str, installed: bool, cuda: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cextension = pytest.importorskip("bitsandbytes.cextension", reason="bitsandbytes is not installed")
    monkeypatch.setattr(cextension, "lib", Library(cuda))
    monkeypatch.setattr(training, "device", lambda: place)
    monkeypatch.setattr(training, "find_spec", lambda _: installed or None)
    assert training.used() == wanted
    assert training.Trained(3, 3, 1.0).note("LoRA") == f"LoRA, {wanted}: 3 steps"


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes' paged AdamW, which computes on CPUs too, without pages: what stands here for a GPU."""
    optim = pytest.importorskip("bitsandbytes.optim", reason="bitsandbytes is not installed")
    monkeypatch.setattr(training, "adam", lambda: optim.PagedAdamW32bit)


@pytest.mark.usefixtures("paged")
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_paged_optimiser_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = start(), start()
    train("x", {"x": x}, distance(x), 30, 0.3, Limits(60), {})
    monkeypatch.setattr(training, "adam", lambda: torch.optim.AdamW)
    train("y", {"y": y}, distance(y), 30, 0.3, Limits(60), {})
    np.testing.assert_allclose(x.detach().numpy(), y.detach().numpy(), atol=1e-4)


@pytest.mark.usefixtures("paged")
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_an_interruption_of_the_paged_optimiser_changes_no_byte(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_an_interruption_changes_no_byte(7, tmp_path, monkeypatch)


def test_a_finished_training_is_not_repeated() -> None:
    kept: dict[str, Arrays] = {}
    x = start()
    train("x", {"x": x}, distance(x), 10, 0.3, Limits(60), kept)
    y = start()
    assert train("x", {"x": y}, lambda step: pytest.fail("trained again"), 10, 0.3, Limits(60), kept).steps == 10
    assert torch.equal(x, y)


def test_no_seconds_no_steps() -> None:
    x = start()
    assert train("x", {"x": x}, distance(x), 10, 0.3, Limits(0.0), {}).steps == 0
    assert torch.equal(x.detach(), torch.zeros(3))


def test_a_loss_that_is_no_number_ends_it() -> None:
    x = start()
    with pytest.raises(CandidateFailed, match=r"x: the loss is nan at step 3; the rate of 0\.3"):
        train("x", {"x": x}, lambda step: x.sum() * (float("nan") if step == 2 else 1.0), 10, 0.3, Limits(60), {})


def test_plans_and_rates() -> None:
    assert plan(4, 100, 1.0, 1e9) == 100
    assert plan(4, 100, 1.0, 0.1) == 5
    assert [share(step, 8) for step in (0, 3, 4, 7)] == [0.25, 1.0, 1.0, 0.25]


def test_rounding_lets_gradients_through() -> None:
    x = torch.tensor([0.2, 1.7], requires_grad=True)
    made = straight_through(torch.round, x)
    made.sum().backward()
    assert made.tolist() == [0.0, 2.0] and x.grad is not None and x.grad.tolist() == [1.0, 1.0]


class Reached(Exception):
    """The first loss was computed: where it lies, and where the parameters do."""


@pytest.mark.parametrize("name", ["qlora", "gptq_lora", "lkd", "llm_qat"])
def test_models_train_where_the_device_is(name: str, llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's `meta` stands for a GPU: it computes shapes alone, and refuses activations that were left on the CPU."""
    if name in ("qlora", "gptq_lora"):
        pytest.importorskip("peft", reason="peft is not installed")

    def first(name: str, parameters: Mapping[str, torch.Tensor], loss: Callable[[int], torch.Tensor], *_: object) -> None:
        raise Reached({each.device.type for each in parameters.values()} | {loss(0).device.type})

    for module in (adapters, lkd, llm_qat):
        monkeypatch.setattr(module, "device", lambda: "meta")
        monkeypatch.setattr(module, "train", first)
    monkeypatch.setattr(llm_qat, "written_by", lambda *_: tokens)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)  # it reads values
    method: Any = registry.method(name)
    with pytest.raises(Reached) as reached:
        method.fake(load(llama), next(one for one in method.schemes() if one.compute == "fp32"), tokens)
    assert reached.value.args == ({"meta"},)
