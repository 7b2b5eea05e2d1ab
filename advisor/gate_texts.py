"""What a live gate is measured and judged on: prompts of the workload, the text of the quality, its fp32 reference."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from quantadvisor.documents import AdvisorError, BadInput, Device, Workload
from quantadvisor.profiling.measure import prompt_batch
from quantadvisor.profiling.text import calibration_tokens, evaluation_tokens

from .context import CALIBRATION_LENGTH, EVALUATION_TOKENS, WINDOW, Context, cache_folder
from .stages import Progress

SAMPLES = 128


class Texts(NamedTuple):
    prompts: np.ndarray
    """int64 [concurrency, prompt]"""
    windows: np.ndarray | None
    """int64 [W, WINDOW]"""
    reference: Path | None
    notes: tuple[str, ...]


def texts_of(
    workload: Workload, device: Device, artifact: Path, quality: Literal["model", "baseline", "none"], progress: Progress
) -> Texts:
    """Prompts by the baseline's own tokenizer; the reference of the workload's model, or why the baseline's stands in."""
    if not (artifact / "tokenizer.json").is_file():
        raise BadInput(f"baseline ({artifact})", "holds no tokenizer.json", "put the model's there: prompts are real text")
    stream = calibration_tokens(artifact, SAMPLES, CALIBRATION_LENGTH)[0].reshape(-1)
    prompts = prompt_batch(stream, workload.traffic)
    if quality == "none":
        return Texts(prompts, None, None, ("quality was not compared (--quality none)",))
    text = Path(workload.quality.text) if workload.quality.text else None
    windows = evaluation_tokens(artifact, EVALUATION_TOKENS, text)[0].reshape(-1, WINDOW)
    if quality == "baseline":
        return Texts(prompts, windows, None, ("quality is against the baseline (--quality baseline)",))
    try:
        made, reference = model_reference(workload, device, progress)
    except AdvisorError as error:
        return Texts(prompts, windows, None, (f"quality is against the baseline: no fp32 model: {error}",))
    if not np.array_equal(made, windows):
        said = "quality is against the baseline: the artifact's tokenizer is not the workload's model's"
        return Texts(prompts, windows, None, (said,))
    return Texts(prompts, windows, reference, ())


def model_reference(workload: Workload, device: Device, progress: Progress) -> tuple[np.ndarray, Path]:
    """(windows by the model's tokenizer, where its fp32 log-probabilities lie: kept for later gates and runs)."""
    from quantadvisor.profiling.inventory import inventory_from_config

    from .model_source import resolve_model
    from .survey import make_reference

    folder, source = resolve_model(workload.model, cache_folder(), workload.trust_remote_code, progress.say)
    inventory = inventory_from_config(json.loads((folder / "config.json").read_text()))
    with tempfile.TemporaryDirectory(prefix="quantadvisor-") as out:
        context = Context(workload, device, inventory, source, folder, Path(out), progress)
        return context.windows(EVALUATION_TOKENS), make_reference(context)
