"""Where a whole pass is slow though no linear product is: attention, its cache, prompts in chunks. Measured, not believed.

Two candidates of one runtime that differ in one thing (RIVALS) take turns, each in a process of its own, on a shallow model of
random weights: the widths of the model, LAYERS layers, WORDS words, so that the head hides nothing. Each turn gives a ratio; what
their interval leaves open is not said. Kept on disk by device, builds and sizes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from quantadvisor.documents import CandidateFailed, Device, Figure, Inventory, OpenDocument, Scheme
from quantadvisor.kernels.timing import figure
from quantadvisor.kernels.timing_cache import builds
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.ledger import pool_bytes
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.runtimes.vllm import POOL
from quantadvisor.profiling.workers import RunningWorker

from .builds import Build, build_all
from .candidates import CACHES_WITHIN, cache_end, recipe, session_options
from .context import export_format
from .diagnose import options_of, split
from .slow_paths import SLOWER

FORMAT = 1
LAYERS, WORDS = 2, 1024
TOKENS, ROWS = 2048, 16
"""Of a decode step: each row's context, and rows; a prefill is of one row."""
CHUNK, CHUNKED_ROWS = 1024, 2
TURNS, STEPS = 5, 12
"""Turns after a prefill that warms up (of fewer, the least and the largest bound no 95 %); decode steps in each, of which the
first is left out."""
ONE_ROW = "one row in one pass"
CHUNKS = f"a token of {CHUNKED_ROWS} prompts of {TOKENS:,} in chunks of {CHUNK:,}"
AT_ONCE = f"a token of {CHUNKED_ROWS} prompts of {TOKENS:,} in one pass"
PREFILL, DECODE = f"a prefill of {TOKENS:,} tokens", f"a decode step of {ROWS} x {TOKENS:,}"
Say = Callable[[str], None]


class Rivals(NamedTuple):
    """Names of two candidates of one runtime."""

    ours: str
    theirs: str


RIVALS = (
    Rivals("none-fp32@openvino+bf16", "none-fp32@openvino+f32"),
    Rivals("none-bf16@llama.cpp+fa", "none-bf16@llama.cpp"),
    Rivals("kv_int8-fp32-kv8@openvino+f32", "none-fp32@openvino+f32"),
    Rivals("kv_int8-fp32-kv8@openvino+bf16", "none-fp32@openvino+bf16"),
    Rivals("kv_int8-fp32-kv8@onnxruntime", "none-fp32@onnxruntime"),
    Rivals("kv_int8-q8_0-kv8@llama.cpp+fa", "gguf-q8_0@llama.cpp+fa"),
    Rivals("kv_fp8-bf16-kvf8-unit@vllm", "none-bf16@vllm"),
)
CHUNKED = ("none-fp32@openvino+f32", "none-fp32@openvino+bf16")
"""Candidates whose runtime takes a prompt in chunks where it is told to."""


class Contrast(OpenDocument):
    """Seconds of `ours` over seconds of `theirs` in one kind of pass."""

    ours: str
    theirs: str
    what: str
    ratio: Figure


class Contrasts(OpenDocument):
    found: tuple[Contrast, ...]


def slow_pass(name: str, contrasts: Iterable[Contrast]) -> str | None:
    """Where a candidate's passes take longer than its rival's, or as long though its cache has fewer bits."""
    said = []
    for one in contrasts:
        smaller = scheme(split(one.ours)[1]).quantizes_cache
        if one.what == CHUNKS or (name != one.ours and (name != one.theirs or smaller)):
            continue
        mine, other = (one.ratio, one.theirs) if name == one.ours else (inverse(one.ratio), one.ours)
        times = f"{one.what} takes {spread(mine)} the time of {other}"
        if mine.low > SLOWER:
            said.append(times)
        elif smaller and one.what == DECODE and mine.low * SLOWER > 1:
            said.append(f"{times}: its cache shrinks, its time does not")
    return "; ".join(said) or None


def chunk_traps(runtime: str, contrasts: Sequence[Contrast]) -> list[tuple[str, str]]:
    """(scheme@runtime+option, where it is slow) of prompts in chunks, which no candidate takes so."""
    found = []
    for one in contrasts:
        if one.what == CHUNKS and split(one.ours)[0] == runtime and one.ratio.low > SLOWER:
            words = [f"{c.what} takes {spread(c.ratio)}" for c in contrasts if c.ours == one.ours and c.what in (CHUNKS, AT_ONCE)]
            found.append((one.ours.partition("-")[2], f"{', '.join(words)} the time of {ONE_ROW}"))
    return found


