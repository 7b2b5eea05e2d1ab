"""Ghosts: random-weight artifacts of the right shapes, packing and options, run whole in the real runtime.

They are made from the fp32 export of the model, every linear's weight drawn anew (methods/formats), and packed by the
same methods. At full depth: below about twice the last-level cache per step a shallow ghost would stay in the caches and
flatter decode (measured: 40 % off). Two depths extrapolated, for models too large for that, are still to come.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import Ghost, Scheme
from quantadvisor.kernels.timing import figure
from quantadvisor.profiling.gpu_state import state_of
from quantadvisor.profiling.measure import Round, peak_of


def ghost_of(
    scheme: str,
    runtime: str,
    options: tuple[str, ...],
    depth: int,
    rounds: Sequence[Round] = (),
    refused: str | None = None,
    unused: str | None = None,
) -> Ghost:
    """The document of a ghost's rounds, or of why it did not run."""
    return Ghost(
        scheme=scheme,
        runtime=runtime,
        options=options,
        depth=depth,
        ttft_s=figure([r.ttft_s for r in rounds]) if rounds else None,
        tpot_s=figure([r.tpot_s for r in rounds]) if rounds else None,
        peak_bytes=peak_of(rounds) if rounds else None,
        refused=refused,
        unused=unused,
        gpu=state_of([r.gpu for r in rounds]),
    )


def ghost_method(method: str, scheme: Scheme) -> str:
    """Random weights need no search: the operators are those of plain rounding. LLM.int8() keeps its second product: over the
    outlier channels of the model itself, found as for the artifact."""
    if method in ("smoothquant", "smoothquant_gptq", "rotation", "llm_qat") and scheme.activations is not None:
        return "dynamic_int8" if scheme.activations.dynamic else "static_int8"
    if method in ("gptq", "awq", "obq", "lkd", "gptq_lora"):
        return "rtn"
    return {"gguf_imatrix": "gguf", "qlora": "kbit", "qlora_merged": "kbit"}.get(method, method)
