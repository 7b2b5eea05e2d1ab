"""Human units, the only place that has them: documents carry seconds, bytes, operations and plain ratios.

Every function takes None too and answers with a dash, since any part of a result may be absent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantadvisor.documents import Figure, Interval

ABSENT = "–"


def digits(value: float, significant: int = 3) -> str:
    """Plain decimal notation with that many significant digits: 0.00648, 4.90, 35.7, 1,234."""
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    rounded = float(f"{value:.{significant - 1}e}")
    places = max(0, significant - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{value:.{significant - 1}e}" if places > 9 else f"{value:,.{places}f}"
    return text.replace("-", "−")


def _scaled(value: float | None, steps: tuple[tuple[float, str], ...], reach: float = 1.0) -> str:
    """`value` in the largest unit of which it reaches `reach` once rounded; `steps` from large to small."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return f"0 {steps[-1][1] if steps[-1][0] == 1 else steps[0][1]}"
    for unit_size, unit in steps:
        if abs(value) >= unit_size * reach * 0.9995:
            return f"{digits(value / unit_size)} {unit}"
    unit_size, unit = steps[-1]
    return f"{digits(value / unit_size)} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as µs, ms, s or min."""
    if seconds is not None and math.isfinite(seconds) and abs(seconds) >= 120:
        return f"{digits(seconds / 60)} min"
    return _scaled(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def joules(energy: float | None) -> str:
    """Joules as mJ, J or kJ."""
    return _scaled(energy, ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")))


def size(count: float | None) -> str:
    """Bytes as KiB, MiB or GiB; GiB from 1,000 MiB on."""
    return _scaled(count, ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")), 1000 / 1024)


def bandwidth(bytes_per_s: float | None) -> str:
    """Bytes per second, decimal as on data sheets."""
    return _scaled(bytes_per_s, ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1, "B/s")))


def operations(per_s: float | None) -> str:
    """Operations per second; 2 per multiply-add."""
    return _scaled(per_s, ((1e15, "Pop/s"), (1e12, "Top/s"), (1e9, "Gop/s"), (1e6, "Mop/s"), (1, "op/s")))


def tokens_rate(per_s: float | None) -> str:
    return ABSENT if per_s is None or not math.isfinite(per_s) else f"{digits(per_s)} tok/s"


def times(ratio: float | None) -> str:
    """A ratio, as a factor: 3.84×."""
    return ABSENT if ratio is None or not math.isfinite(ratio) else f"{digits(ratio)}×"


def percent(share: float | None, places: int = 0) -> str:
    """A share of 1 in percent."""
    return ABSENT if share is None or not math.isfinite(share) else f"{share * 100:.{places}f} %".replace("-", "−")


def typeset(said: str) -> str:
    """Numbers in the run's own plain words, written as the page writes them: 2.07× for 2.07x, 52 % for 52%, → for ->."""
    said = re.sub(r"(?<![\w.-])(\d[\d,]*(?:\.\d+)?)x(?![\w@-])", r"\1×", said)
    return re.sub(r"(?<=\d)%", " %", said).replace(" -> ", " → ")


def signed_percent(share: float | None) -> str:
    return ABSENT if share is None or not math.isfinite(share) else f"{share * 100:+.1f} %".replace("-", "−")


def whole(count: float | None) -> str:
    return ABSENT if count is None or not math.isfinite(count) else f"{round(count):,}"


def number(value: float | None) -> str:
    return ABSENT if value is None else digits(value)


def nats(value: float | None) -> str:
    """A KL divergence, nats per token; rounding noise around zero is shown as such."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return "< 0.00001" if value < 1e-5 else digits(value, 2)


def spread(figure: Figure | None, unit: Callable[[float | None], str]) -> str:
    """`4.90 ms [4.80 ms–5.05 ms]` in short: the unit is written once where all three share it."""
    if figure is None:
        return ABSENT
    return f"{unit(figure.median)} {bounds(figure.low, figure.high, unit)}"


def interval(value: Interval | None, unit: Callable[[float | None], str]) -> str:
    """Mean with its 95 % interval."""
    return ABSENT if value is None else f"{unit(value.mean)} {bounds(value.low, value.high, unit)}"


def bounds(low: float, high: float, unit: Callable[[float | None], str]) -> str:
    """`[4.80–5.05 ms]`; both units where they differ."""
    first, last = unit(low), unit(high)
    if first == last and first.startswith("<"):
        return f"[{first}]"
    number_, _, name = first.rpartition(" ")
    if number_ and number_ != "<" and last.endswith(f" {name}"):
        first = number_
    return f"[{first}–{last}]"


def digits_short(value: float) -> str:
    """A tick: 1, 10, 20k, 1M, 0.3T."""
    for reach, size_, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= reach:
            return f"{value / size_:.4g}{unit}"
    return f"{value:.4g}"


def plain(value: float) -> str:
    """A small number without an exponent as far as nine decimals reach: 0.0005."""
    return f"{value:.9f}".rstrip("0").rstrip(".") if 1e-9 <= abs(value) < 1e-3 else f"{value:.3g}"


def times_short(value: float) -> str:
    """A tick of a ratio: 1×, 0.5×, 20×."""
    return f"{value:.4g}×"


def count_or_digits(value: float) -> str:
    """A bound on a count or on anything else: 3,100, 9, 2.35."""
    return f"{value:,.0f}" if value == round(value) else digits(value)
