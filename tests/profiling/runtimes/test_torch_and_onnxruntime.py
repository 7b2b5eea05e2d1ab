"""torch, onnxruntime and onnxruntime-genai sessions through the real worker, on a tiny random llama, against transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai")

from quantadvisor.documents import CandidateFailed
from quantadvisor.documents.profile import only_rounds
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.runtimes.registry import runtime, runtime_file
from quantadvisor.profiling.workers import RunningWorker

from ...methods.conftest import write_llama

pytestmark = pytest.mark.filterwarnings(r"ignore:.*(torch\.jit|`torch_dtype`|swigvarlink|SwigPy).*")
TOKENS = np.random.default_rng(3).integers(3, 250, (2, 24)).astype(np.int64)
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-genai")


def test_an_adapters_products_are_no_linears_of_the_model() -> None:
    """Two linears in NF4, one with LoRA beside it: both ran quantized, and the thin products' time is that of linears."""
    from quantadvisor.profiling.runtimes.onnxruntime import phase_of_runs

    def event(node: str, operator: str) -> dict[str, object]:
        return {"name": f"{node}_kernel_time", "dur": 2e6, "args": {"op_name": operator, "provider": "CPU"}}

    run = [event("/a/MatMul_NF4", "MatMulBnb4"), event("/b/MatMul_NF4", "MatMulBnb4"), event("/b/MatMul_lora_A", "MatMul"),
           event("/b/MatMul_lora_B", "MatMul"), event("/norm", "Mul")]  # fmt: skip
    found = phase_of_runs([run], 1, [10.0])
    assert (found["linears"], found["quantized_linears"]) == (2, 2)
    assert (found["linears_s"], found["other_s"]) == (8.0, 2.0)
    assert {row["name"]: row["count"] for row in found["operators"]}["MatMul beside a quantized one"] == 2


