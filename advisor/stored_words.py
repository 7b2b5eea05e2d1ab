"""Words for what a checkpoint stores, shared by the readers of each format: schemes, counts, and JSON that may be broken."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput, Format, Scheme
from quantadvisor.methods.schemes import scheme

MIXED_SHARE = 0.1
"""Linears in the rarer of 4 and 8 bit, from which on a checkpoint is called mixed."""
GIVE = "give a GGUF file, or an ONNX, OpenVINO or Hugging Face folder, such as DIR/artifact of advisor run"


def named(bits: Counter[int], group: int | None, activations: str | None, cache: bool, head_quantized: bool) -> Scheme:
    """The scheme in this project's words. `bits`: linears by bits. `activations`: None, "token", "tensor" or "static"."""
    mixed = min(bits[4], bits[8]) > MIXED_SHARE * sum(bits.values())
    tail = "-kv8" if cache else ""
    if activations is not None:
        made = scheme("w8a8" + {"token": "", "tensor": "-tensor", "static": "-static"}[activations] + tail)
    elif not bits:
        made = scheme("fp32" + tail)
    elif group:
        made = scheme(f"w{'4w8' if mixed else most(bits)}-g{group}{tail}")
    else:
        weights = Format(number="int", bits=most(bits), granularity="channel")
        named_so = {"name": f"w{most(bits)}{tail}", "weights": weights, "lm_head": weights}
        made = scheme("fp32" + tail).model_copy(update=named_so)
    return made if head_quantized or made.weights is None else made.model_copy(update={"lm_head": None, "embeddings": None})


def json_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(str(path), f"not JSON ({error})", "download it again") from None
    return found if isinstance(found, dict) else {}


def most(counts: Counter[int]) -> int:
    """The most frequent value; 0 where there is none."""
    return counts.most_common(1)[0][0] if counts else 0
