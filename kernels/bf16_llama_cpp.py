"""llama.cpp's bfloat16 product: what its unquantized models run."""

from __future__ import annotations

from functools import partial

from quantadvisor.documents import Scheme

from . import ggml_graph
from .schemes import BF16

scheme: Scheme = BF16
runtime = "llama.cpp"
options: tuple[str, ...] = ("",)

TYPE = "bf16"
refuse = partial(ggml_graph.refuse, TYPE)
arithmetic = partial(ggml_graph.arithmetic, TYPE)
prepare = partial(ggml_graph.prepare, TYPE)
reference = partial(ggml_graph.reference, TYPE)
