"""What every stage of a run needs: the workload, the model, the device, the folders, and how a worker is started."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from quantadvisor.documents import BadInput, Candidate, Device, Inventory, Scheme, SourceCheckpoint, Workload, canonical
from quantadvisor.profiling import gpus
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.ledger import bytes_of_weights, pool_bytes
from quantadvisor.profiling.measure import prompt_batch
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.runtimes.vllm import POOL
from quantadvisor.profiling.text import JUDGED, TextSource, calibration_tokens, evaluation_tokens, passkey_prompt
from quantadvisor.profiling.workers import Allowance, RunningWorker

from .builds import Build, Built, build_all
from .candidates import CACHES_WITHIN, asked_runtimes, cache_end, recipe, session_options
from .ghosts import ghost_method
from .model_cache import derived
from .stages import Progress

CALIBRATION_LENGTH = 128
EVALUATION_TOKENS, MOST_EVALUATION_TOKENS = JUDGED
WINDOW = 512
REQUEST_LIMIT_S, CANDIDATE_LIMIT_S = 600.0, 1200.0
"""What a worker may take for one answer, and a candidate for all of them, where budget.advise_s is no more than that."""
SHORTEST_PASSKEY = 96
GHOST_SAMPLES = 2
"""Calibration samples of a ghost: its numbers are random, only its shapes matter."""
OWN_CHANNELS = ("llm_int8",)
"""Methods whose ghosts take shapes from calibration: how many channels are outliers."""
WEIGHING = ("mixed",)
"""Methods that choose each linear's width by what kernels take: their `apply` takes `linear_s`."""


def cache_folder() -> Path:
    """Exports, ghosts, references and timings that outlive a run: $QUANTADVISOR_CACHE or ~/.cache/quantadvisor."""
    return Path(os.environ.get("QUANTADVISOR_CACHE") or Path.home() / ".cache" / "quantadvisor")