def test_what_only_rounds_is_so_by_the_runtime_and_by_the_documents() -> None:
    """The runtime's file is loaded where no document is."""
    from quantadvisor.profiling.runtimes.onnxruntime import LINEARS, QUANTIZED, ROUNDING

    assert all(map(only_rounds, ROUNDING))
    assert not any(map(only_rounds, (*LINEARS, *QUANTIZED, "Add")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runtimes")
    hf = write_llama(root / "hf")
    method("none").apply(hf, scheme("fp32"), "onnxruntime", TOKENS, root / "onnx")
    method("kv_int8").apply(hf, scheme("fp32-kv8"), "onnxruntime", TOKENS, root / "kv8", base=root / "onnx")
    return {"torch": hf, "onnxruntime": root / "onnx", "onnxruntime-genai": root / "onnx", "kv8": root / "kv8"}


@pytest.fixture(scope="module")
def greedy(folders: dict[str, Path]) -> Any:
    """What transformers' own generate gives: int [2, 6]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["torch"]).eval()
    made = model.generate(torch.from_numpy(TOKENS), max_new_tokens=6, do_sample=False, pad_token_id=0)
    made = made[:, TOKENS.shape[1] :].tolist()
    assert not any(2 in row for row in made), "an end-of-sequence token ends a row early: take another seed"
    return made


def opened(name: str, folder: Path) -> RunningWorker:
    return RunningWorker(runtime_file(name), folder, (), 1)


@pytest.fixture(scope="module")
def workers(folders: dict[str, Path]) -> Iterator[dict[str, RunningWorker]]:
    """One of each runtime for all tests: what a test asks, an earlier question does not change."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(opened(name, folders[name])) for name in RUNTIMES}


@pytest.fixture(scope="module")
def reference(workers: dict[str, RunningWorker], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reference") / "reference.npy"
    workers["torch"].write_reference(TOKENS, file)
    return file


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_batch_generates_what_transformers_generates(name: str, workers: dict[str, RunningWorker], greedy: Any) -> None:
    made = workers[name].generate(TOKENS, 6)
    assert made.generated == greedy
    assert made.peak_bytes > 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says which libraries a process has loaded")
def test_a_torch_worker_starts_without_scikit_learn(workers: dict[str, RunningWorker]) -> None:
    loaded = Path(f"/proc/{workers['torch'].pid}/maps").read_text()
    assert "libtorch" in loaded
    assert "/sklearn/" not in loaded


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_recorded_rows_decode_alike(name: str, workers: dict[str, RunningWorker]) -> None:
    assert workers[name].steady(TOKENS, 5, 3).rows_equal


@pytest.mark.parametrize("name", RUNTIMES)
def test_scores_agree_with_the_fp32_reference(name: str, workers: dict[str, RunningWorker], reference: Path) -> None:
    for chunk in (None, 7):
        scores = workers[name].score(TOKENS, reference, chunk)
        assert np.abs(scores[1]).max() < 1e-4
        assert scores[2].mean() > 0.95


def test_an_int8_cache_is_read_and_costs_a_little(folders: dict[str, Path], reference: Path) -> None:
    with opened("onnxruntime", folders["kv8"]) as worker:
        scores = worker.score(TOKENS, reference, 6)
        seen = worker.operators(TOKENS)
    assert 1e-9 < scores[1].mean() < 0.1
    attention = [row for row in seen["decode"]["operators"] if "Attention" in row["name"]]
    assert attention
    assert all(row["quantized"] and row["precision"] == "int8 cache" for row in attention)
    assert seen["decode"]["cache"] == "int8"


@pytest.mark.parametrize("name", RUNTIMES)
def test_parts_add_up_and_operators_are_named(name: str, workers: dict[str, RunningWorker]) -> None:
    seen = workers[name].operators(TOKENS)
    for phase in ("prefill", "decode"):
        part = seen[phase]
        assert part["linears"] > 0
        assert part["quantized_linears"] == 0
        assert part["operators"][0]["count"] > 0
        assert all(part[key] >= 0 for key in ("linears_s", "attention_s", "cache_s", "other_s"))


def test_the_optimized_graph_agrees_with_what_ran(workers: dict[str, RunningWorker]) -> None:
    part = workers["onnxruntime"].operators(TOKENS)["decode"]
    (note,) = [note for note in part["notes"] if note.startswith("optimized graph: ")]
    graph = {name: int(count) for count, name in (words.split() for words in note.partition(": ")[2].split(", "))}
    ran = {row["name"]: row["count"] for row in part["operators"]}
    assert ran and graph["MatMul"] == part["linears"]
    assert ran == {name: graph[name] for name in ran}


@pytest.mark.parametrize(
    ("name", "reason"), [("torch", "config.json"), ("onnxruntime", "model.onnx"), ("onnxruntime-genai", "genai_config.json")]
)
def test_another_runtimes_artifact_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    assert reason in str(runtime(name).refuse(str(tmp_path), (), ()))
    assert "no option" in str(runtime(name).refuse(None, ("f32",), ()))
    assert runtime(name).refuse(None, (), ()) is None


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-genai"])
def test_a_folder_of_the_builders_own_scores_too(name: str, folders: dict[str, Path], reference: Path, tmp_path: Path) -> None:
    """One graph, with all logits: what onnxruntime-genai's builder writes. With the last only, the reason is said."""
    theirs, short = tmp_path / "theirs", tmp_path / "short"
    for folder, graph in ((theirs, "scoring.onnx"), (short, "model.onnx")):
        shutil.copytree(folders["onnxruntime"], folder)
        shutil.copyfile(folders["onnxruntime"] / graph, folder / "model.onnx")
        (folder / "scoring.onnx").unlink()
    with opened(name, theirs) as worker:
        assert np.abs(worker.score(TOKENS, reference, None)[1]).max() < 1e-4
        assert len(worker.generate(TOKENS, 3).generated) == 2
    with opened(name, short) as worker, pytest.raises(CandidateFailed, match="gives the last one's only"):
        worker.score(TOKENS, reference, None)


def test_a_graph_that_wants_more_than_we_bring_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Optimum's exports ask for position_ids."""
    import onnx

    folder = tmp_path / "optimum"
    shutil.copytree(folders["onnxruntime"], folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["b", "s"]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CandidateFailed, match="asks for position_ids"), opened("onnxruntime", folder):
        pass
    (folder / "genai_config.json").unlink()
    assert "holds no genai_config.json" in str(runtime("onnxruntime").refuse(str(folder), (), ()))
