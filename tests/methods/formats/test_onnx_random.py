"""Random weights in the same graph: the operators, the tied table and the size stay, the function does not."""

from pathlib import Path

import numpy as np

from quantadvisor.methods.formats import onnx
from quantadvisor.methods.formats.onnx_base import Rewrite, linears, load_graph

from ..conftest import run


def test_a_random_twin_differs_in_nothing_but_the_linears(base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    onnx.randomise(base, tmp_path / "ghost")
    before, after = load_graph(base), load_graph(tmp_path / "ghost")
    assert [node.op_type for node in before.graph.node] == [node.op_type for node in after.graph.node]
    sizes = [(folder / "model.onnx.data").stat().st_size for folder in (base, tmp_path / "ghost")]
    assert abs(sizes[0] - sizes[1]) < 8192  # tensors start on pages, in another order
    drawn = {node.input[1] for node in linears(before).values()}
    with Rewrite(base, tmp_path / "a") as old, Rewrite(tmp_path / "ghost", tmp_path / "b") as new:
        for name in old.old:
            same = np.array_equal(old.tensor(name), new.tensor(name))
            assert same == (name not in drawn), name
            if name in drawn:
                assert 0.018 < new.tensor(name).std() < 0.022
    assert np.isfinite(run(tmp_path / "ghost", tokens[0])).all()
