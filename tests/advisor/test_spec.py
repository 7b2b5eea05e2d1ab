"""Specs: every bad one is one line that says what, where and how to mend it; every good one comes back as written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from quantadvisor.advisor import spec
from quantadvisor.advisor.spec_errors import all_fields, dotted
from quantadvisor.documents import BadInput, Workload

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
schema: quantadvisor/workload/1
model: builtin:smollm2-135m
traffic:
  prompt_tokens: 512
  output_tokens: 128
  concurrency: 1
"""


def refused(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "w.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        spec.load_workload(file)
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in line
    assert line.startswith(str(file))
    return line.removeprefix(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "colour: red\n", [":7: colour: unknown field (value 'red')", "known here"]),
        (GOOD + "objectiv: latency\n", [":7: objectiv: unknown", "did you mean objective?"]),
        (GOOD + "concurrency: 3\n", ["belongs to traffic: write traffic.concurrency"]),
        (GOOD + "slo: {ttft_s: 2}\n", [":7: slo.ttft_s", "slo.ttft_ms, in milliseconds: 2000"]),
        (GOOD + "memory_limit_gb: 8\n", ["memory_limit_gib, in GiB (2^30 bytes): 7.45058"]),
        (GOOD + "memory_limit_mib: 512\n", ["memory_limit_gib", ": 0.5"]),
        (GOOD + "slo: {ttft_ms: 2s}\n", ["must be a number in milliseconds, found '2s'", "write 2000"]),
        (GOOD + "budget: {advise_s: 3 min}\n", ["budget.advise_s: must be a number in seconds", "write 180"]),
        (GOOD + "memory_limit_gib: 8 GiB\n", ["found '8 GiB'", "write 8"]),
        (GOOD + "memory_limit_gib: -1\n", [":7: memory_limit_gib: must be greater than 0, found -1"]),
        (GOOD + "memory_limit_gib: .inf\n", ["must be finite"]),
        (GOOD.replace("512", "-512"), [":4: traffic.prompt_tokens: must be greater than 0, found -512"]),
        (GOOD.replace("512", "512.5"), ["whole number, found 512.5"]),
        (GOOD.replace("512", "many"), ["traffic.prompt_tokens: must be a number", "found 'many'"]),
        (GOOD.replace("512", "{mean: -1}"), [":4: traffic.prompt_tokens.mean: must be greater than 0"]),
        (GOOD.replace("512", "{mean: 10, min: 20}"), ["mean 10 must lie in [min, max]"]),
        (GOOD.replace("concurrency: 1", "concurrency: yes"), [":6: traffic.concurrency: yes or no"]),
        (GOOD.replace("concurrency: 1", ""), ["traffic.concurrency: is missing", "requests in flight"]),
        (GOOD.replace("schema: quantadvisor/workload/1", ""), ["add it: schema: quantadvisor/workload/1"]),
        (GOOD.replace("workload/1", "workload/9"), [":1: schema: must be 'quantadvisor/workload/1'"]),
        (GOOD.replace("  concurrency: 1", "  concurrency: 1\n  concurrency: 2"), [":7:", "given twice", "line 6"]),
        (GOOD + "objective: latncy\n", ["did you mean latency?"]),
        (GOOD + "traffic: 3\n", ["given twice"]),
        (GOOD.split("traffic")[0] + "traffic: 3\n", [":3: traffic: must be a mapping, found 3", "concurrency"]),
        (GOOD + "budget: 3\ntime_budget_s: 4\n", [":7: budget: must be a mapping", "train_s, weights_mib, linears_ms"]),
        (GOOD + "budget: {weights_gib: 2}\n", ["budget.weights_mib, in MiB (2^20 bytes): 2048"]),
        (GOOD + "budget: {weights_mib: 90 MB}\n", ["must be a number in MiB (2^20 bytes)", "write 85.8307"]),
        (GOOD + "budget: {weights_mib: 0}\n", [":7: budget.weights_mib: must be greater than 0", "4 and 8 bits are mixed"]),
        (
            GOOD + "budget: {weights_mib: 9, linears_ms: 9}\n",
            [":7: budget: weights_mib and linears_ms bound", "give one of them"],
        ),
        (GOOD + "time_budget_s: 4\nbudget: {advise_s: 2}\n", ["another name of budget.advise_s"]),
        (GOOD + "quality: {tasks: {arc.yaml: {max_drop: 1}}}\n", [":7: quality.tasks", "no task file arc.yaml"]),
        (GOOD + "quality: {tasks: {arc.yaml: {}}}\n", [":7: quality.tasks.arc.yaml.max_drop", "is missing"]),
        (GOOD + "  : : :\n", ["not YAML"]),
        (GOOD + "on: 1\n", ["is not text"]),
        (GOOD + "baseline: &a b\nfamily: [*a]\n", ["alias *a"]),
        (GOOD + "---\nmodel: b\n", ["not YAML"]),
        ("- a\n- b\n", ["must be a mapping of fields, found seq"]),
        ("", ["found nothing"]),
        (b"\xff\xfe\x00", ["not UTF-8 at byte 0"]),
        ("[" * 3000, [": nested too deeply"]),
    ],
)
def test_a_bad_spec_is_one_line(tmp_path: Path, text: str | bytes, said: list[str]) -> None:
    line = refused(tmp_path, text)
    for part in said:
        assert part in line, line


