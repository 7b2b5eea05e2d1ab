"""The page of the proving table, docs/methods.md, from its records. Pure text; computes nothing but comparisons."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

from methods_calibration import section as calibration_section
from methods_distortion import Distortion
from methods_distortion import section as distortion_section
from methods_encoder import section
from methods_obq import section as greedy_section
from methods_oracles import ORACLES, TESTS
from methods_rows import EARLIER, Known, Row, Speed, Verdict, outdated, twins

from quantadvisor.advisor.context import EVALUATION_TOKENS, Context
from quantadvisor.documents import Figure, Interval, Inventory
from quantadvisor.methods.registry import METHODS
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.ledger import bytes_of_cache
from quantadvisor.profiling.text import TextSource


class Order(NamedTuple):
    """What the literature lets one expect on average; `otherwise`: why it does not hold, where that was found out."""

    what: str
    better: str
    worse: str
    otherwise: str = ""


ROUNDED_BIASES = (
    "A pre-shifted bias is a rounded one and clips up to 0.7 of a channel's largest value: at 8 bits that costs more than the"
    " finer step gains"
)
"""Simulated on SmolLM2, where shifts and factors were taken apart: see methods/fpq_activations.py."""
SATURATED = "Without VNNI or AMX, sums of products with 8 bits saturate, with 7 they do not: see kernels/saturation.py"
EXPECTED = (
    Order("GPTQ below RTN at 4 bits", "gptq-w4-g64", "rtn-w4-g64"),
    Order("AWQ below RTN at 4 bits", "awq-w4-g64", "rtn-w4-g64"),
    Order("GPTQ below RTN at 3 bits", "gptq-w3-g64", "rtn-w3-g64"),
    Order("AWQ below RTN at 3 bits", "awq-w3-g64", "rtn-w3-g64"),
    Order("pre-shifted FPQ below min-max floats at W4A4", "fpq_activations-w4a4-fp", "fpq_activations-w4a4-fp-minmax"),
    Order("the same at W4A8", "fpq_activations-w4a8-fp", "fpq_activations-w4a8-fp-minmax", ROUNDED_BIASES),
    Order("LLM.int8() below per-tensor W8A8", "llm_int8-w8a8-outlier", "dynamic_int8-w8a8-tensor"),
    Order("SmoothQuant below per-tensor W8A8", "smoothquant-w8a8-tensor", "dynamic_int8-w8a8-tensor"),
    Order("GPTQ's weights below nearest ones under SmoothQuant", "smoothquant_gptq-w8a8", "smoothquant-w8a8"),
    Order("8 bits of weight below 7 in W8A8", "dynamic_int8-w8a8", "dynamic_int8-w7a8", SATURATED),
    Order("a rotation below plain rounding at W4A4", "rotation-w4a4", "dynamic_int8-w4a4"),
    Order("quantiles below integers at 4 bits", "kbit-quantile4-b64", "kbit-int4-b64"),
    Order("floats below integers at 4 bits", "kbit-e2m1-b64", "kbit-int4-b64"),
    Order("blocks of 64 below blocks of 1024", "kbit-nf4-b64", "kbit-nf4-b1024"),
    Order("the proxy helps at 3 bits", "kbit-int3-b64-p2", "kbit-int3-b64"),
)
EXPECTED_OF_THE_ENCODER = (
    Order(
        "FPQ with pre-shifted biases below min-max floats at W4A4", "fpq_activations-w4a4-fp", "fpq_activations-w4a4-fp-minmax"
    ),
    Order("the same at W4A8", "fpq_activations-w4a8-fp", "fpq_activations-w4a8-fp-minmax", ROUNDED_BIASES),
    Order("LLM.int8() below per-tensor W8A8", "llm_int8-w8a8-outlier", "dynamic_int8-w8a8-tensor"),
    Order("quantiles below integers at 4 bits", "kbit-quantile4-b64", "kbit-int4-b64"),
    Order("blocks of 64 below blocks of 1024", "kbit-nf4-b64", "kbit-nf4-b1024"),
)


UNKNOWN = "The reason is not known"


def page(known: Known, context: Context, wanted: Sequence[str], code: str, turned: Sequence[Distortion] = ()) -> str:
    """Markdown. A table for each tensor that methods shrink, in it the smallest last. `wanted`: names of all rows that there
    are to be; `code`: digest of what oracles judge; `turned`: TurboQuant's distortions."""
    rows = list(known.rows.values())
    speeds = speeds_of_one_machine(known, context.device.fingerprint)
    parts = [head(rows, speeds, context.evaluation[1], len(wanted))]
    for target, title in TITLES.items():
        sizes = {row.name: size_of(row, context.inventory) for row in rows if row.target == target and row.quality}
        if sizes:
            parts.append(f"## {title}\n\n" + table(known.rows, sizes, speeds))
    parts.append("## An encoder: all-MiniLM-L6-v2, simulated\n\n" + section(list(known.encoder.values())))
    parts.append(
        "## Expected order, and what was seen\n\nKL of SmolLM2:\n\n"
        + expected(EXPECTED, {name: row.quality.kl for name, row in known.rows.items() if row.quality})
        + "\n1 - cosine of MiniLM:\n\n"
        + expected(EXPECTED_OF_THE_ENCODER, {name: row.distance for name, row in known.encoder.items()})
    )
    if known.samples:
        parts.append("## How many calibration samples, simulated\n\n" + calibration_section(known.samples))
    if known.greedy:
        parts.append("## OBQ beside GPTQ\n\n" + greedy_section(known.greedy))
    if turned:
        parts.append("## TurboQuant's distortions, and the paper's\n\n" + distortion_section(turned))
    if missing := [row for row in rows if row.kind in ("refused", "failed")]:
        parts.append(
            "## Refused or failed\n\n" + "\n".join(f"- `{row.name}` {row.kind}: {cell(row.reason)}" for row in missing) + "\n"
        )
    if unmade := [name for name in wanted if name not in known.rows]:
        parts.append("## Not made yet\n\n`make methods` goes on with: " + ", ".join(f"`{name}`" for name in unmade) + ".\n")
    parts.append("## Oracles\n\n" + oracles(known.verdicts, code))
    return "\n".join(parts)


