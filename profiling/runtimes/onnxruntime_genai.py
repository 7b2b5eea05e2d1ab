"""onnxruntime-genai: the generate loop that most ONNX users run, on the same folder as `onnxruntime`.

Its kernels are ONNX Runtime's, so the evidence is the ONNX inside: a profile of the same graph. A row group cannot be
prefilled apart and a cache cannot be filled from outside: `fill` is refused.

Option `cuda`: the provider of that name in its configuration. Never run on a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import nvidia, onnxruntime, onnxruntime_cuda

NAME = "onnxruntime-genai"
OPTIONS = (nvidia.CUDA,)
MEND = "pip uninstall -y onnxruntime onnxruntime-genai && pip install onnxruntime-genai-cuda " + onnxruntime_cuda.PACKAGES


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return "onnxruntime-genai is not installed: pip install 'quantadvisor[cpu]'"
    if unknown := [option for option in options if option not in OPTIONS]:
        return f"onnxruntime-genai has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}"
    if options:
        folder = nvidia.package_folder("onnxruntime_genai")
        if folder is None or not any(folder.glob("*onnxruntime-genai-cuda.*")):
            return f"onnxruntime-genai is built without CUDA: {MEND}"
        if reason := onnxruntime_cuda.refusal(options):
            return reason
    if path is not None and not (Path(path) / "genai_config.json").exists():
        return f"{path} holds no genai_config.json"
    return None


def on_gpu(options: tuple[str, ...]) -> bool:
    return nvidia.CUDA in options


def warm_imports() -> None:
    import numpy  # noqa: F401
    import onnxruntime_genai  # noqa: F401


def open_session(path: str, options: tuple[str, ...], threads: int) -> GenaiSession:
    return GenaiSession(Path(path), threads, options)


class GenaiSession:
    """See docs/architecture.md for the methods of a session."""

    def __init__(self, folder: Path, threads: int, options: tuple[str, ...]) -> None:
        self.folder, self.threads, self.options = folder, threads, options
        self.model = self._open("model.onnx")
        self.generator: Any = None

    def prefill(self, tokens: Any, capacity: int) -> Any:
        self.generator = None
        self.generator = self._generator(self.model, len(tokens), capacity)
        return self._append(tokens)

    def decode(self, tokens: Any) -> Any:
        """A batch takes its own greedy tokens (which `tokens` are): GenAI appends to one row only."""
        import numpy as np

        if len(tokens) == 1:
            return self._append(tokens)
        self.generator.generate_next_token()
        return np.asarray(self.generator.get_logits(), np.float32)[:, -1]

    def fill(self, batch: int, capacity: int) -> None:
        raise NotImplementedError("onnxruntime-genai's cache cannot be filled from outside its generate loop")

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        import numpy as np

        model = self._open("scoring.onnx" if (self.folder / "scoring.onnx").exists() else "model.onnx")
        generator = self._generator(model, 1, len(tokens) + 1)
        step = chunk or len(tokens)
        for at in range(0, len(tokens), step):
            generator.append_tokens(tokens[None, at : at + step].astype(np.int32))
            yield np.asarray(generator.get_output("logits"), np.float32)[0]

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        """The raw runtime's evidence on the same graph, with this loop's wall times; its `batch` rows are prefilled for real."""
        import numpy as np

        onnxruntime.warm_imports()
        phases = onnxruntime.open_session(str(self.folder), self.options, self.threads).operators(tokens, batch)
        capacity = tokens.shape[1] + 8
        start = time.perf_counter()
        logits = self.prefill(tokens, capacity)
        walls = {"prefill": [time.perf_counter() - start], "decode": []}
        if batch:
            logits = self.prefill(np.repeat(tokens[:1], batch, 0), capacity)
        following = logits.argmax(-1)[:, None].astype(np.int64)
        for _ in range(5):
            start = time.perf_counter()
            self.decode(following)
            walls["decode"].append(time.perf_counter() - start)
        for phase, seconds in walls.items():
            note = "operators profiled by ONNX Runtime on the same graph; wall time of the GenAI loop"
            notes = [note, *phases[phase]["notes"]]
            phases[phase] |= {"wall_s": sorted(seconds)[len(seconds) // 2], "walls_s": seconds, "notes": notes}
        return phases

    def close(self) -> None:
        self.generator = None

    def _append(self, tokens: Any) -> Any:
        import numpy as np

        self.generator.append_tokens(tokens.astype(np.int32))
        return np.asarray(self.generator.get_logits(), np.float32)[:, -1]

    def _open(self, name: str) -> Any:
        import onnxruntime_genai as og

        config = og.Config(str(self.folder))
        session = {"intra_op_num_threads": self.threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"filename": name, "session_options": session}}}))
        if on_gpu(self.options):
            config.clear_providers()
            config.append_provider(nvidia.CUDA)
            config.set_provider_option(nvidia.CUDA, "arena_extend_strategy", "kSameAsRequested")
        return og.Model(config)

    def _generator(self, model: Any, batch: int, capacity: int) -> Any:
        import onnxruntime_genai as og

        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=capacity + 1, min_length=capacity, batch_size=batch, do_sample=False)
        return og.Generator(model, parameters)