def spread(ratio: Figure) -> str:
    return f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def inverse(ratio: Figure) -> Figure:
    return figure([1 / sample for sample in ratio.samples], source=ratio.source)


def contrasts_here(
    model_folder: Path, device: Device, ready: Iterable[str], cache: Path, say: Say, pythons: Mapping[str, str] = {}
) -> tuple[Contrast, ...]:
    """Of all rivals that are both ready: measured now, or as they were kept. Who fails is said, and tried again next time.
    A model of shorter contexts has none. `pythons`: interpreters of runtimes that are not where the project makes them."""
    here = {*ready, ONE_ROW}
    sizes = shallow_sizes(json.loads((model_folder / "config.json").read_text()))
    inventory = inventory_from_config(sizes)
    if (inventory.max_context_tokens or TOKENS + STEPS) < TOKENS + STEPS:
        return ()
    wanted = [pair for pair in (*RIVALS, *(Rivals(name, ONE_ROW) for name in CHUNKED)) if here >= {*pair}]
    files = {pair: kept_file(cache, pair, device, sizes, pythons) for pair in wanted}
    found = {pair: contrasts for pair in wanted if (contrasts := read(files[pair])) is not None}
    todo = [pair for pair in wanted if pair not in found]
    if todo:
        with tempfile.TemporaryDirectory(prefix="quantadvisor-passes-") as scratch:
            shop = Workshop(sizes, inventory, device, Path(scratch), say, pythons)
            shop.make({name for pair in todo for name in pair if name != ONE_ROW})
            for pair in todo:
                say(" beside ".join(pair))
                try:
                    found[pair] = shop.chunked(pair.ours) if pair.theirs == ONE_ROW else shop.beside(pair)
                except CandidateFailed as error:
                    say(f"{pair.ours}: {error}")
                    continue
                Contrasts(found=found[pair]).write(files[pair])
    return tuple(one for pair in wanted for one in found.get(pair, ()))


def kept_file(cache: Path, pair: Rivals, device: Device, sizes: object, pythons: Mapping[str, str]) -> Path:
    name = split(pair.ours)[0]
    packages = builds(name, interpreter_of(name, pythons.get(name)))
    identity = [FORMAT, *pair, device.fingerprint, device.threads, packages, sizes, TOKENS, ROWS, CHUNK, CHUNKED_ROWS]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache / f"{pair.ours}-{digest[:20]}.json"


def read(path: Path) -> tuple[Contrast, ...] | None:
    try:
        return Contrasts.read(path).found
    except (OSError, ValidationError):
        return None


