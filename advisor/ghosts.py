"""Ghosts: random-weight artifacts of the right shapes, packing and options, run whole in the real runtime.

At full depth: below about twice the last-level cache per step a shallow ghost would stay in the caches and flatter decode
(measured: 40 % off). Two depths extrapolated, for models too large for that, are still to come.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantadvisor.documents import Ghost, write_text
from quantadvisor.kernels.timing import figure
from quantadvisor.profiling.measure import Round, peak_of


def ghost_of(
    scheme: str,
    runtime: str,
    options: tuple[str, ...],
    depth: int,
    rounds: Sequence[Round] = (),
    refused: str | None = None,
) -> Ghost:
    """The document of a ghost's rounds, or of why it did not run."""
    return Ghost(
        scheme=scheme,
        runtime=runtime,
        options=options,
        depth=depth,
        ttft_s=figure([r.ttft_s for r in rounds]) if rounds else None,
        tpot_s=figure([gap for r in rounds for gap in r.itl_s]) if rounds else None,
        peak_bytes=peak_of(rounds) if rounds else None,
        refused=refused,
    )


def ghost_folder(model_folder: Path, depth: int, out: Path) -> Path:
    """A Hugging Face folder of `depth` layers with random fp32 weights, from the config alone; made once."""
    if out.exists():
        return out
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_folder)
    config.num_hidden_layers = depth
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    tied = set(getattr(shell, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    state = {name: random_tensor(tensor, generator) for name, tensor in shell.state_dict().items() if name not in tied}
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(state, scratch / "model.safetensors", metadata={"format": "pt"})
    write_config(model_folder, scratch, depth)
    scratch.rename(out)
    return out


def random_tensor(tensor: Any, generator: Any) -> Any:
    """Vectors (norms) are ones, matrices N(0, 0.02): the logits stay finite."""
    import torch

    if tensor.dim() < 2:
        return torch.ones(tensor.shape)
    return torch.empty(tensor.shape).normal_(0.0, 0.02, generator=generator)


def write_config(model_folder: Path, out: Path, depth: int) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    config["num_hidden_layers"] = depth
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:depth]
    write_text(out / "config.json", json.dumps(config, indent=1))
    for path in model_folder.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "config.json" and "index" not in path.name:
            shutil.copy(path, out / path.name)
