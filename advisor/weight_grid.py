"""Do float weights lie on a low-bit grid? A checkpoint may have been quantized and stored as float again.

32 neighbours along K hold at most 2^bits distinct values where their group is quantized to `bits`; 32 values of a model
that never was are nearly all distinct, in bf16 too. A whole row of at most 256 values is an 8-bit grid per channel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BLOCK = 32
ROWS = 64
TENSORS = 8
LEAST_BLOCKS = 0.95
"""Share of the sampled blocks that must lie on the grid."""


def grid_of(files: list[Path]) -> str | None:
    """`4-bit grid (…)` where the sampled linears lie on one, else None. Reads 64 rows of 8 tensors."""
    from safetensors import safe_open

    found: list[str | None] = []
    names = sorted((name, file) for file in files for name in _matrices(file))
    for name, file in names[:: max(1, len(names) // TENSORS)][:TENSORS]:
        with safe_open(file, "pt") as opened:
            rows = opened.get_slice(name)[:ROWS]
        found.append(grid_of_rows(rows.float().numpy()))
    if not found or None in found:
        return None
    return f"{max(str(name) for name in found)} (values of {len(found)} sampled linears stored as float)"


def grid_of_rows(rows: Any) -> str | None:
    """`2-bit grid`, `3-bit grid`, `4-bit grid` or `8-bit grid` of `rows`: [R, K], or None."""
    import numpy as np

    width = rows.shape[1] // BLOCK * BLOCK
    if width == 0:
        return None
    blocks = np.sort(rows[:, :width].reshape(-1, BLOCK), axis=1)
    distinct = 1 + (np.diff(blocks, axis=1) != 0).sum(axis=1)
    distinct = distinct[distinct > 1]  # blocks of one value (padding, pruned) say nothing
    for bits in (2, 3, 4):
        if len(distinct) and (distinct <= 2**bits).mean() >= LEAST_BLOCKS:
            return f"{bits}-bit grid"
    ordered = np.sort(rows, axis=1)
    per_row = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1)
    return "8-bit grid" if rows.shape[1] >= 512 and (per_row <= 256).mean() >= LEAST_BLOCKS else None


def _matrices(file: Path) -> list[str]:
    """Names of the linears of one file: two dimensions, no embedding, no head."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return [
            name
            for name in opened.keys()  # noqa: SIM118
            if len(opened.get_slice(name).get_shape()) == 2 and "embed" not in name and "lm_head" not in name
        ]
