"""Every quantized cache that a runtime here has is asked for a passkey, and one that does not find it is no choice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor import prove
from quantadvisor.advisor.builds import build_all
from quantadvisor.advisor.candidates import enumerate_candidates
from quantadvisor.advisor.context import Context
from quantadvisor.advisor.decide import with_breach
from quantadvisor.advisor.prove import run_trials, with_trial
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import SourceCheckpoint
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.quality import budget_breach, passkey_found

from ..methods.conftest import write_llama
from .documents import quality, workload

SPEC: dict[str, Any] = {
    "runtimes": ["onnxruntime", "openvino", "llama.cpp"],
    "traffic": {"prompt_tokens": 112, "output_tokens": 8, "concurrency": 1},
    "calibration": {"samples": 4},
    "quality": {"kl_mean_max": 5.0},
}
HERE = {("kv_int8", "onnxruntime"), ("kv_int4", "onnxruntime"), ("kv_int8", "openvino")}
"""Those of `make install`; llama.cpp's q8_0 and q4_0 join where it is built."""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    hf = write_llama(tmp_path / "hf", hidden_size=128, intermediate_size=384, num_key_value_heads=4, max_position_embeddings=1024)
    inventory = inventory_from_config(json.loads((hf / "config.json").read_text()))
    source = SourceCheckpoint(model=str(hf), path=str(hf), sha256="0" * 64)
    return Context(workload(model=str(hf), **SPEC), describe_device(), inventory, source, hf, tmp_path / "out", Quiet())


@pytest.mark.slow
def test_each_cache_is_asked_and_a_lost_passkey_excludes(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runtime itself says after the prompt is found; with every token another it is lost, and that excludes."""
    found = enumerate_candidates(context.workload, context.model_folder, context.device)
    caches = [one for one in found if one.scheme.quantizes_cache and not one.refused and not one.excluded]
    chosen = [one for one in caches if one.scheme.weights is None or one.runtime == "llama.cpp"]
    assert {(one.method, one.runtime) for one in chosen} >= HERE
    exports = [context.build("none", scheme("fp32"), runtime) for runtime in sorted({one.runtime for one in chosen})]
    assert not any(built.failed for built in build_all(exports, context.progress.say, processes=1).values())
    prompt = np.random.default_rng(0).integers(3, 250, 100).astype(np.int64)
    asked: list[int] = []

    def ask(worker: Any, prompt: np.ndarray, answer: np.ndarray) -> bool:
        asked.append(len(answer))
        said = np.array(worker.generate(prompt[None], 4).generated[0])
        assert passkey_found(worker, prompt, said)
        return passkey_found(worker, prompt, said + 1)

    monkeypatch.setattr(Context, "passkey", lambda _: (prompt, prompt[:4]))
    monkeypatch.setattr(prove, "passkey_found", ask)
    monkeypatch.setattr(prove, "reference_finds", lambda _: True)
    trials = run_trials(context, chosen, SimpleNamespace(name="another"), rounds=1).trials  # type: ignore[arg-type]
    for one, trial in zip(chosen, trials, strict=True):
        assert trial.failed is None, (one.name, trial.failed)
        assert trial.quality is not None and trial.quality.passkey_found is False, one.name
        assert trial.quality.chunk_tokens, "scored in one pass, the cache was never read"
        judged = with_breach(with_trial(one, trial, context), context.workload)
        assert judged.excluded == "the passkey at the declared context is not found"
    assert len(asked) == len(chosen)


def test_a_context_too_short_for_a_passkey_still_asks_for_one(context: Context) -> None:
    """Of 24 tokens: the needle goes into the shortest context that holds it, instead of ending the run."""
    short = context.workload.model_copy(
        update={"traffic": context.workload.traffic.model_copy(update={"prompt_tokens": 16, "output_tokens": 8})}
    )
    brief = Context(short, context.device, context.inventory, context.source, context.model_folder, context.out, Quiet())
    prompt, answer = brief.passkey()
    assert len(prompt) >= 24 and len(answer) > 0


def test_a_model_that_cannot_find_it_itself_is_said_to(context: Context) -> None:
    lost = quality(0.001).model_copy(update={"passkey_found": False, "passkey_reference_found": False})
    assert "nor by the fp32 model" in str(budget_breach(lost, context.workload))
    assert budget_breach(lost.model_copy(update={"passkey_found": True}), context.workload) is None
