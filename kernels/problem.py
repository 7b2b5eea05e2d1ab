"""One kernel to time: y[M, N] = x[M, K] @ w[N, K].T, and the numbers that go in, the same for probe and reference.

Random numbers are drawn once and repeated, shifted from copy to copy, so that no graph optimiser finds two equal
weights and building costs little. Integer weights are unsigned with a fixed zero point of 2^(bits − 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from quantadvisor.documents import Device, Format, Scheme

from .saturation import most_exact

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK = 1 << 20
GROUP = 64


@dataclass(frozen=True)
class Problem:
    """Sizes, the runtime's option, threads, and how many different weights one call goes through.

    A kernel is prepared whatever `m` is: that of `bind` counts, and the reference's.
    """

    m: int
    n: int
    k: int
    option: str = ""
    threads: int = 1
    copies: int = 1


@dataclass(frozen=True)
class Bound:
    """A kernel ready to run on one x: [M, K]."""

    call: Callable[[], object]
    """Runs all copies once: what is timed."""
    output: Callable[[], Array]
    """Reads back what the last copy gave in the last call: float32 [M, N]."""


@dataclass(frozen=True)
class Prepared:
    """A kernel whose weights are in place, for any number of rows: building it costs more than most timings of it."""

    bind: Callable[[Array], Bound]
    """x: float32 [M, K] → the kernel on it."""
    operator: Callable[[], str] = lambda: ""
    """What really ran, in the runtime's own words; ask after a call."""
    rounding_share: Callable[[int], float | None] = lambda m: None
    """Of the time at `m` rows, that of operators which only round; None where none runs."""


class TimedKernel(Protocol):
    """What is known of a kernel, wherever it is timed."""

    @property
    def scheme(self) -> Scheme: ...
    @property
    def runtime(self) -> str: ...
    def refuse(self, device: Device, shape: Problem) -> str | None: ...
    def arithmetic(self, option: str, isa: Sequence[str]) -> str: ...


class KernelProbe(TimedKernel, Protocol):
    """A module `kernels/<scheme>_<runtime>.py`."""

    @property
    def options(self) -> tuple[str, ...]: ...
    def prepare(self, shape: Problem) -> Prepared: ...
    def reference(self, shape: Problem) -> Callable[[], Array]: ...


def matrix_bytes(n: int, k: int, number: Format | None, plain_bytes: int, scale_bytes: float) -> int:
    """Stored bytes of w: [N, K] in a format; None: `plain_bytes` an element. Of inputs that stay in 16 bits no codes are counted,
    nor which ones they are."""
    if number is None:
        return n * k * plain_bytes
    if number.number == "float" and number.bits >= 16:
        return int(n * k * number.bits / 8)
    kept = round(k * number.kept_percent / 100)
    if number.granularity in ("group", "block"):
        size = number.group_size or 32
        groups = n * math.ceil(k / size)
        whole = number.number != "codebook"  # a codebook's last block of a row is as short as the row leaves it
        packed = groups * math.ceil(size * number.bits / 8) if whole else n * math.ceil((k - kept) * number.bits / 8)
    else:
        groups = 1 if number.granularity == "tensor" else n
        whole = number.number == "int" and 4 < number.bits < 8  # nobody packs 7 bits: a byte each
        packed = n * k if whole else n * math.ceil(k * number.bits / 8)
    zeros = 0 if number.symmetric else math.ceil(groups * number.bits / 8)
    means = 2 * groups if number.centred else 0
    return packed + math.ceil(groups * scale_bytes) + zeros + means + 2 * n * kept


def groups(k: int, group: int = GROUP) -> int:
    return math.ceil(k / group)