def head(rows: Sequence[Row], speeds: Mapping[str, Speed], text: TextSource, wanted: int) -> str:
    kinds = Counter(row.kind for row in rows)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    machines = sorted({row.machine for row in rows if row.machine})
    timed = next(iter(speeds.values())).machine if speeds else None
    return (
        "# Every method, measured\n\n"
        f"Written by `make methods` on {date.today().isoformat()}: {len(rows)} of {wanted} rows ({counted or 'none yet'}),"
        f" {len({one.name for one in speeds.values()})} of {sum(map(can_be_timed, rows))} timed, {len(speeds)} with those of the"
        f" same operators and sizes. SmolLM2-135M ({rows[0].model if rows else '-'}); quality"
        f" against its fp32 logits on {EVALUATION_TOKENS:,} tokens of {text.name} ({text.licence}), intervals 95 %. Made on"
        f" {'; '.join(machines) or '-'}. Speeds: {timed or 'none yet'}.\n\n"
        "How to read it. Choose by size and by KL, the mean distance of the next token's distribution from the fp32 model's;"
        " *top-1* is how often the most likely token stays the same. A name in **bold**: nothing in its table that ran is as"
        f" small and nearer to the model, and its KL is below {USELESS:g}.{EARLIER}:"
        " made before the method's code last changed.\n\n"
        "*measured*: the artifact was built and ran in the runtime named; *int* counts the linears that ran as quantized"
        " operators. *decode* and *prefill* are the unquantized model's time in the same runtime over this one's (above 1:"
        " faster), 128 tokens in and 32 out, in turns, on an idle machine; rows of the same operators and sizes as one that was"
        " timed have its times, with its name. *simulated*: fake quantization in fp32, since no"
        " runtime here has the kernel; bytes are arithmetic, there is nothing to time, and searches calibrate on 16 samples"
        " instead of 64. *apply*: CPU seconds of all threads together and peak memory, without the export that all rows of"
        " a runtime share. Rotations and scales that AWQ or SmoothQuant move gain a part of what they gain here because the"
        " embedded model's channels were rescaled at random.\n"
    )


def can_be_timed(row: Row) -> bool:
    return row.kind == "measured" and row.target != "none"


def speeds_of_one_machine(known: Known, fingerprint: str) -> dict[str, Speed]:
    """By name, in the runtimes that the rows have: of this machine, or of that which timed most where this one timed none. A row
    that was not timed has the speed of one of the same operators and sizes."""
    by_device: dict[str, dict[str, Speed]] = {}
    for (name, device), speed in known.speeds.items():
        row = known.rows.get(name)
        if row is not None and row.place and row.place.split("+")[0] == speed.place.split("+")[0]:
            by_device.setdefault(device, {})[name] = speed
    own = by_device.get(fingerprint) or max(by_device.values(), key=len, default={})
    alike = {row.name: [own[twin] for twin in twins(row, known.rows) if twin in own] for row in known.rows.values()}
    return {name: found[0] for name, found in alike.items() if found} | own


TITLES = {"none": "Unquantized", "weights": "Weights", "activations": "Weights and activations", "kv_cache": "KV cache"}
COLUMNS = ("method-scheme", "class", "runtime", "MB", "of plain", "KL, nats", "perplexity", "top-1", "apply CPU s", "apply GB",
           "decode", "prefill", "int")  # fmt: skip


USELESS = 1.0
"""Nats: four tokens in ten are the model's or fewer."""


class Size(NamedTuple):
    """`share`: of the unquantized form."""

    words: str
    share: float