def test_a_file_that_is_not_there_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such file; write one with: advisor init"):
        spec.load_workload(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="is a folder"):
        spec.load_workload(tmp_path)


@pytest.mark.parametrize("preset", spec.PRESETS)
def test_a_written_spec_loads_again_and_documents_every_field(tmp_path: Path, preset: str) -> None:
    text = spec.init_text(preset)
    file = tmp_path / "w.yaml"
    file.write_text(text)
    assert spec.load_workload(file) == spec.workload_from_preset("builtin:smollm2-135m", preset)
    for path in all_fields():
        assert f"{path[-1]}: " in text or f"{path[-1]}:\n" in text or f"{path[-1]}:  " in text, dotted(path)


def test_a_request_log_gives_the_lengths(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"prompt_tokens": 100, "output_tokens": 10}\n{"prompt_tokens": 300, "output_tokens": 30}\n')
    file = tmp_path / "w.yaml"
    file.write_text(spec.init_text("chat", log))
    traffic = spec.load_workload(file).traffic
    assert (traffic.prompt_length, traffic.output_length, traffic.context_length) == (200, 20, 330)


def test_presets_for_any_model() -> None:
    workload = spec.workload_from_preset("org/name", "chat", 7)
    assert (workload.model, workload.traffic.concurrency) == ("org/name", 7)
    with pytest.raises(BadInput, match=r"did you mean chat\?"):
        spec.workload_from_preset("org/name", "chats")
    with pytest.raises(BadInput, match="--concurrency"):
        spec.workload_from_preset("org/name", "chat", 0)


@pytest.mark.parametrize(
    ("name", "sizes", "objective"),
    [
        ("chat", (512, 128, 1), "latency"),
        ("summarize", (1024, 16, 4), "latency"),
        ("long_context", (1984, 64, 24), "concurrency"),
    ],
)
def test_the_examples(name: str, sizes: tuple[int, int, int], objective: str) -> None:
    workload = spec.load_workload(ROOT / "examples" / f"{name}.yaml")
    traffic = workload.traffic
    assert (traffic.prompt_length, traffic.output_length, traffic.concurrency) == sizes
    assert (workload.objective, workload.quality.kl_mean_max) == (objective, 0.05)


def built(**changes: Any) -> Workload:
    return Workload.model_validate(yaml.safe_load(GOOD) | changes)


def test_what_the_model_rules_out() -> None:
    spec.check_against_model(built(), 640, 10**6)
    spec.check_against_model(built(), None, 10**6)
    with pytest.raises(BadInput, match=r"context of 640 tokens .* beyond the 639"):
        spec.check_against_model(built(), 639, 10**6)
    with pytest.raises(BadInput, match=r"memory_limit_gib: 0.001 GiB is below the smallest weights possible \(2 bit\)"):
        spec.check_against_model(built(memory_limit_gib=0.001), 8192, 34 * 2**20)


def test_what_is_declared_and_not_used_is_said() -> None:
    assert spec.not_acted_on(built()) == ()
    assert spec.not_acted_on(built(parallel={"tensor": 2})) == (
        "parallel.tensor is declared, and this version does not act on it",
    )
    assert spec.not_acted_on(spec.workload_from_preset("org/name", "chat")) == ()  # as `advisor init` writes it


def test_schemas_name_their_fields() -> None:
    assert "memory_limit_gib" in spec.schema("workload")["properties"]
    assert "verdict" in spec.schema("results")["properties"]
    with pytest.raises(BadInput, match="'report' is unknown"):
        spec.schema("report")  # type: ignore[arg-type]


def test_a_task_file_without_a_task_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "arc.yaml").write_text("dataset_path: json\n")
    (tmp_path / "w.yaml").write_text(GOOD + f"quality: {{tasks: {{{tmp_path / 'arc.yaml'}: {{max_drop: 0.1}}}}}}\n")
    with pytest.raises(BadInput, match="names no task"):
        spec.load_workload(tmp_path / "w.yaml")