@dataclass(frozen=True)
class Context:
    workload: Workload
    device: Device
    inventory: Inventory
    source: SourceCheckpoint
    model_folder: Path
    out: Path
    progress: Progress
    linear_s: dict[tuple[int, int, int], float] = field(default_factory=dict)
    """Seconds that a linear takes of a request, by (N, K, bits); empty before kernels are timed, or where bytes count."""
    allowances: dict[str, Allowance] = field(default_factory=dict)
    """What is left to each candidate that was asked anything, by name."""

    @property
    def cache(self) -> Path:
        return cache_folder()

    @cached_property
    def model_cache(self) -> Path:
        return derived(self.cache, self.source, self.model_folder)

    @cached_property
    def evaluation(self) -> tuple[np.ndarray, TextSource]:
        """int64 [MOST_EVALUATION_TOKENS or as many as the text has]."""
        text = Path(self.workload.quality.text) if self.workload.quality.text else None
        for tokens in (MOST_EVALUATION_TOKENS, 8192, 4096):
            try:
                return evaluation_tokens(self.model_folder, tokens, text)
            except BadInput:
                continue
        return evaluation_tokens(self.model_folder, EVALUATION_TOKENS, text)

    def windows(self, end: int, start: int = 0) -> np.ndarray:
        """int64 [(end - start) / WINDOW, WINDOW]: tokens `start` to `end` of the evaluation text."""
        stream, _ = self.evaluation
        return stream[start : end // WINDOW * WINDOW].reshape(-1, WINDOW)

    @cached_property
    def calibration(self) -> np.ndarray:
        """int64 [samples, CALIBRATION_LENGTH]."""
        texts = self.workload.calibration.text, self.workload.quality.text
        mine, judged = (Path(text) if text else None for text in texts)
        return calibration_tokens(self.model_folder, self.workload.calibration.drawn, CALIBRATION_LENGTH, mine, judged)[0]

    @cached_property
    def prompts(self) -> np.ndarray:
        """int64 [concurrency, prompt] of the calibration text: what is timed is not what quality is judged on."""
        return prompt_batch(self.calibration.reshape(-1), self.workload.traffic)

    def calibration_file(self, samples: int) -> Path:
        path = self.out / "work" / f"calibration-{samples}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.calibration[:samples])
        return path

    def passkey(self) -> tuple[np.ndarray, np.ndarray]:
        """(prompt, answer) that fill the declared context, or the shortest that holds a pass key."""
        return passkey_prompt(self.model_folder, max(SHORTEST_PASSKEY, self.workload.traffic.context_length - 8))

    def base(self, runtime: str, ghost: bool = False) -> Path:
        """Where the fp32 export of the model (or of its ghost) for a runtime lies."""
        return self.model_cache / f"{'ghost-' if ghost else ''}{export_format(runtime)}-fp32"

    def build(self, method: str, scheme: Scheme, runtime: str, ghost: bool = False) -> Build:
        """The build of a candidate's artifact, or of its ghost's: the same operators by the cheapest method. A cache that lies in
        the artifact is put on top of that of the weights, which is built before."""
        weights = self.weights_build(*recipe(method, scheme, runtime), runtime, ghost)
        cache = CACHES_WITHIN.get(runtime, {}).get(cache_end(runtime, scheme) or "")
        if cache is None:
            return weights
        out = self.artifacts(ghost) / f"{weights.method}-{scheme.name}@{export_format(runtime)}"
        return weights.with_cache(cache, scheme, out, shared=weights.out == self.base(runtime, ghost))

    def artifacts(self, ghost: bool) -> Path:
        """Where artifacts are built: ghosts' outlive the run."""
        return self.model_cache / "ghosts" if ghost else self.out / "work"

    def weights_build(self, method: str, scheme: Scheme, runtime: str, ghost: bool) -> Build:
        """The build of an artifact with a plain cache."""
        samples = self.workload.calibration.drawn
        if ghost:
            method = ghost_method(method, scheme)
            samples = samples if method in OWN_CHANNELS else GHOST_SAMPLES
        base = None if runtime == "torch" else self.base(runtime, ghost)
        if method == "none" and scheme.compute == "fp32" and runtime != "torch":
            out = self.base(runtime, ghost)
            base = self.base(runtime) if ghost else None
        else:
            out = self.artifacts(ghost) / f"{method}-{scheme.name}@{export_format(runtime)}"
        return Build(
            method=method,
            scheme=scheme,
            runtime=runtime,
            model_folder=self.model_folder,
            out=out,
            calibration=self.calibration_file(samples),
            samples=None if ghost else self.workload.calibration.samples,
            base=base,
            apply_s=self.workload.budget.apply_s,
            train_s=self.workload.budget.train_s,
            linear_s=self.linear_s if method in WEIGHING else {},
            most=self.most_of_linears(scheme) if method in WEIGHING else {},
            ghost=ghost,
        )

    def build_all(self, builds: Sequence[Build], processes: int = 2) -> dict[Path, Built]:
        """Each built where it is not there yet, in processes that see this device alone."""
        return build_all(builds, self.progress.say, processes, environment=gpus.environment(self.device))

    def most_of_linears(self, scheme: Scheme) -> dict[str, float]:
        """What the spec leaves to the linears of a mixture, lm_head apart: seconds of a request, or bytes, which are those of all
        weights less what else the scheme stores."""
        budget = self.workload.budget
        if budget.linears_ms is not None:
            return {"most_s": budget.linears_ms / 1e3}
        if budget.weights_mib is None:
            return {}
        rest = bytes_of_weights(self.inventory.model_copy(update={"linears": ()}), scheme)
        return {"most_bytes": budget.weights_mib * 2**20 - rest}

    def build_of(self, candidate: Candidate, ghost: bool = False) -> Build:
        """The build of a candidate's artifact; of an existing checkpoint, links to its files."""
        if candidate.checkpoint is None:
            return self.build(candidate.method, candidate.scheme, candidate.runtime, ghost)
        return Build(
            method="given",
            scheme=candidate.scheme,
            runtime=candidate.runtime,
            model_folder=self.model_folder,
            out=self.out / "work" / f"{candidate.name.split('@')[0]}@{export_format(candidate.runtime)}",
            calibration=self.calibration_file(self.workload.calibration.drawn),
            base=Path(candidate.checkpoint),
            apply_s=self.workload.budget.apply_s,
        )

    def interpreter(self, runtime: str) -> str:
        """The interpreter that a runtime lives in; torch judges quality, asked for or not."""
        return asked_runtimes(self.workload).get(runtime) or interpreter_of(runtime)

    def pool_of(self, runtime: str, scheme: Scheme, requests: int | None = None) -> int:
        """Bytes of the pool of cache that the runtime takes at load; 0 where it takes none."""
        traffic = self.workload.traffic
        return pool_bytes(self.inventory, scheme, runtime, traffic.context_length, requests or traffic.concurrency)

    def options_of(self, runtime: str, options: tuple[str, ...], scheme: Scheme, requests: int | None = None) -> tuple[str, ...]:
        """What a session is opened with for so many requests of the declared context (None: as many as are declared)."""
        pool = self.pool_of(runtime, scheme, requests)
        return (*session_options(runtime, options, scheme), *([f"{POOL}{pool}"] if pool else ()))

    def worker(
        self,
        runtime: str,
        artifact: Path,
        options: tuple[str, ...],
        scheme: Scheme,
        requests: int | None = None,
        allowance: Allowance | None = None,
    ) -> RunningWorker:
        return RunningWorker(
            runtime_file(runtime),
            artifact,
            self.options_of(runtime, options, scheme, requests),
            self.device.threads,
            time_limit_s=REQUEST_LIMIT_S,
            allowance=allowance,
            python=self.interpreter(runtime),
            environment=gpus.environment(self.device),
        )

    def allowance(self, name: str) -> Allowance:
        """What the candidate of that name may keep the run waiting as a ghost, in its rounds, its scoring and its search."""
        seconds = max(CANDIDATE_LIMIT_S, self.workload.budget.advise_s)
        return self.allowances.setdefault(name, Allowance(seconds, "a larger budget.advise_s gives it more"))

    def worker_of(self, candidate: Candidate, requests: int | None = None) -> RunningWorker:
        artifact = self.build_of(candidate).out
        allowance = self.allowance(candidate.name)
        return self.worker(candidate.runtime, artifact, candidate.options, candidate.scheme, requests, allowance)


def export_format(runtime: str) -> str:
    """Runtimes that read one folder format share their artifacts."""
    return {
        "onnxruntime": "onnx",
        "onnxruntime-genai": "onnx",
        "llama.cpp": "gguf",
        "vllm": "compressed",
        "triton": "compressed",
    }.get(runtime, runtime)


def run_key(context: Context, versions: Mapping[str, str]) -> str:
    """What must be the same for a run to be resumed; `versions`: of the packages that it measures."""
    packages = json.dumps(versions, sort_keys=True)
    text = canonical(context.workload) + context.device.fingerprint + context.model_cache.name + packages
    return hashlib.sha256(text.encode()).hexdigest()[:16]
