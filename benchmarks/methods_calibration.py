"""How many calibration samples matter: KL of methods that calibrate, at 32 to 256 samples as in table 4
of LLM-FP4 (arXiv:2310.16836).

Simulated on the embedded model as the rows are, each method on the same samples; what a method reads of them by default (GPTQ
and AWQ 64, the others all that the spec asks for, 128) is not cut here. Records like all others, made once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from methods_rows import Known, Samples, append

from quantadvisor.advisor.context import EVALUATION_TOKENS, Context
from quantadvisor.advisor.risk import fake_of, score
from quantadvisor.advisor.survey import make_reference
from quantadvisor.methods.fake import applied
from quantadvisor.methods.layerwise import evenly
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.quality import quality_of

SIZES = (32, 64, 128, 256)
METHODS = {"gptq": "w4-g64", "static_int8": "w8a8-static", "fpq_activations": "w4a4-fp"}


def fill(context: Context, text: str, known: Known, kept: Path) -> None:
    """Each method x size that is not known yet, into `known` and the file. `text`: digest of that which judges."""
    todo = [(*each, size) for size in SIZES for each in METHODS.items() if ("-".join(each), size) not in known.samples]
    if not todo:
        return
    model = load(context.model_folder)
    calibration = np.load(context.calibration_file(max(SIZES)))
    if len(calibration) < max(SIZES):
        raise SystemExit(f"the calibration text has {len(calibration)} samples, {max(SIZES)} are asked for")
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
            length=calibration.shape[1], kl=kl, apply_cpu_s=spent,
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
