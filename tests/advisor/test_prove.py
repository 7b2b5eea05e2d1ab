"""Which candidates more tokens are spent on; whoever breaks is a reason, and the others are measured."""

import json
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor.context import Context
from quantadvisor.advisor.prove import BLOCKS, Trial, reference_answers, run_blocks, start_workers, task_scores, undecided
from quantadvisor.advisor.stages import Quiet
from quantadvisor.advisor.survey import run_baseline
from quantadvisor.documents import BadInput, Candidate, Interval, SourceCheckpoint, Traffic
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.measure import interleave
from quantadvisor.profiling.quality import budget_breach
from quantadvisor.profiling.workers import Allowance, RunningWorker

from ..methods.conftest import run, write_llama
from ..profiling.test_tasks import InTorch, words, write_task
from .documents import candidate, quality, workload

RUNTIME = Path(__file__).parents[1] / "profiling" / "virtual_runtime.py"
PROMPTS = np.arange(16, dtype=np.int64).reshape(2, 8)
TRAFFIC = {"prompt_tokens": 8, "output_tokens": 4, "concurrency": 2}

BUDGET = {"kl_mean_max": 0.05}


def unsure(name: str, latency: float, users: float = 10) -> Candidate:
    """Its KL lies between 0.04 and 0.06."""
    made = candidate(name, latency, users=users)
    assert made.quality
    wide = made.quality.model_copy(update={"kl": Interval(mean=0.049, low=0.04, high=0.06)})
    return made.model_copy(update={"quality": wide})


def test_more_tokens_go_to_who_would_win_by_them() -> None:
    sure = candidate("rtn-w8-g64@onnxruntime", 1.0)
    faster, tied, slower = (unsure(f"rtn-w4-g{g}@onnxruntime", s) for g, s in ((32, 0.9), (64, 0.97), (128, 1.2)))
    spec = workload(quality=BUDGET)
    assert set(undecided([sure, faster, tied, slower], spec)) == {faster.name}
    assert set(undecided([faster, tied, slower], spec)) == {faster.name, tied.name, slower.name}
    excluded = faster.model_copy(update={"excluded": "simulated mean KL 0.4 is over the budget of 0.05"})
    assert undecided([sure, excluded], spec) == {}


def test_a_fast_one_outside_the_budget_makes_nobody_sure() -> None:
    spec = workload(quality=BUDGET)
    broken = candidate("rtn-w4-g64@onnxruntime", 0.5, kl=0.4)
    assert set(undecided([broken, unsure("rtn-w4-g32@onnxruntime", 0.9)], spec)) == {"rtn-w4-g32@onnxruntime"}


def test_more_users_win_where_users_count() -> None:
    spec = workload(quality=BUDGET, objective="concurrency", memory_limit_gib=1.2)
    sure = candidate("none-fp32-kv8@onnxruntime", 40.0, users=40)
    more, fewer = unsure("rtn-w8-g64-kv8@onnxruntime", 50.0, users=50), unsure("rtn-w8-g64@onnxruntime", 20.0, users=20)
    assert set(undecided([sure, more, fewer], spec)) == {more.name}
    within = workload(quality=BUDGET, objective="concurrency", memory_limit_gib=1.2, slo={"tpot_ms": 1.0})
    assert undecided([sure, more, fewer], within) == {}, "too slow, whatever its quality"


def worker(*options: str) -> RunningWorker:
    return RunningWorker(RUNTIME, Path("nowhere"), options, 1, memory_limit_bytes=300 << 20)


def test_whoever_breaks_is_a_reason_and_the_run_goes_on() -> None:
    faults = {
        "crash": "SIGSEGV",
        "hang": "no answer to generate within 1 s",
        "garbage": "printed garbage",
        "partial": "no answer to generate within 1 s",
        "nan": "NaN",
        "hog": "more than its limit of 0.29 GiB",
        "no-load": "another runtime",
    }
    with ExitStack() as stack:
        starting = {fault: worker(fault) for fault in faults} | {"whole": worker()}
        workers, refused = start_workers(starting, stack)
        for name in ("hang", "partial"):
            workers[name].time_limit_s = 1.0  # not before: a start may take longer on a busy machine
        rows, failed = interleave(workers, PROMPTS, Traffic.model_validate(TRAFFIC), 2)
    assert set(refused) == {"no-load"}
    assert set(rows) == {"whole"}
    assert len(rows["whole"]) == 2
    for name, reason in (refused | failed).items():
        assert faults[name] in reason
    assert set(refused | failed) == set(faults)


def test_one_that_is_slow_in_small_portions_is_a_reason_and_the_others_are_measured() -> None:
    with ExitStack() as stack:
        workers, refused = start_workers({"slow": worker(), "whole": worker()}, stack)
        workers["slow"].allowance = Allowance(0.6, "a larger budget.advise_s gives it more")
        rows, failed = interleave(workers, PROMPTS, Traffic.model_validate(TRAFFIC), 12)  # 1 s of one
    assert not refused
    assert failed == {
        "slow": "generate was not done when the 1 s of one candidate were over; a larger budget.advise_s gives it more"
    }
    assert {name: len(done) for name, done in rows.items()} == {"whole": 12}


def context(*options: tuple[str, ...]) -> Any:
    """A context whose workers have these options, one after the other, and then none."""
    following = chain(options, repeat(()))
    return SimpleNamespace(
        worker_of=lambda _: worker(*next(following)),
        prompts=PROMPTS,
        workload=workload(traffic=TRAFFIC),
        progress=SimpleNamespace(say=lambda _: None),
    )


