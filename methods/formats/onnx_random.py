"""The graph of an ONNX folder with random weights in every linear: what ghosts are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .onnx_base import Rewrite, linears


def randomise(base: Path, out: Path, seed: int = 0) -> None:
    """N(0, 0.02) in the place of every linear's float32 weight; a tied embedding table follows its lm_head."""
    draw = np.random.default_rng(seed)
    with Rewrite(base, out) as edit:
        for name in dict.fromkeys(node.input[1] for node in linears(edit.model).values()):
            shape = tuple(edit.old[name].dims)
            edit.drop(name)
            edit.add(name, draw.standard_normal(shape, np.float32) * np.float32(0.02))
