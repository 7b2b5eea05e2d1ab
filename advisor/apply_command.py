"""`advisor apply`: one method by hand. `advisor convert`: the codes of a quantized checkpoint in another format, bit for bit.

What is written follows from the runtime; `--format` names it instead, or the layout of a Hugging Face folder that several
runtimes read: gptq, awq and compressed-tensors hold the same integers, and the method's go from one to another unchanged.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from quantadvisor.documents import BadInput, CandidateFailed

from .stages import Progress, Quiet
from .terminal import LiveProgress, console

if TYPE_CHECKING:
    from quantadvisor.documents import Scheme

    from .builds import Built

RUNTIME_OF = {
    "gptq": "torch", "awq": "torch", "bitsandbytes": "torch", "compressed-tensors": "vllm", "gguf": "llama.cpp",
    "onnx": "onnxruntime", "openvino": "openvino",
}  # fmt: skip
"""format -> the runtime that a method is asked to write it for."""

LISTENED = 4
"""Samples on which activations of a float16 artifact are looked at."""
New = Annotated[Path, typer.Option("--out", help="folder to write; it must not exist")]
Format = Annotated[str | None, typer.Option("--format", help="instead of a runtime: " + ", ".join(RUNTIME_OF))]
Runtime = Annotated[str | None, typer.Option("--runtime", help="whose artifact is written: see advisor runtimes")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")]
Silent = Annotated[bool, typer.Option("--quiet", help="say nothing but errors")]


def apply(
    model: Annotated[str, typer.Argument(help="builtin:smollm2-135m, a folder, a GGUF, a hub id")],
    method: Annotated[str, typer.Option("--method", help="see advisor methods")],
    scheme: Annotated[str, typer.Option("--scheme", help="one of the method's: w4-g64, w8a8-static-npu, nf4-b64-bf16, …")],
    out: New,
    runtime: Runtime = None,
    format: Format = None,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="text to calibrate on; else the built-in one")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="of 128 tokens each, of the calibration text; else 128 or fewer", min=1)
    ] = None,
    train_s: Annotated[float, typer.Option("--train-s", help="seconds that a method which trains may take", min=0.0)] = 0.0,
    as_json: Json = False,
    quiet: Silent = False,
) -> None:
    """One method by hand: its artifact for a runtime, or in a format."""
    from quantadvisor.methods.schemes import scheme as scheme_named

    from .context import cache_folder
    from .model_source import resolve_model

    place = runtime_for(runtime, format)
    try:
        wanted = scheme_named(scheme)
    except ValueError as error:
        raise BadInput("scheme", str(error), "see advisor methods") from None
    check_new(out)
    progress: Progress = Quiet() if quiet or as_json else LiveProgress()
    with progress.stage(f"{method}-{scheme} for {format or place}"):
        folder, _ = resolve_model(model, cache_folder(), progress=progress.say)
        made = made_by(folder, method, wanted, place, format, out, calibration, samples, train_s, progress)
    tell(made, as_json, quiet)


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="a quantized folder: GPTQ, AWQ, compressed-tensors, NF4, ONNX, OpenVINO")],
    out: New,
    runtime: Runtime = None,
    format: Format = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="the Hugging Face folder that an ONNX or OpenVINO artifact was made of")
    ] = None,
    as_json: Json = False,
    quiet: Silent = False,
) -> None:
    """The codes of a quantized checkpoint for another runtime or in another layout, bit for bit: nothing is rounded again."""
    from quantadvisor.methods.formats import bridges

    from .builds import Built, folder_bytes

    place = runtime_for(runtime, format)
    if not checkpoint.is_dir():
        raise BadInput(str(checkpoint), "is no folder", "name a quantized checkpoint")
    check_new(out)
    progress: Progress = Quiet() if quiet or as_json else LiveProgress()
    with progress.stage(f"{checkpoint.name} for {format or place}"):
        if layout := layout_of(place, format):
            notes = bridges.convert(checkpoint, layout, out, model)
        else:
            notes = bridges.carry(checkpoint, place, out)
    tell(Built(out=out, bytes=folder_bytes(out), notes=notes), as_json, quiet)


def runtime_for(runtime: str | None, format: str | None) -> str:
    """The runtime that is asked for, or that reads the format."""
    from quantadvisor.profiling.runtimes.registry import RUNTIMES

    if (runtime is None) == (format is None):
        raise BadInput("--runtime and --format", f"{'neither' if runtime is None else 'both'} given", "give one of them")
    if format is not None and format not in RUNTIME_OF:
        raise BadInput("--format", f"{format!r} is unknown", f"known are {', '.join(RUNTIME_OF)}")
    if runtime is not None and runtime not in RUNTIMES:
        raise BadInput("--runtime", f"{runtime!r} is unknown", f"known are {', '.join(RUNTIMES)}")
    return runtime or RUNTIME_OF[str(format)]


def layout_of(place: str, format: str | None) -> str | None:
    """The layout of a Hugging Face folder; None where another kind of artifact is asked for."""
    from quantadvisor.methods.formats.bridges import LAYOUTS
    from quantadvisor.methods.refusals import COMPRESSED

    wanted = format or {"torch": "gptq"}.get(place, "compressed-tensors" if place in COMPRESSED else None)
    return wanted if wanted in LAYOUTS else None


def check_new(out: Path) -> None:
    if out.exists():
        raise BadInput(str(out), "exists already", "give another --out")


def made_by(folder: Path, method_name: str, wanted: Scheme, runtime: str, format: str | None, out: Path, text: Path | None,
            samples: int | None, train_s: float, progress: Progress) -> Built:  # fmt: skip
    """The artifact in `out`, built in a child process; BadInput with the reason where it could not be. A quantized cache is put
    on the artifact of the weights, or, where it is an option of the session, said in a note."""
    import numpy as np

    from quantadvisor.documents.workload import Calibration
    from quantadvisor.methods.formats import bridges, huggingface
    from quantadvisor.methods.refusals import READS
    from quantadvisor.methods.registry import method
    from quantadvisor.profiling.text import calibration_tokens

    from .builds import Build, build_all, folder_bytes
    from .candidates import CACHES_WITHIN, cache_end, recipe, session_options
    from .context import CALIBRATION_LENGTH

    name = f"{method_name}-{wanted.name}"
    writes, plain = recipe(method_name, wanted, runtime)
    refused = method(writes).refuse(folder, plain, runtime)
    if refused and not refused.startswith(READS):
        raise BadInput(name, refused, "see advisor methods")
    end = cache_end(runtime, wanted)
    cache = CACHES_WITHIN.get(runtime, {}).get(end or "")
    notes = () if end is None or cache else (in_session(runtime, session_options(runtime, (), wanted)),)
    with scratch_beside(out) as scratch:
        tokens = scratch / "calibration.npy"
        np.save(tokens, calibration_tokens(folder, Calibration(samples=samples).drawn, CALIBRATION_LENGTH, text, None)[0])
        build = Build(method=writes, scheme=plain, runtime=runtime, model_folder=folder, out=scratch / f"{writes}-{plain.name}",
                      calibration=tokens, samples=samples, apply_s=math.inf, train_s=train_s)  # fmt: skip
        if cache:
            build = build.with_cache(cache, wanted, scratch / name, shared=False)
        for one in filter(None, (build.below, build)):  # whole, but never handed over: nothing tells of which settings it is
            shutil.rmtree(one.out, ignore_errors=True)
        made = build_all([build], progress.say, processes=1)[build.out]
        if made.failed:
            raise BadInput(f"{name} for {runtime}", made.failed, "see advisor methods")
        if wanted.compute == "fp16" or in_half(build.out):
            notes = (*notes, *heard(folder, np.load(tokens)[:LISTENED], progress))
        (build.out / "built.json").unlink()
        written = huggingface.settings_of(build.out).get("quant_method") if runtime in ("torch", "vllm", "triton") else None
        if format is None or written in (None, format):
            build.out.rename(out)
        else:
            notes = (*notes, *bridges.convert(build.out, format, out))
    return made.model_copy(update={"out": out, "bytes": folder_bytes(out), "notes": (*made.notes, *notes)})


def in_half(folder: Path) -> bool:
    """Does a Hugging Face folder compute in float16?"""
    from quantadvisor.methods.refusals import config

    return (folder / "config.json").exists() and config(folder).get("dtype") == "float16"


def heard(folder: Path, tokens: Any, progress: Progress) -> tuple[str, ...]:
    """A note of how loud the inputs of the model's layers are on `tokens`: int64 [samples, length]; BadInput where float16 would
    make infinities of them, and NaN soon after. Nothing of a model whose layers have no map here."""
    from quantadvisor.methods.affine import refuse_beyond_half
    from quantadvisor.methods.observe import loudest_input
    from quantadvisor.methods.refusals import config
    from quantadvisor.methods.rescale import mapping_missing

    if mapping_missing(config(folder)):
        return ()
    name, loudest = loudest_input(folder, tokens, progress.say)
    try:
        refuse_beyond_half(f"an input of {name}", loudest)
    except CandidateFailed as error:
        raise BadInput(str(folder), str(error), "--format compressed-tensors keeps bfloat16") from None
    return (f"in float16: the loudest input of a layer, of {name}, is {loudest:.3g} of 65504 on {len(tokens)} samples",)


def in_session(runtime: str, options: tuple[str, ...]) -> str:
    return f"the cache is no part of the folder but an option of the session: {'+'.join((runtime, *options))}"


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder to build in. An interruption leaves it, and what the method kept in it (methods/kept.py), for the same command to
    go on from; so does a failure where anything is kept."""
    from quantadvisor.methods.formats.folders import PARTIAL

    folder = out.parent / f".{out.name}{PARTIAL}"
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, out):
        try:
            check_new(out)  # another one may have just ended
            yield folder
        except Exception:
            if not any(folder.glob(".*.kept-*/*")):
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


@contextmanager
def alone_in(folder: Path, out: Path) -> Iterator[None]:
    """No other process builds `out` in the folder meanwhile: BadInput where one does. The lock ends with this process, however
    that ends."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(str(out), "another advisor apply is writing it", "wait for its end, or give another --out") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(opened)


def tell(made: Built, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(made.model_dump_json())
    elif not quiet:
        for note in made.notes:
            console.print(escape(note), soft_wrap=True)
        console.print(f"written to {escape(str(made.out))}: {made.bytes / 1e6:,.1f} MB", soft_wrap=True)
