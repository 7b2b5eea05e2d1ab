"""AutoAWQ's layout: bit for bit there and back, and AutoAWQ's own unpacking and linear agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantadvisor.documents import BadInput
from quantadvisor.methods.affine import Grouped, dequantize_groups
from quantadvisor.methods.formats import awq

from .integers import brought, integers, same


def autoawq() -> ModuleType:
    """awq/utils/packing_utils.py alone: the package's own import wants transformers of its time."""
    package = importlib.util.find_spec("awq")
    if package is None or not package.submodule_search_locations:
        pytest.skip("autoawq is not installed")
    path = Path(package.submodule_search_locations[0]) / "utils" / "packing_utils.py"
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("group", "symmetric"), [(32, False), (32, True), (64, False)])
def test_bit_for_bit_there_and_back(group: int, symmetric: bool, llama: Path, tmp_path: Path) -> None:
    found = integers(llama, 4, group, symmetric, "float16")
    awq.write(llama, tmp_path / "out", brought(found), (4, group, symmetric))
    again, form = awq.read(tmp_path / "out")
    assert form == (4, group, False)
    same(found, again)


def test_by_the_definition_of_the_words(llama: Path, tmp_path: Path) -> None:
    found = integers(llama, 4, 32, False, "float16")
    name, one = next(iter(found.items()))
    awq.write(llama, tmp_path / "out", brought(found), (4, 32, False))
    words = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.qweight"].numpy().view(np.uint32)
    for nibble, channel in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        np.testing.assert_array_equal((words[:, 0] >> np.uint32(4 * nibble)) & 15, one.codes[channel])


def test_autoawq_unpacks_the_same_weights(llama: Path) -> None:
    theirs = autoawq()
    for one in list(integers(llama, 4, 32, False, "float16").values())[:4]:
        stored = {key: torch.from_numpy(array) for key, array in awq.stored(one).items()}
        got = theirs.dequantize_gemm(stored["qweight"], stored["qzeros"], stored["scales"].float(), 4, 32)
        np.testing.assert_array_equal(got.numpy().T, dequantize_groups(*one, 32))


def test_what_it_cannot_hold_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="awq holds integers of 4 bits, not of 8; take the layout gptq"):
        awq.write(llama, tmp_path / "out", {}, (8, 32, False))
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="no multiple of 8"):
        awq.stored(Grouped(np.zeros((7, 64), np.uint8), np.ones((7, 2), np.float32), np.zeros((7, 2), np.uint8)))
    with pytest.raises(BadInput, match="no AWQ checkpoint"):
        awq.read(llama)