def size_of(row: Row, inventory: Inventory) -> Size:
    """Of the weights; where only the cache shrinks, of the cache for a token of context (modelled)."""
    if row.target == "kv_cache":
        made = scheme(row.scheme)
        mine, plain = (bytes_of_cache(inventory, one, 1, 1) for one in (made, scheme("fp32")))
        return Size(f"{mine / 1e3:.1f} kB a token", mine / plain)
    if not row.bytes or not row.plain_bytes:
        return Size("", 1.0)
    return Size(f"{row.bytes / 1e6:.0f}", row.bytes / row.plain_bytes)


def table(rows: Mapping[str, Row], sizes: Mapping[str, Size], speeds: Mapping[str, Speed]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 3 + "---:|" * (len(COLUMNS) - 3)]
    best = undominated([rows[name] for name in sizes], sizes)
    for name in sorted(sizes, key=lambda name: (-sizes[name].share, kl_of(rows[name]))):
        lines.append(line(rows[name], sizes[name], speeds.get(name), name in best))
    return "\n".join(lines) + "\n" + as_made(rows[name] for name in sizes)


NOTE = 200
"""Characters of a note that are shown: a mixture's names each of its linears."""


def as_made(rows: Iterable[Row]) -> str:
    """What the name of a row does not tell: types that a format took instead, steps that a budget ended, what calibrated."""
    lines = [f"- `{row.name}`: {textwrap.shorten('; '.join(row.notes), NOTE)}" for row in rows if row.notes]
    return "\nAs they were made:\n\n" + "\n".join(lines) + "\n" if lines else ""


def kl_of(row: Row) -> float:
    return row.quality.kl.mean if row.quality else float("inf")


def undominated(rows: Sequence[Row], sizes: Mapping[str, Size]) -> set[str]:
    """Of the rows that ran and are of use: those than which none is both as small and nearer to the model."""
    ran = [(row.name, sizes[row.name].share, row.quality.kl.mean) for row in rows if row.quality and row.kind == "measured"]
    return {name for name, size, kl in ran if kl < USELESS and not any(other <= size and nearer < kl for _, other, nearer in ran)}


def line(row: Row, size: Size, speed: Speed | None, best: bool) -> str:
    q = row.quality
    assert q is not None
    passkey = "" if q.passkey_found is None else (", passkey found" if q.passkey_found else ", **passkey lost**")
    cells = (
        (f"**`{row.name}`**" if best else f"`{row.name}`") + (EARLIER if outdated(row) else ""),
        row.kind,
        row.place or "",
        size.words,
        f"{size.share:.2f}",
        f"{interval(q.kl)}{passkey}",
        f"{q.perplexity:.2f}",
        f"{q.top1.mean:.3f}",
        f"{row.apply_cpu_s:.0f}" if row.apply_cpu_s is not None else "",
        f"{row.apply_peak_bytes / 1e9:.1f}" if row.apply_peak_bytes is not None else "",
        *times(row, speed),
        f"{row.quantized_linears}/{row.linears}" if row.linears else "",
    )
    return "| " + " | ".join(map(cell, cells)) + " |"


def times(row: Row, speed: Speed | None) -> tuple[str, str]:
    """Decode and prefill."""
    if not can_be_timed(row):
        return "", ""
    if speed is None:
        return "not timed yet", "not timed yet"
    if speed.reason:
        return f"failed: {speed.reason}", ""
    whose = "" if speed.name == row.name else f", `{speed.name}`'s"
    whose += "" if speed.place == row.place else f", in {speed.place}"
    return ratio(speed.decode) + whose, ratio(speed.prefill) + whose


def cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def interval(kl: Interval) -> str:
    return f"{kl.mean:.4f} [{kl.low:.4f}, {kl.high:.4f}]"


def ratio(found: Figure | None) -> str:
    return f"{found.median:.2f}x [{found.low:.2f}, {found.high:.2f}]" if found else ""


def expected(orders: Iterable[Order], found: Mapping[str, Interval]) -> str:
    """One line for each order, from the distances by name; where one is missing, or the order does not hold, that is said."""
    lines = []
    for order in orders:
        low, high = found.get(order.better), found.get(order.worse)
        if low is None or high is None:
            lines.append(f"- {order.what}: not measured")
            continue
        held = low.mean < high.mean
        apart = "" if low.high < high.low or high.high < low.low else ", the intervals overlap"
        why = "" if held else f". {order.otherwise or UNKNOWN}"
        seen = f"{low.mean:.4f} against {high.mean:.4f}"
        lines.append(f"- {order.what}: {'holds' if held else '**does not hold here**'}{apart} ({seen}){why}")
    return "\n".join(lines) + "\n"


def oracles(found: Mapping[str, Verdict], code: str) -> str:
    """`code`: the digest of the code as it is; a verdict on another one says so."""
    lines = [f"| method | oracle | tests of {TESTS} | verdict |", "|---|---|---|---|"]
    for name in METHODS:
        what, tests = ORACLES[name]
        one, named = found.get(name), ", ".join(f"`{test}`" for test in tests)
        verdict = "not asked yet" if one is None else one.verdict + ("" if one.code == code else " (as the code was before)")
        lines.append(f"| {name} | {what} | {named} | {cell(verdict)} |")
    return "\n".join(lines) + "\n"
