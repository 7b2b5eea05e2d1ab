"""One `advisor selfcheck` as a page that loads nothing and runs nothing, to be sent by who has the GPU."""

from __future__ import annotations

import html

from quantadvisor.documents import GpuState, KernelCheck, RuntimeCheck, SelfCheck

from . import units
from .gate import CSS
from .policy import policy

OURS, PLAIN = "triton", "16 bit"


def page(found: SelfCheck) -> str:
    safe = html.escape
    heads = (
        "numbers",
        "kernel",
        "shape",
        "error / allowed",
        "times, cold L2",
        "against 16 bit",
        "the GPU meanwhile",
        "machine code for",
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(CSS)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>advisor selfcheck: {safe(found.device)}</title>",
            f"<style>{CSS}</style>\n</head>\n<body>\n<main>",
            f"<h1>{safe(headline(found))}</h1>",
            '<div class="table" tabindex="0" role="region" aria-label="Kernels">\n<table>\n<thead><tr>',
            "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr></thead>\n<tbody>",
            *(f"<tr>{''.join(cells(one))}</tr>" for one in found.kernels),
            "</tbody>\n</table>\n</div>",
            *(f"<p>{runtime_line(one)}</p>" for one in found.runtimes),
            f'<p class="soft">{safe(found.note)}</p>',
            f'<p class="soft">{safe(found.device)}; {safe(versions)}; {found.proof}</p>',
            "</main>\n</body>\n</html>\n",
        ]
    )


def runtime_line(one: RuntimeCheck) -> str:
    """Whether a runtime's path on the GPU computes what torch does on the CPU, in one line of HTML."""
    state, said = ("pass", f"right: KL {one.kl:.1e} nats") if one.right else ("regression", f"wrong: {one.reason}")
    if one.refused is not None:
        state, said = "soft", f"cannot run: {one.refused}"
    ran = f" On the GPU: {', '.join(one.on_gpu)}." if one.on_gpu else ""
    name = "+".join((one.name, *one.options))
    return f'{html.escape(name)} <span class="{state}">{html.escape(said)}</span>{html.escape(ran)}'


def headline(found: SelfCheck) -> str:
    wrong, slow = sum(not one.right for one in found.kernels), sum(one.speed == "slower" for one in found.kernels)
    numbers = f"{len(found.kernels) - wrong} of {len(found.kernels)} checks give the right numbers"
    if found.proof == "interpreted":
        return f"{numbers}, interpreted; never run on a GPU"
    return f"{numbers} on {found.device}; {slow} slower than what they replace"


def gpu_words(state: GpuState | None) -> str:
    """Clock, power, temperature and what held it back, as far as the GPU tells them."""
    if state is None:
        return units.ABSENT
    told = (
        f"{state.sm_mhz[0]}–{state.sm_mhz[2]} MHz" if state.sm_mhz else None,
        f"{state.power_w:.0f} W" if state.power_w is not None else None,
        f"{state.temperature_c} °C" if state.temperature_c is not None else None,
        *(state.throttling or ()),
        "MIG" if state.mig else None,
    )
    return ", ".join(filter(None, told)) or units.ABSENT


def cells(one: KernelCheck) -> list[str]:
    state = "pass" if one.right else "regression"
    error = units.ABSENT if one.error is None else f"{one.error:.2f}"
    times = [f"{name}: {units.spread(figure, units.duration)}" for name, figure in one.times_s.items()]
    times += [f"{name}: {reason}" for name, reason in one.refused.items()]
    clock = gpu_words(one.gpu)
    speed = {"slower": "regression", "faster": "pass"}.get(one.speed or "", "soft")
    code = " ".join(f"sm_{sm}" for sm in one.compiled_for) or units.ABSENT
    safe = html.escape
    return [
        f'<td class="{state}">{"✓ right" if one.right else f"✗ wrong: {safe(one.reason)}"}</td>',
        *(f"<td>{safe(text)}</td>" for text in (one.name, one.shape, error)),
        f"<td>{'<br>'.join(map(safe, times)) or units.ABSENT}</td>",
        f'<td class="{speed}">{one.speed or units.ABSENT}</td>',
        *(f"<td>{safe(text)}</td>" for text in (clock, code)),
    ]
