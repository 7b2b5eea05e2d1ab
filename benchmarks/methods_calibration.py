"""How many calibration samples matter: KL of methods that calibrate, at 32 to 256 samples as in table 4
of LLM-FP4 (arXiv:2310.16836).

Simulated on the embedded model as the rows are, each method on the same samples; what a method reads of them by default (GPTQ
and AWQ 64, the others all that the spec asks for, 128) is not cut here. Records like all others, made once for
a method's code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from methods_rows import Known, Samples, append, code_of

from quantadvisor.advisor.context import CALIBRATION_LENGTH, EVALUATION_TOKENS, Context
from quantadvisor.advisor.risk import fake_of, score
from quantadvisor.advisor.survey import make_reference
from quantadvisor.methods.fake import applied
from quantadvisor.methods.layerwise import evenly
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.quality import quality_of
from quantadvisor.profiling.text import calibration_tokens

SIZES = (32, 64, 128, 256)
METHODS = {"gptq": "w4-g64", "static_int8": "w8a8-static", "fpq_activations": "w4a4-fp"}
CODE = {
    "gptq": ("affine", "fake", "gptq", "layerwise"),
    "static_int8": ("affine", "clipping", "fake", "grids", "observe", "static_int8"),
    "fpq_activations": ("fake", "fpq_activations", "grids", "observe"),
}
"""Modules of methods/ that a method's records depend on."""


def due(known: Known, redo: bool = False) -> list[tuple[str, str, int]]:
    """(method, scheme, samples): not known yet of the method's code as it is. `redo`: the known ones too."""

    def is_due(name: str, made: str, size: int) -> bool:
        one = known.samples.get((f"{name}-{made}", size))
        return redo or one is None or one.code != code_of(*CODE[name])

    return [(name, made, size) for size in SIZES for name, made in METHODS.items() if is_due(name, made, size)]


def fill(context: Context, text: str, known: Known, kept: Path, redo: bool = False) -> None:
    """Each method x size that is due, into `known` and the file. `text`: digest of that which judges."""
    todo = due(known, redo)
    if not todo:
        return
    model = load(context.model_folder)
    calibration, _ = calibration_tokens(context.model_folder, max(SIZES), CALIBRATION_LENGTH)
    windows, want = context.windows(EVALUATION_TOKENS), np.load(make_reference(context), mmap_mode="r")
    for name, made, size in ((name, scheme(made), size) for name, made, size in todo):
        own = fake_of(name, context.model_folder)
        assert own is not None
        start = time.process_time()
        with applied(own(model, made, evenly(calibration, size))) as logits:
            spent = time.process_time() - start
            kl = quality_of(score(logits, windows, want), context.evaluation[1].name, simulated=True).kl
        row = Samples(
            model=context.source.sha256[:12], text=text, name=f"{name}-{made.name}", samples=size,
            length=calibration.shape[1], kl=kl, apply_cpu_s=spent, code=code_of(*CODE[name]),
        )  # fmt: skip
        known.add(row)
        append(kept, row)
        print(f"{row.name} from {size} samples: KL {kl.mean:.4f} ({spent:.0f} CPU s)", flush=True)


def section(found: Mapping[tuple[str, int], Samples]) -> str:
    """Markdown: a line a method, a column a size; a later size is marked where it differs from the one before it."""
    sizes = sorted({size for _, size in found})
    lines = ["| method-scheme | " + " | ".join(f"{size} samples" for size in sizes) + " |", "|---|" + "---:|" * len(sizes)]
    for name in dict.fromkeys(name for name, _ in found):
        lines.append(f"| `{name}` | " + " | ".join(cells([found.get((name, size)) for size in sizes])) + " |")
    length = next(iter(found.values())).length
    return (
        f"Samples of {length} tokens; KL, nats, of the same evaluation text as above; CPU seconds.\n\n" + "\n".join(lines) + "\n"
    )


def cells(row: Sequence[Samples | None]) -> list[str]:
    return [f"{one.kl.mean:.4f} [{one.kl.low:.4f}, {one.kl.high:.4f}], {one.apply_cpu_s:.0f} s" if one else "" for one in row]
