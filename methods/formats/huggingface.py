"""Hugging Face folders rewritten tensor by tensor: what every format of safetensors is written through.

The result is `model.safetensors` or, where it is larger than SHARD_BYTES, several files and their index, however many the
source has: memory holds one file of the result and one tensor of the source. Its config gets new settings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..affine import Floats, Grouped, refuse_beyond_half, refuse_not_finite
from ..rescale import Pair, Scale, pairs, tensor_factors
from .folders import new_folder

Named = tuple[str, Any]
"""(name, torch tensor)"""
Change = Callable[[str, Any], Iterable[Named]]
"""(name, tensor) -> what is stored in its place"""
INDEX = "model.safetensors.index.json"
AUTOGPTQ = "quantize_config.json"
LEFT_BEHIND = (INDEX, "built.json", AUTOGPTQ)
SHARD_BYTES = 1 << 30
"""Of tensors, after which a file of the result is full."""


def rewrite(
    source: Path, out: Path, change: Change, settings: Mapping[str, Any], moves: Iterable[tuple[Pair, Scale]] = ()
) -> None:
    """The folder again: scales of `moves` moved, every tensor through `change`, the config with `settings`
    (None: without that key)."""
    factors = tensor_factors(moves)
    with new_folder(out) as work:
        read = (each for path in shards(source) for each in tensors(path))
        write_tensors(work, (new for name, w in read for new in change(name, factors(name, w))))
        for path in sorted(source.iterdir()):
            if path.name == "config.json":
                config = json.loads(path.read_text()) | dict(settings)
                config = {key: value for key, value in config.items() if value is not None or key not in settings}
                (work / path.name).write_text(json.dumps(config, indent=2) + "\n")
            elif path.is_file() and path.suffix != ".safetensors" and path.name not in LEFT_BEHIND:
                shutil.copyfile(path, work / path.name)


def write_tensors(folder: Path, made: Iterable[Named]) -> None:
    """Into one file or several, as many as it takes, in the order in which they come."""
    from safetensors.torch import save_file

    written: list[list[str]] = []
    for part in filled(made):
        save_file(part, folder / f"{len(written)}.part", metadata={"format": "pt"})
        written.append(list(part))
        part.clear()
    names = [f"model-{at:05}-of-{len(written):05}.safetensors" for at in range(1, len(written) + 1)]
    if len(written) == 1:
        names = ["model.safetensors"]
    for at, name in enumerate(names):
        (folder / f"{at}.part").rename(folder / name)
    if len(written) > 1:
        places = {tensor: name for name, part in zip(names, written, strict=True) for tensor in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2) + "\n")


def filled(made: Iterable[Named]) -> Iterator[dict[str, Any]]:
    """The tensors in parts of SHARD_BYTES, or more by a tensor; the last may be smaller."""
    part: dict[str, Any] = {}
    held = 0
    for name, w in made:
        part[name] = w.contiguous()
        held += w.nbytes
        if held >= SHARD_BYTES:
            yield part
            part, held = {}, 0
    if part:
        yield part


def shards(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def tensors(path: Path) -> Iterator[Named]:
    """Each from a mapping of its own, so that no more of the file stays in memory than is still held. CandidateFailed for one
    with a value that is not finite."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = list(file.keys())
    for name in names:
        with safe_open(path, "pt") as file:
            value = file.get_tensor(name)
        extremes(name, value)
        yield name, value


def check_finite(folder: Path) -> None:
    """CandidateFailed where a tensor of the folder has a value that is not finite: for exporters that read it themselves."""
    for path in shards(folder):
        for _ in tensors(path):
            pass


def extremes(name: str, value: Any) -> tuple[float, float]:
    """The least and the largest value of a float tensor, without a copy of it; (0, 0) of any other. CandidateFailed where one is
    not finite: a NaN among values is their largest."""
    import torch

    if not value.is_floating_point() or not value.numel():
        return 0.0, 0.0
    low, high = (float(end) for end in torch.aminmax(value.float() if value.element_size() == 1 else value))
    refuse_not_finite(low, high, name=name)
    return low, high


def in_half(name: str, weight: Any, kind: str) -> Named:
    """A float tensor in 16 bit (`bfloat16` or `float16`), any other as it is. CandidateFailed for values beyond float16."""
    import torch

    if kind == "float16":
        low, high = extremes(name, weight)
        refuse_beyond_half(name, max(-low, high))
    return name, weight.to(getattr(torch, kind)) if weight.is_floating_point() else weight


def linear_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Callable[[], Floats]]:
    """{linear of the decoder: a function that reads its weight, float32 [N, K]}."""
    from safetensors import safe_open

    wanted = {f"{name}.weight": name for pair in pairs(config) for name in pair.targets}
    places: dict[str, Path] = {}
    for path in shards(folder):
        with safe_open(path, "pt") as file:
            places |= {wanted[name]: path for name in file.keys() if name in wanted}  # noqa: SIM118 (no mapping)

    def read(name: str) -> Floats:
        with safe_open(places[name], "pt") as file:
            stored = file.get_tensor(f"{name}.weight")
        extremes(f"{name}.weight", stored)
        weight: Floats = stored.float().numpy()
        return weight

    return {name: partial(read, name) for name in places}


Store = Callable[[Grouped], dict[str, Any]]
"""integers of one linear -> {suffix: array}"""


def write_integers(source: Path, out: Path, given: Mapping[str, Callable[[], Grouped]], store: Store, kind: str,
                   settings: Mapping[str, Any], moves: Iterable[tuple[Pair, Scale]] = ()) -> None:  # fmt: skip
    """Linears of `given` become what `store` makes of their integers, every other tensor is rounded to `kind`."""
    import numpy as np
    import torch

    def change(name: str, weight: Any) -> Iterable[Named]:
        linear = name.removesuffix(".weight")
        if linear not in given:
            return [in_half(name, weight, kind)]
        stored = store(given[linear]())
        return [in_half(f"{linear}.{suffix}", torch.from_numpy(np.ascontiguousarray(w)), kind) for suffix, w in stored.items()]

    rewrite(source, out, change, {"dtype": kind, **settings}, moves)


def read_linears(folder: Path, suffixes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{linear: {suffix: numpy array}} of a folder whose linears are stored as these; bfloat16 comes as float32."""
    import torch

    wanted, found = tuple(suffixes), dict[str, dict[str, Any]]()
    for path in shards(folder):
        for name, value in tensors(path):
            for suffix in wanted:
                if name.endswith(f".{suffix}"):
                    array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
                    found.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = array
    first = wanted[0]
    return {name: arrays for name, arrays in found.items() if first in arrays}


def settings_of(folder: Path) -> dict[str, Any]:
    """`quantization_config` of a folder, or what AutoGPTQ wrote beside a config without one; empty where it has neither."""
    found: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text()).get("quantization_config") or {}
    return found or autogptq_settings(folder)


def autogptq_settings(folder: Path) -> dict[str, Any]:
    """`quantize_config.json` as the `quantization_config` that it stands for; empty where there is none."""
    file = Path(folder) / AUTOGPTQ
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return {"quant_method": "gptq", **found} if "bits" in found else {}
