"""transformers with our Triton kernels swapped in: linears of compressed-tensors, GPTQ and bitsandbytes, a static quantized
cache, CUDA graphs in decode.

Options `kvint8`, `kvint4`, `kvfp8`, `kvturbo` choose the cache; without one it is 16 bits wide, read by torch's attention.
Needs an NVIDIA GPU. Never run on one: what holds is what the interpreter shows on tiny models, which is no speed.
The first session of a model on a GPU times configurations of its kernels, which load_s then holds; they are kept
(`kernels/triton_tuning.py`). Where a run's probe found an installed package's product faster, linears call that
(`kernels/triton_products.py`). It lives in the environment of the advisor, so unlike the others it imports ours, inside
functions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import nvidia, torch_cuda
from .triton_evidence import LINEAR, observed
from .triton_load import problems_of, quantization, settings, swapped

NAME = "triton"
OPTIONS = ("kvint8", "kvint4", "kvfp8", "kvturbo")
ELSEWHERE = "advisor selfcheck --interpreted checks its kernels' numbers here"


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    if reason := unreadable(path, options, isa) or no_gpu():
        return reason
    from quantadvisor.kernels import triton_modules

    return unchecked(triton_modules.needed(quantization(path) if path else {}, options))


def unreadable(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    """Why not even the interpreter could run it."""
    from importlib.util import find_spec

    for package in ("torch", "transformers", "triton"):
        if find_spec(package) is None:
            return f"{package} is not installed: pip install {package}"
    if unknown := [one for one in options if one not in OPTIONS]:
        return f"triton has no option {unknown[0]!r}; its caches are {', '.join(OPTIONS)}"
    if len(options) > 1:
        return f"one cache at a time, not {' and '.join(options)}"
    from quantadvisor.kernels import triton_modules

    if path is None:
        return None
    if not (Path(path) / "config.json").exists():
        return f"{path} is not a Hugging Face folder: no config.json"
    try:
        return triton_modules.refusal(quantization(path)) or triton_modules.unlike(settings(path))
    except ValueError as error:
        return f"{path}/config.json is not JSON: {error}"


def unchecked(kernels: list[str]) -> str | None:
    """None where `advisor selfcheck` found these kernels right on a GPU that is seen here, and not slower at every size. A
    session sees one GPU; of several, who asks for one is on any."""
    import torch

    from quantadvisor.kernels import gpu_timing, selfcheck_record

    seen = [gpu_timing.gpu_name(number) for number in range(torch.cuda.device_count())]
    refused = [selfcheck_record.refusal(name, kernels, gpu_timing.versions()) for name in seen]
    return None if None in refused else refused[0]


def no_gpu() -> str | None:
    """None where torch sees an NVIDIA GPU."""
    reason = nvidia.no_gpu_for_torch()
    return f"needs an NVIDIA GPU: {reason}; never run on one; {ELSEWHERE}" if reason else None


def on_gpu(options: tuple[str, ...]) -> bool:
    """Always: its kernels are for nothing else."""
    return True


def warm_imports() -> None:
    import torch
    from transformers import AutoModelForCausalLM, Cache  # noqa: F401

    torch.set_grad_enabled(False)


def open_session(path: str, options: tuple[str, ...], threads: int) -> TritonSession:
    from quantadvisor.kernels import triton_modules

    if reason := unchecked(triton_modules.needed(quantization(path), options)):
        raise ValueError(reason)
    return TritonSession(path, options, threads, "cuda")


class TritonSession:
    """See docs/architecture.md for the methods of a session. `device` "cpu": triton's interpreter, for tests."""

    def __init__(self, path: str, options: tuple[str, ...], threads: int, device: str) -> None:
        import torch

        from quantadvisor.kernels.triton_modules import CACHES

        torch.set_num_threads(threads)
        if device == "cuda":
            torch_cuda.reset_memory()
        self.device = device
        self.kind = CACHES[options[0]] if options else "16 bit"
        self.model = swapped(path, device)
        self.taken: tuple[str, ...] = ()
        if device == "cuda":
            from quantadvisor.kernels.gpu_timing import gpu_name
            from quantadvisor.kernels.triton_products import kept
            from quantadvisor.kernels.triton_tuning import tune_here
            from quantadvisor.profiling.gpu_state import with_state

            tune_here(problems_of(self.model, self.kind), with_state)
            self.take(kept(gpu_name()))
        self.places: Any = None
        self.cache: Any = None
        self.graph: Any = None

    def take(self, winners: Any) -> None:
        """Other packages' products where they won; ours is what is always there."""
        from quantadvisor.kernels.triton_products import take_over

        self.taken = take_over(self.model, winners)

    def prefill(self, tokens: Any, capacity: int) -> Any:
        self._new(len(tokens), capacity)
        return self._told(self._step(tokens, fresh=True))

    def decode(self, tokens: Any) -> Any:
        if self.device == "cuda":
            return self._replayed(tokens)
        return self._told(self._step(tokens, fresh=False))

    def fill(self, batch: int, capacity: int) -> None:
        for layer in self.cache.layers:
            layer.repeat(batch)
        self.places.lengths = self.places.lengths.repeat_interleave(batch)
        self.graph = None

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        step = chunk or len(tokens)
        self._new(1, len(tokens))
        for at in range(0, len(tokens), step):
            yield self._step(tokens[None, at : at + step], fresh=at == 0, keep=0)[0].float().cpu().numpy()

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        import numpy as np

        room = tokens.shape[1] + 8
        logits = self.prefill(tokens, room)
        following = logits.argmax(-1)[:, None].astype(np.int64)
        if batch:
            self.fill(batch, room)
            following = np.repeat(following, batch, 0)
        self.decode(following)  # captures the graph, compiles
        replays = self.replays()
        decode = self._observed(lambda: self.decode(following), lambda: self._step(following, fresh=False), rounds=3)
        prefill = self._observed(lambda: self.prefill(tokens, room), lambda: self.prefill(tokens, room), rounds=2)
        return {"prefill": prefill, "decode": decode | {"notes": [*decode["notes"], *replays]}}

    def replays(self) -> list[str]:
        """What a captured step takes without the host: each replay writes the same token to the same place."""
        from quantadvisor.profiling.gpu_peaks import event_seconds

        if self.graph is None:
            return []
        return [f"a replay of its CUDA graph takes {statistics.median(event_seconds(self.graph.replay)):.2e} s by CUDA events"]

    def allocated(self) -> tuple[int, int] | None:
        return torch_cuda.allocated() if self.device == "cuda" else None

    def close(self) -> None:
        self.cache = self.graph = None

    def _new(self, batch: int, capacity: int) -> None:
        import torch
        from transformers import Cache

        from quantadvisor.kernels.triton_modules import Places, layer_of

        self.cache = self.graph = None
        self.capacity = capacity
        lengths = torch.zeros(batch, dtype=torch.int32, device=self.device)
        self.places = Places(torch.zeros(1, dtype=torch.int64, device=self.device), lengths)
        layers = self.model.config.num_hidden_layers
        self.cache = Cache(layers=[layer_of(self.kind, self.places, batch, capacity) for _ in range(layers)])

    def _room(self, count: int) -> None:
        """Before a place beyond the buffers is written, which on a GPU would end the process."""
        if self.places.seen + count > self.capacity:
            raise ValueError(f"the cache was made for {self.capacity} tokens; {self.places.seen} are held and {count} come")

    def _step(self, tokens: Any, *, fresh: bool, keep: int = 1) -> Any:
        """tokens: [B, q] appended to each row, launched by the host -> logits. A captured graph reads other places: it goes."""
        import torch

        self.graph = None
        count, before = tokens.shape[1], self.places.seen
        self._room(count)
        self.places.fresh = fresh
        self.places.at = torch.arange(before, before + count, device=self.device)
        self.places.lengths += count
        found = self._run(torch.from_numpy(tokens).to(self.device), keep)
        self.places.seen = before + count
        return found

    def _run(self, tokens: Any, keep: int) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(
                tokens, position_ids=self.places.at[None], past_key_values=self.cache, use_cache=True, logits_to_keep=keep
            ).logits

    def _replayed(self, tokens: Any) -> Any:
        """A decode step as one CUDA graph, captured at the first one; what it reads and writes stays where it is."""
        import torch

        self._room(1)
        if self.graph is None:
            self.places.fresh = False
            self.places.at = torch.full((1,), self.places.seen, dtype=torch.int64, device=self.device)
            self.places.lengths.fill_(self.places.seen + 1)
            self.tokens = torch.from_numpy(tokens).to(self.device)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # each writes the same token to the same place
                    self._run(self.tokens, 1)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = self._run(self.tokens, 1)
        self.tokens.copy_(torch.from_numpy(tokens))
        self.places.at.fill_(self.places.seen)
        self.places.lengths.fill_(self.places.seen + 1)
        self.graph.replay()
        self.places.seen += 1
        return self._told(self.logits)

    def _observed(self, run: Any, launched: Any, rounds: int) -> dict[str, Any]:
        """Walls of `run`; its kernels from `launched`, the same pass with every kernel launched by the host."""
        import torch

        walls = []
        for _ in range(rounds):
            began = time.perf_counter()
            run()
            walls.append(time.perf_counter() - began)
        wall_s = sorted(walls)[len(walls) // 2]
        seen = observed(self.model, launched, wall_s, on_gpu=self.device == "cuda")
        linears = [one for one in self.model.modules() if isinstance(one, torch.nn.Linear)]
        ours = [one for one in self.model.modules() if hasattr(one, "kernel")]
        weights = "/".join(sorted({one.kernel for one in ours}))
        for row in seen.rows:
            in_linears = row.pop("part", None) == "linears"
            row["quantized"] = row["name"] in LINEAR or (in_linears and bool(torch_cuda.LOW_BIT.search(row["name"].lower())))
            row["linear"] = row["quantized"] or in_linears
            if row["quantized"] or "attend_kernel" in row["name"]:
                row["precision"] = weights if row["quantized"] else self.kind
        return {
            "operators": seen.rows,
            "linears": len(linears) + len(ours),
            "quantized_linears": len(ours),
            "cache": self.kind,
            "wall_s": wall_s,
            "walls_s": walls,
            **{f"{part}_s": seconds for part, seconds in seen.parts.items()},
            "other_s": max(0.0, wall_s - sum(seen.parts.values())),
            "notes": [seen.note, *self.taken],
        }

    def _told(self, logits: Any) -> Any:
        """Of the last position; on a GPU they stay there."""
        last = logits[:, -1]
        return torch_cuda.Logits(last) if self.device == "cuda" else last.float().numpy()
