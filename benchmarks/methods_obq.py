"""OBQ on the embedded model: the whole of it takes days, so a few rows of every linear of some layers, against GPTQ and RTN.

The output error of a row of weights under the Hessian of its inputs,  dw^T H dw / w^T H w,  is all that either method looks
at. Both round the same rows to the same grids, RTN to its min-max ones, for inputs that the unrounded model gives. A record a
linear, made once for the code of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from methods_rows import Greedy, Known, append, code_of

from quantadvisor.advisor.context import Context
from quantadvisor.kernels.timing import figure
from quantadvisor.methods import gptq, obq
from quantadvisor.methods.affine import Floats, dequantize_groups, quantize_groups
from quantadvisor.methods.layerwise import SAMPLES, Square, evenly, hessian
from quantadvisor.methods.refusals import config
from quantadvisor.methods.rescale import pairs
from quantadvisor.methods.schemes import group_format, scheme
from quantadvisor.methods.stream import Parts, stream

SCHEME = "w4-g64"
LAYERS, ROWS = 6, 4
"""Layers evenly through the model, rows evenly through each of their linears."""
CODE = ("affine", "gptq", "layerwise", "obq")
"""Modules of methods/ that a record depends on."""


def fill(context: Context, known: Known, kept: Path, redo: bool = False) -> None:
    """Every linear that is not known yet of the code as it is, into `known` and the file. `redo`: the known ones too."""
    layers = set(np.linspace(0, context.inventory.layers - 1, LAYERS).astype(int).tolist())
    every = (name for pair in pairs(config(context.model_folder)) for name in pair.targets)
    code = code_of(*CODE)
    done = {name for name, one in known.greedy.items() if one.code == code and not redo}
    todo = {name for name in every if int(name.split(".")[2]) in layers} - done
    weights = scheme(SCHEME).weights
    assert weights is not None
    grid = group_format(weights)

    def visit(targets: tuple[str, ...], x: Parts, rows: list[Floats]) -> None:
        if todo.isdisjoint(targets):
            return
        h = hessian(x)
        for name, w in zip(targets, rows, strict=True):
            if name not in todo:
                continue
            some = np.ascontiguousarray(w[np.linspace(0, len(w) - 1, ROWS).astype(int)])
            made = {"rtn": quantize_groups(some, *grid), "gptq": gptq.solve(some, h, grid), "obq": obq.solve(some, h, grid)}
            error = {key: share(some, dequantize_groups(*one, grid.group), h) for key, one in made.items()}
            record = Greedy(model=context.source.sha256[:12], name=name, scheme=SCHEME, rows=ROWS, code=code, **error)
            known.add(record)
            append(kept, record)
            print(f"{name}: " + ", ".join(f"{key} {value:.2e}" for key, value in error.items()), flush=True)

    if todo:
        stream(context.model_folder, evenly(np.load(context.calibration_file(SAMPLES)), SAMPLES), visit)


def share(w: Floats, rounded: Floats, h: Square) -> float:
    """Of w^T H w, all rows together, that rounding left as error."""
    lost, whole = (float(np.sum((each @ h) * each)) for each in (rounded.astype(np.float64) - w, w.astype(np.float64)))
    return lost / whole


def section(found: Mapping[str, Greedy]) -> str:
    """Markdown: error over RTN's, the geometric mean over linears and its interval."""
    rows = list(found.values())
    parts = [f"{name.upper()} {over(rows, name, 'rtn')} of RTN's" for name in ("gptq", "obq")]
    return (
        f"Output error of {rows[0].rows} rows in each of {len(rows)} linears of SmolLM2-135M ({rows[0].scheme}), median over"
        f" linears and its 95 % interval: {', '.join(parts)}; OBQ {over(rows, 'obq', 'gptq')} of GPTQ's.\n"
    )


def over(rows: Sequence[Greedy], name: str, other: str) -> str:
    found = figure([getattr(row, name) / getattr(row, other) for row in rows])
    return f"{found.median:.3f} [{found.low:.3f}, {found.high:.3f}]"
