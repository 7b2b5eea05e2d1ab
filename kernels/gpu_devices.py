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


DRIVER_NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100_sxm",
    "NVIDIA A100 80GB PCIe": "a100_pcie",
    "NVIDIA A30": "a30",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA H100 80GB HBM3": "h100_sxm",
    "NVIDIA H100 PCIe": "h100_pcie",
    "NVIDIA H200": "h200_sxm",
    "NVIDIA B200": "b200_sxm",
    "NVIDIA B300 SXM6 AC": "b300_sxm",
    "NVIDIA GB200": "gb200",
    "NVIDIA GB300": "gb300",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx_pro_6000_server",
}
"""What the driver (nvidia-smi) calls them. Not here: variants of other memory or power, such as the A100 of 40 GB."""
SAME_MEMORY = 0.08
"""By which the driver's memory may differ from the data sheet's (reserved parts, GiB against GB); an instance (MIG) has less."""


def known_gpu(name: str, memory_bytes: int) -> GpuModel | None:
    """The data sheet of a GPU by the driver's name; None for one that is not known here, or for part of one."""
    found = gpus().get(DRIVER_NAMES.get(name, ""))
    if found is None or abs(memory_bytes / found.memory_bytes - 1) > SAME_MEMORY:
        return None
    return found


def plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum())
