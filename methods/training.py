"""Gradient steps within a budget of seconds: progress with the time left, and an interruption that changes no byte.

Adam with a warm-up of WARM_UP steps and a linear decay to zero, on the first GPU that torch sees, else the CPU; on a GPU with its
moments paged by bitsandbytes where that is installed, so that they give way to activations (QLoRA, arXiv:2305.14314, section 3;
never run on a GPU). How many steps there will be is settled once the warm-up is
timed: those that were asked for, or as many as the budget has room for. That plan is kept with the parameters and Adam's
moments, and step i draws its batch from i alone, so that a run that goes on repeats what was lost. Where the plan was too
hopeful, training stops at the budget and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from quantadvisor.documents.errors import CandidateFailed

from .kept import Arrays, Kept

WARM_UP = 4
"""Steps of rising rate. Those after the first also time the plan."""
SAVE_S, SAVE_SHARE, SAY_S = 20.0, 0.05, 1.0
"""Seconds between checkpoints (more where writing one takes over SAVE_SHARE of that), and between two words of progress."""
ROOM = 0.95
"""Share of the budget that is planned; the rest is for checkpoints and for steps that take longer."""


Say = Callable[[str], None]
"""Told in a line what is being done, and how long the rest will take."""


def silent(_: str) -> None:
    return None


class Limits(NamedTuple):
    """What a training may use: seconds, and who is told of it."""

    train_s: float
    say: Say = silent


ENOUGH = Limits(3600.0)
"""Where nobody says how long."""


class Trained(NamedTuple):
    steps: int
    asked: int
    seconds: float

    def note(self, what: str) -> str:
        cut = f" of {self.asked}: budget.train_s ended it" if self.steps < self.asked else ""
        return f"{what}, {used()}: {self.steps} steps{cut}"


class Progress(NamedTuple):
    done: int
    planned: int
    spent_s: float


def device() -> str:
    """Where models are trained."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def adam() -> Any:
    """The class of the optimiser: bitsandbytes' paged AdamW on a GPU that its library is built for, torch's otherwise."""
    import torch

    if device() == "cuda" and find_spec("bitsandbytes"):
        from bitsandbytes.cextension import lib
        from bitsandbytes.optim import PagedAdamW32bit

        if lib.compiled_with_cuda:
            return PagedAdamW32bit
    return torch.optim.AdamW


def used() -> str:
    """For notes: the optimiser, and where it runs."""
    return f"{adam().__name__} on {device()}"


def train(name: str, parameters: Mapping[str, Any], loss: Callable[[int], Any], steps: int, rate: float, limits: Limits,
          kept: Kept) -> Trained:  # fmt: skip
    """Change `parameters` in place to make loss(step), a torch scalar, small; `kept[name]` holds the way so far."""
    import torch

    optimiser = adam()(parameters.values(), lr=rate, weight_decay=0.0)
    done, planned, before = restore(kept[name], parameters, optimiser) if name in kept else Progress(0, 0, 0.0)
    started = saved = said = warm = time.monotonic()
    first, writing_s = done, 0.0
    while (not planned or done < planned) and done < steps:
        spent = before + time.monotonic() - started
        if spent >= limits.train_s:
            break
        if not planned and done == WARM_UP:
            planned = plan(done, steps, (time.monotonic() - warm) / (WARM_UP - 1), limits.train_s - spent)
            continue
        for group in optimiser.param_groups:
            group["lr"] = rate * share(done, planned)
        optimiser.zero_grad()
        value = loss(done)
        if not bool(torch.isfinite(value)):
            raise CandidateFailed(
                f"{name}: the loss is {float(value.detach())} at step {done + 1}; the rate of {rate:g} is too high"
            )
        value.backward()
        optimiser.step()
        done += 1
        now = time.monotonic()
        if done == 1:
            warm = now
        if planned and now - saved > max(SAVE_S, writing_s / SAVE_SHARE):
            kept[name] = state(parameters, optimiser, Progress(done, planned, before + now - started))
            saved = time.monotonic()
            writing_s = saved - now
        if now - said > SAY_S:
            left = (now - started) / (done - first) * ((planned or steps) - done)
            left = max(0.0, min(left, limits.train_s - before - (now - started)))
            loss_now = float(value.detach())
            limits.say(f"{name}: step {done} of {planned or steps}, loss {loss_now:.4g}, {left:.0f} s left")
            said = now
    spent = before + time.monotonic() - started
    kept[name] = values(parameters) | {"progress": np.array([done, done, spent])}
    return Trained(done, steps, spent)


def plan(done: int, steps: int, step_s: float, left_s: float) -> int:
    """How many steps in all, at least one more than are done."""
    return min(steps, done + max(1, int(ROOM * left_s / max(step_s, 1e-9))))


def share(step: int, planned: int) -> float:
    """Of the rate: rising over the warm-up, then falling to zero at the planned end."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return (planned - step) / (planned - WARM_UP)


def values(parameters: Mapping[str, Any]) -> Arrays:
    return {f"value {name}": parameter.detach().cpu().numpy().copy() for name, parameter in parameters.items()}


def state(parameters: Mapping[str, Any], optimiser: Any, progress: Progress) -> Arrays:
    """All that the next step depends on."""
    import torch

    arrays = values(parameters) | {"progress": np.array(progress)}
    for name, parameter in parameters.items():
        held = {key: torch.as_tensor(value).cpu() for key, value in optimiser.state[parameter].items()}
        arrays |= {f"{key} {name}": value.numpy().copy() for key, value in held.items()}
    return arrays


def restore(arrays: Arrays, parameters: Mapping[str, Any], optimiser: Any) -> Progress:
    """Back into parameters and optimiser; the inverse of `state`. A step without gradients at rate 0 makes moments where the
    optimiser wants them: a paged one's are pages."""
    import torch

    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    optimiser.step()
    for place, array in arrays.items():
        key, _, name = place.partition(" ")
        if key == "value":
            parameters[name].data.copy_(torch.from_numpy(array))
        elif name:
            held = optimiser.state[parameters[name]]
            if torch.is_tensor(held[key]):
                held[key].copy_(torch.from_numpy(array).reshape(held[key].shape))
            else:
                held[key] = array.item()
    done, planned, spent_s = arrays["progress"]
    return Progress(int(done), int(planned), float(spent_s))


@contextmanager
def products(linears: Mapping[str, Any], product: Callable[[str, Any], Any]) -> Iterator[None]:
    """While it is entered, product(name, x) is what the linear of that name gives for x: [..., K] -> [..., N]."""
    for name, linear in linears.items():
        linear.forward = partial(product, name)
    try:
        yield
    finally:
        for linear in linears.values():
            del linear.forward


def divergence(wanted: Any, logits: Any) -> Any:
    """KL of the distributions of `logits` against those of `wanted`, both [..., V]: nats, mean over positions."""
    import torch

    log_p, log_q = torch.log_softmax(wanted, -1), torch.log_softmax(logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def straight_through(rounding: Callable[[Any], Any], x: Any) -> Any:
    """rounding(x), whose gradient is that of x: the straight-through estimator (arXiv:1308.3432)."""
    return x + (rounding(x) - x).detach()