def shallow_sizes(config: dict[str, object]) -> dict[str, object]:
    """The configuration of the shallow model; of one that sees or hears too, its text part."""
    nested = config.get("text_config")
    config = nested if isinstance(nested, dict) else config
    kinds = config.get("layer_types")
    small = {"num_hidden_layers": LAYERS, "vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    return config | small | ({"layer_types": kinds[:LAYERS]} if isinstance(kinds, list) else {})


class Workshop:
    """The shallow model, its artifacts, and its candidates in turns."""

    def __init__(self, sizes: dict[str, object], inventory: Inventory, device: Device, work: Path, say: Say,
                 pythons: Mapping[str, str]) -> None:  # fmt: skip
        self.sizes, self.inventory, self.device, self.work, self.say = sizes, inventory, device, work, say
        self.pythons = pythons
        self.tokens = np.random.default_rng(0).integers(3, WORDS, (CHUNKED_ROWS, TOKENS)).astype(np.int64)

    def make(self, names: Iterable[str]) -> None:
        """The artifacts of all candidates; why one could not be made is in `failed`."""
        np.save(self.work / "calibration.npy", self.tokens[:, :128])
        builds = {build.out: build for name in sorted(names) for build in self.builds_of(name)}
        try:
            write_shallow(self.sizes, self.work / "model")
            self.failed = {out: one.failed for out, one in build_all(list(builds.values()), self.say).items()}
        except CandidateFailed as error:
            self.failed = dict.fromkeys(builds, str(error))

    def builds_of(self, name: str) -> list[Build]:
        """Of the plain export, of a candidate's weights, and of a cache that lies in the artifact on top: its own is last."""
        runtime, scheme_name = split(name)
        asked = scheme(scheme_name)
        method, weights = recipe(name.split("-")[0], asked, runtime)
        plain = self.build("none", scheme("fp32"), runtime)
        made = (
            plain if weights.name == "fp32" else self.build(method, weights, runtime, None if runtime == "torch" else plain.out)
        )
        cache = CACHES_WITHIN.get(runtime, {}).get(cache_end(runtime, asked) or "")
        if cache is None:
            return [plain, made]
        return [plain, made.with_cache(cache, asked, self.artifact(cache, asked, runtime), shared=made is plain)]

    def build(self, method: str, made: Scheme, runtime: str, base: Path | None = None) -> Build:
        return Build(
            method=method, scheme=made, runtime=runtime, model_folder=self.work / "model", base=base,
            out=self.artifact(method, made, runtime), calibration=self.work / "calibration.npy",
        )  # fmt: skip

    def artifact(self, method: str, made: Scheme, runtime: str) -> Path:
        return self.work / f"{method}-{made.name}@{export_format(runtime)}"

    def worker(self, name: str) -> RunningWorker:
        runtime, scheme_name = split(name)
        out, asked = self.builds_of(name)[-1].out, scheme(scheme_name)
        if reason := self.failed[out]:
            raise CandidateFailed(reason)
        pool = pool_bytes(self.inventory, asked, runtime, TOKENS + STEPS, ROWS)
        options = (*session_options(runtime, options_of(name), asked), *([f"{POOL}{pool}"] if pool else ()))
        python = interpreter_of(runtime, self.pythons.get(runtime))
        return RunningWorker(runtime_file(runtime), out, options, self.device.threads, python=python)

    def beside(self, pair: Rivals) -> tuple[Contrast, ...]:
        """Prefill of one row and a decode step of ROWS rows whose caches are copies of it."""
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in pair}
        with ExitStack() as stack:
            workers = {name: self.worker(name) for name in pair}
            for worker in workers.values():
                stack.enter_context(worker).generate(self.tokens[:1], 2)
            for turn in range(TURNS):
                for name in pair if turn % 2 else reversed(pair):
                    seen = workers[name].steady(self.tokens[:1], ROWS, STEPS)
                    taken[name].append((seen.prefill_row_s, median(seen.itl_s[1:])))
        ours, theirs = (np.array(taken[name]) for name in pair)
        return tuple(
            Contrast(ours=pair.ours, theirs=pair.theirs, what=what, ratio=figure(list(ratios), source="in turns"))
            for what, ratios in zip((PREFILL, DECODE), (ours / theirs).T, strict=True)
        )

    def chunked(self, name: str) -> tuple[Contrast, ...]:
        """Prompts of several rows, in chunks and in one pass, a token's time over that of one row's."""
        taken: list[tuple[float, float]] = []
        with self.worker(name) as worker:
            worker.generate(self.tokens[:1], 2)
            for _ in range(TURNS):
                one = worker.generate(self.tokens[:1], 1).ttft_s
                whole = worker.generate(self.tokens, 1).ttft_s / CHUNKED_ROWS
                cut = worker.chunked(self.tokens, CHUNK) / CHUNKED_ROWS
                taken.append((cut / one, whole / one))
        return tuple(
            Contrast(ours=name, theirs=ONE_ROW, what=what, ratio=figure(list(ratios), source="in turns"))
            for what, ratios in zip((CHUNKS, AT_ONCE), np.array(taken).T, strict=True)
        )


def write_shallow(sizes: dict[str, object], out: Path) -> None:
    """A Hugging Face folder of random fp32 weights, with a tokenizer of WORDS words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    made = {name: value for name, value in sizes.items() if name not in ("model_type", "torch_dtype", "dtype")}
    try:
        config = AutoConfig.for_model(str(sizes["model_type"]), **made)
    except ValueError:
        raise CandidateFailed(f"transformers has no model type {sizes['model_type']!r} of its own") from None
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(out)
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(WORDS)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", bos_token="t1", eos_token="t2").save_pretrained(out)
