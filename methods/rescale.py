"""Where a scale can move between neighbouring tensors of a Llama-like model without changing what it computes.

With s > 0 per channel, dividing what a source writes by s and multiplying the columns that read it by s is exact for

    norm  -> every linear that reads the norm      (q, k, v; gate, up)
    v     -> o       attention averages over tokens, never over channels; query heads of one group share s
    up    -> down    the product act(gate) * up is linear in up

SmoothQuant (arXiv:2211.10438) chooses s by ranges; `reparametrise` draws it at random, to take a model whose weights
lie on some quantization grid off that grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import BadInput

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Pre-norm RMSNorm blocks with q/k/v/o_proj and gate/up/down_proj. Gemma's norms store weight - 1; Phi-3 fuses."""

Scale = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """`source` (a norm or a linear) writes what `targets` (linears) read. `repeat`: query heads a key head."""

    source: str
    targets: tuple[str, ...]
    norm: bool
    heads: int = 0
    repeat: int = 1

    def spread(self, scale: Scale) -> Scale:
        """scale: [source channels] -> [target columns]: each key head's part once per query head of its group."""
        if self.repeat == 1:
            return scale
        return np.repeat(scale.reshape(self.heads, -1), self.repeat, axis=0).reshape(-1)

    def gather(self, bound: Scale) -> Scale:
        """Largest value per source channel: [target columns] -> [source channels]."""
        if self.repeat == 1:
            return bound
        most: Scale = bound.reshape(self.heads, self.repeat, -1).max(axis=1).reshape(-1)
        return most


def mapping_missing(config: Mapping[str, Any]) -> str | None:
    """Why this architecture cannot be rescaled; None when it can."""
    found = config.get("model_type")
    if found not in MODEL_TYPES:
        return f"no map of norms and linears for model_type {found!r}; known are {', '.join(MODEL_TYPES)}"
    return None


def pairs(config: Mapping[str, Any], linear: bool = True) -> tuple[Pair, ...]:
    """All pairs, layer by layer, by Hugging Face names; without v -> o and up -> down when `linear` is False."""
    if refused := mapping_missing(config):
        raise BadInput("model_type", refused)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    found: list[Pair] = []
    for layer in range(config["num_hidden_layers"]):
        root = f"model.layers.{layer}"
        attention, mlp = f"{root}.self_attn", f"{root}.mlp"
        reads = tuple(f"{attention}.{name}_proj" for name in "qkv")
        found.append(Pair(f"{root}.input_layernorm", reads, norm=True))
        if linear:
            found.append(Pair(f"{attention}.v_proj", (f"{attention}.o_proj",), False, kv_heads, heads // kv_heads))
        found.append(Pair(f"{root}.post_attention_layernorm", (f"{mlp}.gate_proj", f"{mlp}.up_proj"), norm=True))
        if linear:
            found.append(Pair(f"{mlp}.up_proj", (f"{mlp}.down_proj",), norm=False))
    return tuple(found)


def move(state: MutableMapping[str, Any], pair: Pair, scale: Scale) -> None:
    """Divide the source of a torch state dict by `scale` and multiply its readers' columns, in place."""
    import torch

    divisor, factor = torch.from_numpy(scale), torch.from_numpy(pair.spread(scale))
    weight = state[f"{pair.source}.weight"]
    weight.div_(divisor if pair.norm else divisor[:, None])
    if f"{pair.source}.bias" in state:
        state[f"{pair.source}.bias"].div_(divisor)
    for target in pair.targets:
        state[f"{target}.weight"].mul_(factor)


def tensor_factors(moves: Iterable[tuple[Pair, Scale]]) -> Callable[[str, Any], Any]:
    """(name, torch tensor) -> the tensor with every scale of `moves` in it: what `move` does, one tensor at a time."""
    rows: dict[str, Scale] = {}
    columns: dict[str, Scale] = {}
    for pair, scale in moves:
        rows |= dict.fromkeys((f"{pair.source}.weight", f"{pair.source}.bias"), scale)
        columns |= dict.fromkeys((f"{target}.weight" for target in pair.targets), pair.spread(scale))

    def moved(name: str, tensor: Any) -> Any:
        import torch

        if name in rows:
            divisor = torch.from_numpy(rows[name])
            tensor = tensor / (divisor if tensor.ndim == 1 else divisor[:, None])
        return tensor * torch.from_numpy(columns[name]) if name in columns else tensor

    return moved


def reparametrise(state_dict: MutableMapping[str, Any], config: Any, seed: int = 0) -> None:
    """Move random scales, log-uniform in [0.5, 2], through every pair: same function, weights off any grid.

    `state_dict`: float32 torch tensors by Hugging Face names, changed in place. `config`: its config, object or dict.
    """
    values = config if isinstance(config, Mapping) else config.to_dict()
    draw = np.random.default_rng(seed)
    for pair in pairs(values):
        weight = state_dict[f"{pair.source}.weight"]
        if str(weight.dtype) != "torch.float32":
            raise BadInput(pair.source, f"the weights are {weight.dtype}", "convert the model to float32 first")
        scale = np.exp2(draw.uniform(-1, 1, weight.shape[0])).astype(np.float32)
        move(state_dict, pair, scale)
