"""Tasks: the paired drop by its definition, and the harness's accuracy against log-likelihoods summed in a loop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.documents import BadInput, Interval
from quantadvisor.profiling import tasks

from ..methods.conftest import write_llama


def test_the_drop_is_of_pairs() -> None:
    rng = np.random.default_rng(0)
    reference = {str(i): float(rng.integers(0, 2)) for i in range(400)}
    mine = dict(reference)
    for item in [i for i in reference if reference[i] == 1][:20]:
        mine[item] = 0.0
    found = tasks.paired("t", "acc", mine, reference)
    assert found.drop.mean == pytest.approx(20 / 400) == pytest.approx(found.reference - found.score)
    assert 0.02 < found.drop.low < 0.05 < found.drop.high < 0.08
    unpaired = 1.96 * np.sqrt(2 * 0.25 / 400)
    assert found.drop.high - found.drop.low < unpaired  # half of what two independent samples would give


def test_the_same_answers_do_not_drop_and_only_common_items_count() -> None:
    found = tasks.paired("t", "acc", {"0": 1.0, "1": 0.0, "9": 0.0}, {"0": 1.0, "1": 0.0, "2": 1.0})
    assert (found.items, found.drop.mean, found.drop.low, found.drop.high) == (2, 0, 0, 0)
    with pytest.raises(BadInput, match="no item was answered by both"):
        tasks.paired("t", "acc", {"0": 1.0}, {"1": 1.0})


def test_a_file_without_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.yaml").write_text("dataset_path: json\n")
    with pytest.raises(BadInput, match="names no task"):
        tasks.task_name(tmp_path / "no.yaml")
    with pytest.raises(BadInput, match="no such file"):
        tasks.task_name(tmp_path / "nowhere.yaml")
    (tmp_path / "yes.yaml").write_text("# c\ntask: 'words'\nf: !function utils.f\n")
    assert tasks.task_name(tmp_path / "yes.yaml") == "words"


class InTorch:
    """A worker's two answers from a model in this process."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.chunks: list[int | None] = []
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logs(self, tokens: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            return torch.log_softmax(self.model(torch.from_numpy(tokens)).logits[0], -1).numpy()

    def write_reference(self, windows: np.ndarray, out: Path, chunk: int | None) -> None:
        self.chunks.append(chunk)
        np.save(out, self.logs(windows).astype(np.float16))

    def generate(self, tokens: np.ndarray, output_tokens: int) -> Any:
        made: list[int] = []
        for _ in range(output_tokens):
            made.append(int(self.logs(np.array([[*tokens[0], *made]]))[-1].argmax()))
        return type("Generated", (), {"generated": [made]})


def test_a_drop_over_its_bound_breaks_the_budget() -> None:
    from quantadvisor.documents import Quality, Workload
    from quantadvisor.profiling.quality import budget_breach

    def breach(max_drop: float) -> str | None:
        traffic = {"prompt_tokens": 1, "output_tokens": 1, "concurrency": 1}
        workload = Workload.model_validate(
            {
                "schema": "quantadvisor/workload/1",
                "model": "m",
                "traffic": traffic,
                "quality": {"tasks": {"t": {"max_drop": max_drop}}},
            }
        )
        one = Interval(mean=0.01, low=0.01, high=0.01)
        score = tasks.paired("t", "acc", {"0": 0.0, "1": 1.0}, {"0": 1.0, "1": 1.0})
        return budget_breach(Quality(perplexity=1, kl=one, top1=one, tokens=1, text="x", tasks=(score,)), workload)

    assert breach(0.5) is None
    assert "acc of t falls by 0.500, more than its max_drop of 0.4" in str(breach(0.4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tasks") / "hf")


def test_a_likelihood_is_the_sum_over_the_continuation(folder: Path) -> None:
    from quantadvisor.profiling.text import text_encoder

    worker = InTorch(folder)
    prefix, encode, _ = text_encoder(folder)
    found, greedy = tasks.likelihood(worker, prefix, encode, None, "t5 t9 ", "t7 t8")
    logs = worker.logs(np.array([[*prefix, 5, 9, 7, 8]]))[len(prefix) :]
    assert found == pytest.approx(float(logs[1, 7] + logs[2, 8]), abs=0.02)  # log-probabilities come in float16
    assert greedy == (logs[1].argmax() == 7 and logs[2].argmax() == 8)
    best = int(logs[1].argmax())
    assert tasks.likelihood(worker, prefix, encode, None, "t5 t9", f" t{best}")[1]


def write_task(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A task of multiple choice whose items lie beside it: `question`, `choices` and the index of the right one, `answer`."""
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = folder / "words.yaml"
    path.write_text(
        f"task: words\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'items.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return path


def words(rng: np.random.Generator, many: int) -> list[str]:
    """Words t30 to t99: "t1" and "t2" are special tokens, found inside of longer names too."""
    return [f"t{i}" for i in rng.integers(30, 100, many)]


@pytest.mark.filterwarnings("ignore")
def test_the_file_that_is_named_is_asked(folder: Path, tmp_path: Path) -> None:
    """Though it is called as one of the harness's own, and another in a folder below is called so too."""
    pytest.importorskip("lm_eval")
    rows = [{"question": "t30", "choices": ["t31", "t32"], "answer": i % 2} for i in range(2)]
    task, other = write_task(tmp_path, rows), tmp_path / ".venv" / "tasks"
    task = task.rename(tmp_path / "mine.yml")
    task.write_text(task.read_text().replace("task: words", "task: arc_easy"))
    other.mkdir(parents=True)
    (other / "arc_easy.yaml").write_text(task.read_text().replace("items.jsonl", "nowhere.jsonl"))
    _, found = tasks.answers(InTorch(folder), folder, task, 2, None)
    assert sorted(found.values()) == [0.0, 1.0]


@pytest.mark.filterwarnings("ignore")
def test_the_harness_scores_a_local_multiple_choice(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {"question": " ".join(words(rng, 5)), "choices": words(rng, 4), "answer": int(rng.integers(0, 4))} for _ in range(12)
    ]
    task = write_task(tmp_path, rows)
    worker = InTorch(folder)
    metric, found = tasks.answers(worker, folder, task, 10, 4)
    assert metric == "acc" and [item.partition("-")[0] for item in found] == [str(i) for i in range(10)]
    assert set(worker.chunks) == {4}, "every likelihood comes in passes of so many tokens"
    for score, row in zip(found.values(), rows[:10], strict=True):
        question = [int(word[1:]) for word in row["question"].split()]
        prefix = tasks.text_encoder(folder)[0]
        logs = worker.logs(np.array([[*prefix, *question]]))[-1].astype(np.float16)  # as workers write them
        chosen = int(np.argmax([logs[int(choice[1:])] for choice in row["choices"]]))
        assert score == float(chosen == row["answer"])
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(BadInput, match="the harness cannot run it"):
        tasks.answers(worker, folder, task, 10, 4)