def test_a_fresh_process_that_breaks_is_started_once_more() -> None:
    trial = Trial(name="rtn-w8-g64@onnxruntime", load_s=(0.1,))
    seen = run_blocks(context((), ("crash",)), candidate(trial.name, 1.0), trial)
    assert [one.block for one in seen.rounds] == [1, 2, 3, 4]
    assert [note.split(":")[0] for note in seen.notes] == ["process 3 of 5 failed"]


def test_one_that_breaks_again_leaves_what_the_others_measured() -> None:
    trial = Trial(name="rtn-w8-g64@onnxruntime", load_s=(0.1,))
    seen = run_blocks(context((), ("crash",), ("no-load",)), candidate(trial.name, 1.0), trial)
    assert [one.block for one in seen.rounds] == [1, 3, 4]
    assert len(seen.load_s) == BLOCKS  # the crash came after its load
    assert [note.split(":")[0] for note in seen.notes] == ["process 3 of 5 failed"] * 2


def test_a_baseline_that_breaks_is_one_line(tmp_path: Path) -> None:
    build = SimpleNamespace(out=tmp_path)
    stub = context()
    stub.build_all = lambda _: {tmp_path: SimpleNamespace(failed=None)}
    stub.build, stub.worker = (lambda *_: build), (lambda *_, **__: worker("crash"))
    stub.allowance = lambda _: Allowance()
    with pytest.raises(BadInput, match=r"^baseline: none-bf16@torch cannot be measured here: the worker died \(signal SIGSEGV\)"):
        run_baseline(stub, "none-bf16@torch")


ITEMS = 36


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_drop_of_a_worse_candidate_through_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RTN at 2 bits in ONNX Runtime against the fp32 model in torch, both in workers, asked by the harness: both their scores and
    the drop item by item, as the two models' own logits have them, and an interval as a mean of so many pairs has. Where the
    file's bytes are the same, the fp32 model is not asked again."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    hf, made = write_llama(tmp_path / "hf"), tmp_path / "out"
    method("rtn").apply(hf, scheme("w2-g64"), "onnxruntime", np.zeros((1, 8), np.int64), made)
    rows, right = items_of(hf, made)
    task = write_task(tmp_path, rows)
    inventory = inventory_from_config(json.loads((hf / "config.json").read_text()))
    source = SourceCheckpoint(model=str(hf), path=str(hf), sha256="0" * 64)
    reference, mine = right.mean(1)
    asked = workload(quality={"tasks": {str(task): {"max_drop": reference - mine - 0.01, "items": ITEMS}}}, traffic=TRAFFIC)
    context = Context(asked, describe_device(), inventory, source, hf, tmp_path / "run", Quiet())
    started: list[str] = []
    real = Context.worker

    def worker(self: Context, runtime: str, *more: Any) -> RunningWorker:
        started.append(runtime)
        return real(self, runtime, *more)

    monkeypatch.setattr(Context, "worker", worker)
    with context.worker("onnxruntime", made, (), scheme("w2-g64")) as running:
        [found] = task_scores(context, running, None)
    assert started == ["onnxruntime", "torch"]
    kept = reference_answers(context, task, ITEMS, ())
    assert len(started) == 2 and list(kept.values()) == list(right[0])
    assert reference_answers(context, task, ITEMS, kept) == kept and len(started) == 2
    task.write_text(task.read_text() + "# other bytes\n")
    first = dict(list(kept.items())[:2])
    assert reference_answers(context, task, 2, first) == first
    write_task(tmp_path, [rows[1], rows[0], *rows[2:]])  # the same file asks other items
    task.write_text(task.read_text() + "# other bytes\n")
    turned = reference_answers(context, task, 2, {"0-as they lie there now": 0.0})
    assert started == ["onnxruntime", "torch", "torch", "torch"]
    assert list(turned.values()) == list(first.values())[::-1] and not {*turned} & {*first}
    assert (found.task, found.metric, found.items) == (str(task), "acc", ITEMS)
    assert (found.reference, found.score) == pytest.approx((reference, mine))
    difference = right[0] - right[1]
    assert found.drop.mean == pytest.approx(difference.mean()) and difference.mean() > 0.2
    spread = 1.96 * difference.std() / np.sqrt(ITEMS)
    assert found.drop.low == pytest.approx(difference.mean() - spread, abs=1.5 / ITEMS)
    assert found.drop.high == pytest.approx(difference.mean() + spread, abs=1.5 / ITEMS)
    lost = quality(0.001).model_copy(update={"tasks": (found,)})
    assert "more than its max_drop" in str(budget_breach(lost, asked))


def items_of(hf: Path, made: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Questions on which either model prefers one choice clearly, and who is right: [fp32 and `made`, ITEMS]. The right answer is
    fp32's, but of each sixth question one that neither prefers."""
    rng, rows, right = np.random.default_rng(0), list[dict[str, Any]](), list[list[float]]()
    fp32 = InTorch(hf)
    while len(rows) < ITEMS:
        question, choices = words(rng, 5), words(rng, 3)
        tokens = np.array([int(word[1:]) for word in question])
        each = [logs[-1, [int(word[1:]) for word in choices]] for logs in (fp32.logs(tokens[None]), run(made, tokens))]
        if len(set(choices)) < 3 or min(np.diff(np.sort(one)[-2:])[0] for one in each) < 0.1:
            continue
        picks = [int(one.argmax()) for one in each]
        answer = picks[0] if len(rows) % 6 else next(choice for choice in range(3) if choice not in picks)
        rows.append({"question": " ".join(question), "choices": choices, "answer": answer})
        right.append([float(pick == answer) for pick in picks])
    return rows, np.array(right).T
