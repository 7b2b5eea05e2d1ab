"""llama.cpp's Q4_0 product: blocks of 32 weights with one scale; activations are rounded to Q8_0 in blocks of 32 too."""

from __future__ import annotations

from functools import partial

from quantadvisor.documents import Scheme

from . import ggml_graph
from .schemes import W4_BLOCKS

scheme: Scheme = W4_BLOCKS
runtime = "llama.cpp"
options: tuple[str, ...] = ggml_graph.OPTIONS

TYPE = "q4_0"
refuse = partial(ggml_graph.refuse, TYPE)
arithmetic = partial(ggml_graph.arithmetic, TYPE)
prepare = partial(ggml_graph.prepare, TYPE)
reference = partial(ggml_graph.reference, TYPE)
