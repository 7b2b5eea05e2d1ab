"""Energy of the CPU packages while something is measured: the kernel's RAPL counters, where they can be read.

`/sys/class/powercap/intel-rapl:N/energy_uj` (also of AMD) counts microjoules of package N and starts again at
`max_energy_range_uj`; root alone may read it on most systems, and virtual machines have none. It is the whole package's:
what others do on this machine is in it.

    before = counters()
    measure()
    joules = joules_between(before, counters())      # None where nothing can be read
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/class/powercap")


class Counter(NamedTuple):
    """Microjoules; it starts again after `largest`."""

    value: int
    largest: int


def counters(root: Path = ROOT) -> dict[str, Counter]:
    """One per package (not its parts, `intel-rapl:0:0`, which it includes); nothing where one cannot be read."""
    found = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:
            try:
                value, largest = (int((folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):
                return {}
            found[folder.name] = Counter(value, largest)
    return found


def joules_between(before: dict[str, Counter], after: dict[str, Counter]) -> float | None:
    """Of all packages together; None where there are none. A counter may have started again once in between."""
    if not before or set(before) != set(after):
        return None
    spent = 0
    for name, start in before.items():
        difference = after[name].value - start.value
        spent += difference if difference >= 0 else difference + start.largest
    return spent / 1e6
