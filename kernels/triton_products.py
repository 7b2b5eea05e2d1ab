"""Whose product the triton runtime calls where: ours, or an installed package's that was faster on this GPU beyond noise.

The probe of a run (advisor/gpu_probe.py) times both at the model's (N, K) and the workload's M and keeps the winners, by device
and versions. A session takes them at load, where the package's product on our stored weights gives our numbers: it brings a
quantizer of its own, which finds our codes again or does not, or takes our integers. Never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError

from quantadvisor.documents import Document, Figure, KernelTiming, compared

from . import gpu_timing, rivals, timing_cache
from .selfcheck_record import place

Tensor = Any
OURS, PLAIN = "triton", "16 bit"


class Winner(Document):
    """The fastest product of a kind at one (M, N, K): `product` is ours, or a rival by name."""

    kernel: str
    m: int
    n: int
    k: int
    product: str
    time_s: Figure
    ours_s: Figure

    @property
    def factor(self) -> float:
        """Of our time."""
        return self.ours_s.median / self.time_s.median


class Winners(Document):
    device: str
    versions: dict[str, str]
    winners: tuple[Winner, ...]


def versions() -> dict[str, str]:
    """Of all packages whose kernels are timed beside each other, and of our own kernels' files."""
    names = {rival.package for found in rivals.RIVALS.values() for rival in found}
    packages = {name: number for one in ("torch", OURS, *sorted(names)) for name, number in timing_cache.versions(one).items()}
    return packages | {"kernels": gpu_timing.written()}


def winner(kernel: str, sizes: tuple[int, int, int], found: Mapping[str, KernelTiming]) -> Winner | None:
    """found: timings by contender. Ours, or the fastest of those whose intervals lie below ours; None where ours has none. The
    16-bit product beside it is of other weights."""
    times = {name: one.time_s for name, one in found.items() if one.time_s is not None and name != PLAIN}
    if OURS not in times:
        return None
    ours_s = times[OURS]
    faster = [name for name, time_s in times.items() if compared(time_s, ours_s) == "faster"]
    best = min(faster, key=lambda name: times[name].median, default=OURS)
    m, n, k = sizes
    return Winner(kernel=kernel, m=m, n=n, k=k, product=best, time_s=times[best], ours_s=ours_s)


def keep(device: str, winners: Sequence[Winner]) -> None:
    """In the place of what was kept of the device: those of the same (M, N, K), and all of other versions."""
    known = {(one.kernel, one.m, one.n, one.k): one for one in (*kept(device), *winners)}
    file = place(device, "products")
    file.parent.mkdir(parents=True, exist_ok=True)
    Winners(device=device, versions=versions(), winners=tuple(known.values())).write(file)


def kept(device: str) -> tuple[Winner, ...]:
    """The winners on that device with the packages as they are; none where anything differs."""
    try:
        found = Winners.read(place(device, "products"))
    except (OSError, ValidationError):
        return ()
    return found.winners if found.versions == versions() else ()


def take_over(model: Any, winners: Iterable[Winner]) -> tuple[str, ...]:
    """Gives our linears in the model the products that won at their sizes -> what was taken, and what was not and why."""
    known: dict[tuple[str, int, int], list[Winner]] = {}
    for one in winners:
        known.setdefault((one.kernel, one.n, one.k), []).append(one)
    said: dict[str, int] = {}
    for linear in (one for one in model.modules() if hasattr(one, "kernel")):
        mine = known.get((linear.name, *linear.sizes), [])
        if any(one.product != OURS for one in mine):
            for words in _given(linear, mine):
                said[words] = said.get(words, 0) + 1
    return tuple(f"{count} linears: {words}" for words, count in said.items())


def _given(linear: Any, winners: Sequence[Winner]) -> list[str]:
    """`products` of the linear, by M; and a line on each that is not ours."""
    products: dict[int, Callable[[Tensor], Tensor]] = {}
    said = []
    for one in winners:
        ours = linear.product(one.m)
        if one.product == OURS:
            products[one.m] = ours
            continue
        won = f"{one.product} was {one.factor:.2f}x as fast as our {one.kernel} at M = {one.m}"
        try:
            products[one.m] = checked(linear, one, ours)
            said.append(f"{won} and is called about there")
        except Exception as error:  # another package's kernel: whatever it raises is why ours stays
            products[one.m] = ours
            text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            said.append(f"{won}; ours stays: {text}")
    linear.products, linear.dense, linear.integers = products, None, None  # ours is not held where it is called nowhere
    return said


def checked(linear: Any, won: Winner, ours: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The rival's product on the linear's stored weights; ValueError where its numbers are not ours."""
    import torch

    w = linear.dense()
    rival = next(one for one in rivals.rivals_of(won.kernel) if one.name == won.product)
    x = torch.randn(won.m, won.k, generator=torch.Generator().manual_seed(won.m)).to(w.device, w.dtype)
    product = rivals.product_of(rival, x, w, linear.integers)
    if (off := rivals.distance(product(x), ours(x))) > rivals.SAME:
        raise ValueError(f"its numbers on these weights are off by {off:.2g}, more than {rivals.SAME:.2g}")
    return partial(_as_given, product)


def _as_given(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """In the type of x: some packages give float16 alone."""
    return product(x).to(x.dtype)
