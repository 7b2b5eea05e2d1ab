"""torch through transformers, eager: the baseline that most people run. float32 or bfloat16 safetensors folders.

A decode step grows a DynamicCache by concatenation, as `generate` does: the copy is part of what this runtime costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "torch"


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    from importlib.util import find_spec

    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed: pip install {package}"
    if options:
        return f"torch has no option {options[0]!r}"
    if path is not None and not (Path(path) / "config.json").exists():
        return f"{path} is not a Hugging Face folder: no config.json"
    return None


def warm_imports() -> None:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    torch.set_grad_enabled(False)


def open_session(path: str, options: tuple[str, ...], threads: int) -> TorchSession:
    return TorchSession(path, threads)


class TorchSession:
    """See docs/architecture.md for the methods of a session."""

    def __init__(self, path: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", attn_implementation="sdpa").eval()
        self.cache: Any = None

    def prefill(self, tokens: Any, capacity: int) -> Any:
        from transformers import DynamicCache

        self.cache = None
        self.cache = DynamicCache(config=self.model.config)
        return self._forward(tokens)

    def decode(self, tokens: Any) -> Any:
        return self._forward(tokens)

    def fill(self, batch: int, capacity: int) -> None:
        self.cache.batch_repeat_interleave(batch)

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        from transformers import DynamicCache

        cache, step = DynamicCache(config=self.model.config), chunk or len(tokens)
        for at in range(0, len(tokens), step):
            yield self._run(tokens[None, at : at + step], cache, 0)[0].float().numpy()

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        import numpy as np

        logits = self.prefill(tokens, tokens.shape[1] + 8)
        following = logits.argmax(-1)[:, None].astype(np.int64)
        if batch:
            self.fill(batch, tokens.shape[1] + 8)
            following = np.repeat(following, batch, 0)
        self.decode(following)
        decode = self._observe(lambda: self.decode(following), rounds=5)
        prefill = self._observe(lambda: self.prefill(tokens, tokens.shape[1] + 8), rounds=2)
        return {"prefill": prefill, "decode": decode}

    def close(self) -> None:
        self.cache = None

    def _forward(self, tokens: Any) -> Any:
        return self._run(tokens, self.cache, 1)[:, -1].float().numpy()

    def _run(self, tokens: Any, cache: Any, keep: int) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(tokens), past_key_values=cache, use_cache=True, logits_to_keep=keep).logits

    def _observe(self, run: Any, rounds: int) -> dict[str, Any]:
        """Parts of the wall time by hooks, interleaved with plain runs whose time is the wall; operators by the profiler."""
        import torch

        walls, parts = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            walls.append(time.perf_counter() - start)
            with Stopwatch(self.model) as watch:
                start = time.perf_counter()
                run()
                parts.append(watch.parts(time.perf_counter() - start))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        quantized = sum(hasattr(module, "qweight") or hasattr(module, "weight_packed") for module in self.model.modules())
        plain = sum(isinstance(m, torch.nn.Linear) and not hasattr(m, "weight_packed") for m in self.model.modules())
        median = {key: sorted(part[key] for part in parts)[len(parts) // 2] for key in parts[0]}
        return {
            "operators": operator_counts(profile, str(next(self.model.parameters()).dtype).removeprefix("torch.")),
            "linears": plain + quantized,
            "quantized_linears": quantized,
            "wall_s": sorted(walls)[len(walls) // 2],
            "walls_s": walls,
            "notes": [],
            **median,
        }


def operator_counts(profile: Any, precision: str) -> list[dict[str, Any]]:
    """All operators that ran, most expensive first: a list cut by time would differ from look to look."""
    rows = [event for event in profile.key_averages() if event.key.startswith("aten::")]
    rows.sort(key=lambda event: -event.self_cpu_time_total)
    return [
        {
            "name": event.key,
            "count": event.count,
            "provider": "CPU",
            "precision": precision,
            "time_s": event.self_cpu_time_total / 1e6,
            "linear": event.key in ("aten::mm", "aten::addmm", "aten::mkldnn_linear", "aten::linear", "aten::bmm"),
        }
        for event in rows
    ]


class Stopwatch:
    """Times every nn.Linear, every attention call and every cache update of a model while it is entered."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seconds = {"linears": 0.0, "attention": 0.0, "cache": 0.0}
        self._undo: list[Any] = []

    def __enter__(self) -> Stopwatch:
        import torch
        from transformers import DynamicCache

        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear):
                self._wrap(module, "forward", "linears")
        self._wrap(torch.nn.functional, "scaled_dot_product_attention", "attention")
        self._wrap(DynamicCache, "update", "cache")
        return self

    def __exit__(self, *_: object) -> None:
        for undo in reversed(self._undo):
            undo()

    def parts(self, total_s: float) -> dict[str, float]:
        timed = sum(self.seconds.values())
        return {
            "linears_s": self.seconds["linears"],
            "attention_s": self.seconds["attention"],
            "cache_s": self.seconds["cache"],
            "other_s": total_s - timed,
        }

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        inner, own = getattr(owner, name), name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, inner) if own else delattr(owner, name))
