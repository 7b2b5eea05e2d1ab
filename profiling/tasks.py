"""Task scores through the serving runtime: lm-evaluation-harness asks, a worker answers, item by item.

A task is a YAML file of the harness whose data lie in local files (`dataset_path: json`). The same items are asked of the
fp32 model and of the candidate, so that the drop is a mean of differences of pairs: its interval leaves out how hard the
items are. Log-likelihoods are in float16 as workers write them (steps of 0.004 at -5). Those of a quantized cache come in
passes of CHUNK tokens, each of which reads what the ones before it have stored: in one pass not every runtime reads it.

The harness (EleutherAI/lm-evaluation-harness) is the extra `tasks`; only `answers` imports it.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quantadvisor.documents import BadInput, Interval, TaskScore

from .text import read_text, text_encoder

RESAMPLES = 2000
METRICS = ("acc", "exact_match", "acc_norm")
"""Scores of one item that are read, the first that a task has."""
MOST_NEW_TOKENS = 64
CHUNK = 16
"""Tokens a pass of a quantized cache: items are short, and what the first pass says reads no cache."""


class Asked(Protocol):
    """What of a running worker is needed."""

    def write_reference(self, windows: np.ndarray, out: Path, chunk: int | None) -> None: ...

    def generate(self, tokens: np.ndarray, output_tokens: int) -> Any: ...


def answers(worker: Asked, tokenizer_folder: Path, task_file: Path, items: int,
            chunk: int | None) -> tuple[str, dict[str, float]]:  # fmt: skip
    """(metric, item -> its score 0..1) of the first `items` of a task, an item by its place and its text; `chunk`: tokens a pass,
    None for all at once."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    name = task_name(task_file)
    prefix, encode, decode = text_encoder(tokenizer_folder)

    class Runtime(LM):  # type: ignore[misc]  # lm_eval is not typed here
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return [likelihood(worker, prefix, encode, chunk, *request.args) for request in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            raise BadInput(str(task_file), "asks for the likelihood of whole texts", "quality.kl_mean_max covers that")

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [generated(worker, prefix, encode, decode, *request.args) for request in requests]

    try:
        manager, path = TaskManager(include_defaults=False), str(task_file.resolve())
        found = lm_eval.simple_evaluate(model=Runtime(), tasks=[path], task_manager=manager, limit=items, bootstrap_iters=0)
    except BadInput:
        raise
    except Exception as error:  # the harness raises whatever its readers raise
        reason = " ".join(str(error).split())[:200]
        raise BadInput(str(task_file), f"the harness cannot run it ({reason})", "check the file and its data_files") from None
    samples = found["samples"][name]
    metric = next((key for key in METRICS if key in samples[0]), None)
    if metric is None:
        raise BadInput(str(task_file), f"has none of the metrics {', '.join(METRICS)}", "name one in its metric_list")
    return metric, {item_of(sample): float(sample[metric]) for sample in samples}


def item_of(sample: Mapping[str, Any]) -> str:
    """Its place in the task, and a digest of what is asked and what is right: another text at the same place is another item."""
    said = "".join(str(sample[part]) for part in ("doc_hash", "prompt_hash", "target_hash"))
    return f"{sample['doc_id']}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def task_name(task_file: Path) -> str:
    """The `task:` of the harness's YAML, whose own tags no plain reader knows."""
    found = re.search(r"^task:\s*[\"']?([\w.-]+)", read_text(task_file, "quality.tasks"), re.MULTILINE)
    if found is None:
        raise BadInput(
            f"quality.tasks ({task_file})", "names no task", "it is a YAML file of lm-evaluation-harness with `task: …`"
        )
    return found[1]


def likelihood(worker: Asked, prefix: list[int], encode: Any, chunk: int | None, context: str,
               continuation: str) -> tuple[float, bool]:  # fmt: skip
    """(log p(continuation | context), is it what greedy decoding would say). Spaces before it belong to the continuation."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, start = encode(context + continuation), len(encode(context))
    tokens = np.array([*prefix, *whole], np.int64)
    first = max(1, len(prefix) + start)  # nothing comes before the very first token: it has no likelihood
    with tempfile.TemporaryDirectory(prefix="quantadvisor-task-") as scratch:
        worker.write_reference(tokens[None], Path(scratch) / "logs.npy", chunk)
        logs = np.load(Path(scratch) / "logs.npy", mmap_mode="r")[first - 1 : -1].astype(np.float32)
    asked = tokens[first:]
    return float(logs[np.arange(len(asked)), asked].sum()), bool((logs.argmax(-1) == asked).all())


def generated(worker: Asked, prefix: list[int], encode: Any, decode: Any, context: str, settings: Mapping[str, Any]) -> str:
    """Greedy text after `context`, up to the first of the `until` strings."""
    until = settings.get("until") or []
    made = worker.generate(np.array([[*prefix, *encode(context)]], np.int64), int(settings.get("max_gen_toks", MOST_NEW_TOKENS)))
    text = str(decode(made.generated[0]))
    for end in [until] if isinstance(until, str) else until:
        text = text.split(end)[0] if end else text
    return text


def paired(task: str, metric: str, mine: Mapping[str, float], reference: Mapping[str, float]) -> TaskScore:
    """Scores over the items that both were asked, and the drop (reference less mine) with its 95 % paired bootstrap."""
    items = sorted(set(mine) & set(reference))
    if not items:
        raise BadInput(f"quality.tasks ({task})", "no item was answered by both models", "raise its items")
    ours, theirs = (np.array([side[item] for item in items]) for side in (mine, reference))
    difference = theirs - ours
    chosen = np.random.default_rng(0).integers(0, len(items), (RESAMPLES, len(items)))
    low, high = np.percentile(difference[chosen].mean(1), [2.5, 97.5])
    mean = float(difference.mean())
    drop = Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean))
    return TaskScore(
        task=task, metric=metric, items=len(items), score=float(ours.mean()), reference=float(theirs.mean()), drop=drop
    )