@lru_cache(maxsize=8)
def _block(kind: str, size: int) -> Array:
    """`size` random numbers of one kind, drawn once: drawing costs more than all the rest of building a probe."""
    import numpy as np

    rng = np.random.default_rng(8 if kind == "tokens" else 7)
    if kind in ("normal", "tokens"):
        return rng.standard_normal(size, dtype=np.float32)
    if kind == "near one":
        return rng.uniform(0.75, 1.25, size)
    if kind == "int8":
        return rng.integers(-127, 128, size, dtype=np.int8)
    return rng.integers(0, 1 << int(kind), size, dtype=np.uint8)


def _repeated(kind: str, copy: int, sizes: tuple[int, ...]) -> Array:
    """An array filled with a block that is shifted by `copy`."""
    import numpy as np

    return np.resize(np.roll(_block(kind, min(BLOCK, math.prod(sizes)) + 64), copy + 1), sizes)


def inputs(m: int, k: int) -> Array:
    """x: float32 [M, K], standard normal."""
    return _repeated("tokens", 0, (m, k))


def output(prepared: Prepared, shape: Problem) -> Array:
    """y: float32 [M, N] of one call."""
    bound = prepared.bind(inputs(shape.m, shape.k))
    bound.call()
    return bound.output()


def float_weights(shape: Problem, copy: int, *, transposed: bool = False) -> Array:
    """w: float32 [N, K], normal with variance 1 / K; `transposed`: other values, as [K, N]."""
    import numpy as np

    w = _repeated("normal", copy, (shape.k, shape.n) if transposed else (shape.n, shape.k))
    w *= np.float32(1 / math.sqrt(shape.k))
    return w


def channel_weights(shape: Problem, copy: int, *, transposed: bool = False) -> tuple[Array, Array]:
    """Symmetric INT8 per output channel: q int8 [N, K] (or [K, N]) in [−127, 127], scale float32 [N]."""
    import numpy as np

    q = _repeated("int8", copy, (shape.k, shape.n) if transposed else (shape.n, shape.k))
    return q, (_repeated("near one", copy, (shape.n,)) / 73 / math.sqrt(shape.k)).astype(np.float32)


def exact_weights(shape: Problem, copy: int, *, transposed: bool = False) -> tuple[Array, Array]:
    """`channel_weights` of as many bits as this CPU multiplies by uint8 exactly."""
    import numpy as np

    q, scale = channel_weights(shape, copy, transposed=transposed)
    return np.clip(q, -most_exact(), most_exact()), scale


def integer_weights(shape: Problem, bits: int, copy: int, group: int = GROUP) -> Array:
    """q: uint8 [N, K / group, group] in [0, 2^bits), the last group full."""
    return _repeated(str(bits), copy, (shape.n, groups(shape.k, group), group))


def group_scales(shape: Problem, bits: int, copy: int, group: int = GROUP) -> Array:
    """Scales: float32 [N, K / group], exact in float16, such that y is about standard normal."""
    import numpy as np

    size = 4.0 / (1 << bits) / math.sqrt(shape.k)
    scales = _repeated("near one", copy, (shape.n, groups(shape.k, group))) * size
    return scales.astype(np.float16).astype(np.float32)


def dequantized(q: Array, scales: Array, bits: int, k: int) -> Array:
    """w: float32 [N, K] of grouped integers."""
    import numpy as np

    w = (q.astype(np.float32) - (1 << (bits - 1))) * scales[:, :, None]
    return w.reshape(len(q), -1)[:, :k]


def grouped_reference(shape: Problem, bits: int) -> Callable[[], Array]:
    """The last copy's product with exactly dequantized weights, in float32."""
    last = shape.copies - 1
    q, scales = integer_weights(shape, bits, last), group_scales(shape, bits, last)
    return product(inputs(shape.m, shape.k), dequantized(q, scales, bits, shape.k))


def float_reference(shape: Problem, *, transposed: bool = False) -> Callable[[], Array]:
    w = float_weights(shape, shape.copies - 1, transposed=transposed)
    return product(inputs(shape.m, shape.k), w.T if transposed else w)


def product(x: Array, w: Array) -> Callable[[], Array]:
    import numpy as np

    return lambda: (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.float32)
