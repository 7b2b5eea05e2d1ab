"""Does this CPU multiply uint8 by int8 exactly?

x86 without VNNI or AMX sums pairs of such products in 16 bits (VPMADDUBSW), which saturate: 255 x 127 x 2 > 32,767. ONNX
Runtime uses that instruction for int8 weights all the same, and for uint8 weights another one that is exact and slower. On
such a CPU weights of `w8a8` therefore take zero point 128, and `w7a8` (7 bits in int8, ONNX Runtime's `reduce_range`) competes
with it. Seen on a Zen 3 with ONNX Runtime 1.31: every product of a random 576 x 576 was wrong, by up to 0.9 of their standard
deviation, and SmolLM2's KL per tensor 11.8 nats.

OpenVINO uses the same instruction and has no other: its weights take 7 bits there (255 x 63 x 2 = 32,130), as NNCF's
overflow fix has it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

LARGEST_EXACT = 64
"""255 x 64 x 2 = 32,640: the largest int8 weight in magnitude whose sums cannot saturate; `reduce_range` writes up to it."""
EXACT = {"avx_vnni", "avx512_vnni", "amx_int8"}


@cache
def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    flags = next((set(line.partition(":")[2].split()) for line in text.splitlines() if line.startswith("flags")), set[str]())
    return "avx2" in flags and not flags & EXACT


def most_exact() -> int:
    """The largest int8 weight whose products with uint8 sum exactly in pairs on this CPU."""
    return 63 if saturates() else 127
