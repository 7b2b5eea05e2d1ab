"""GPUs that can be planned for without one: nominal bandwidth, peak, memory and links, from `gpu/devices.json`.

That file is built by `benchmarks/build_kernel_tables.py` from the `systems/*.yaml` of aiconfigurator-core (Apache-2.0, see
`gpu/NOTICE`). Peaks are dense. Cards without NVLink have the bandwidth of PCIe between them, whatever the file says.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from quantadvisor.documents import BadInput, GpuModel

FOLDER = Path(__file__).parent / "gpu"


@cache
def gpus() -> Mapping[str, GpuModel]:
    """Name -> GPU, in the order of the file."""
    found = json.loads((FOLDER / "devices.json").read_text(encoding="utf-8"))
    return {name: GpuModel.model_validate({"name": name, **entry}) for name, entry in found["devices"].items()}


@cache
def gpu(name: str, where: str = "--device") -> GpuModel:
    """`h100`, `H100_SXM` and `nvidia h100 sxm` are one GPU; BadInput names the nearest."""
    wanted = plain(name)
    names = {plain(known): known for known in gpus()} | {plain(a): g.name for g in gpus().values() for a in g.also}
    if wanted in names:
        return gpus()[names[wanted]]
    near = difflib.get_close_matches(wanted, names, 1, 0.5)
    mend = f"did you mean {names[near[0]]}? " if near else ""
    raise BadInput(where, f"{name!r} is no GPU that is known here", f"{mend}Known: {', '.join(gpus())}")


def plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum())
