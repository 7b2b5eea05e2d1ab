"""`make methods`: each method has an oracle that exists, rows survive interruptions, a failure is a row, the page says it."""

import ast
import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree
from zipfile import ZipFile

import numpy as np
import pytest

from quantadvisor.advisor.builtin_model import BUILTIN_SHA256
from quantadvisor.documents import CandidateFailed, Interval
from quantadvisor.methods.registry import METHODS
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.ledger import bytes_of_weights

from .methods.conftest import write_llama

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/methods_table.py, which finds its neighbour in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in (
        "methods_table",
        "methods_page",
        "methods_distortion",
        "methods_encoder",
        "methods_encoder_fakes",
        "methods_rows",
        "methods_calibration",
        "methods_simulation",
        "methods_speeds",
        "methods_obq",
        "methods_oracles",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("methods_table", ROOT / "benchmarks" / "methods_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "methods_table", module)
    spec.loader.exec_module(module)
    return module


def planted(table: ModuleType, method: str, scheme: str, kl: float, **more: Any) -> Any:
    spread = {"mean": kl, "low": 0.9 * kl, "high": 1.1 * kl}
    quality = {"perplexity": 20.0, "kl": spread, "top1": spread, "tokens": 2048, "text": "t"}
    data = {"model": "m", "text": "t", "method": method, "scheme": scheme, "target": "weights", "kind": "measured",
            "quality": quality, "seconds": 10.0, "place": "onnxruntime"}  # fmt: skip
    return table.Row.model_validate(data | more)


def timed(table: ModuleType, name: str, device: str, ratio: float | None) -> Any:
    figure = {"median": ratio, "low": ratio, "high": ratio}
    data = {"model": "m", "name": name, "place": "onnxruntime", "device": device, "machine": f"machine {device}"}
    return table.Speed.model_validate(data | ({"decode": figure, "prefill": figure} if ratio else {"reason": "no memory left"}))


SMOLLM2 = inventory_from_config({
    "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
})  # fmt: skip
WANTED = ("rtn-w4-g64", "kbit-nf4-b64", "obq-w4-g64", "gptq-w4-g64")
ENCODED = {"model": "e", "name": "rtn-w8-g64", "target": "weights", "distance": {"mean": 0.001, "low": 0, "high": 0.002},
           "top1": 1, "bytes": 25_000_000, "plain_bytes": 100_000_000, "apply_cpu_s": 2.5, "apply_peak_bytes": 300_000_000,
           "seconds": 1}  # fmt: skip


def known(table: ModuleType, *records: Any) -> Any:
    found = table.Known({}, {}, {}, {}, {}, {})
    for record in records:
        found.add(record)
    return found


def asked(*names: str, **given: bool) -> Namespace:
    return Namespace(names=names, **({"quality_only": True, "redo": False, "redo_failed": False} | given))


def test_every_method_has_an_oracle_and_its_test_exists(table: ModuleType) -> None:
    oracles = sys.modules["methods_oracles"].ORACLES
    for name in METHODS:
        for file, function in (test.split("::") for test in oracles[name][1]):
            tree = ast.parse((ROOT / "tests" / "methods" / file).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_expected_orders_speak_of_rows_that_there_are(table: ModuleType) -> None:
    names = {f"{method}-{scheme.name}" for method, scheme in table.wanted(())}
    page = sys.modules["methods_page"]
    for order in page.EXPECTED:
        assert {order.better, order.worse} <= names
    for orders in (page.EXPECTED, page.EXPECTED_OF_THE_ENCODER):
        assert [order.otherwise for order in orders if "w4a8" in order.better] == [page.ROUNDED_BIASES]


def test_samples_make_a_line_a_method_and_a_column_a_size(table: ModuleType) -> None:
    rows, page = sys.modules["methods_rows"], sys.modules["methods_calibration"]
    made = [
        rows.Samples(
            model="m", text="t", name=name, samples=size, length=512, kl={"mean": kl, "low": kl, "high": kl}, apply_cpu_s=9
        )
        for name, size, kl in (("gptq-w4-g64", 64, 0.25), ("gptq-w4-g64", 32, 0.5), ("fpq-e2m1", 64, 2.0))
    ]
    lines = page.section(known(table, *made).samples).splitlines()
    assert lines[2:] == [
        "| method-scheme | 32 samples | 64 samples |", "|---|---:|---:|",
        "| `gptq-w4-g64` | 0.5000 [0.5000, 0.5000], 9 s | 0.2500 [0.2500, 0.2500], 9 s |",
        "| `fpq-e2m1` |  | 2.0000 [2.0000, 2.0000], 9 s |",
    ]  # fmt: skip


def test_numbers_of_samples_are_due_again_when_asked_for_or_the_code_changed(table: ModuleType) -> None:
    rows, made = sys.modules["methods_rows"], sys.modules["methods_calibration"]
    found = known(table)
    for name, kind, size in made.due(found):
        code = "older" if name == "static_int8" else rows.code_of(*made.CODE[name])
        found.add(rows.Samples(model="m", text="t", name=f"{name}-{kind}", samples=size, length=8, apply_cpu_s=1, code=code,
                               kl={"mean": 1, "low": 1, "high": 1}))  # fmt: skip
    assert len(found.samples) == len(made.due(found, redo=True)) == len(made.SIZES) * len(made.METHODS)
    assert made.due(found) == [("static_int8", "w8a8-static", size) for size in made.SIZES]
    assert rows.code_of("obq") != rows.code_of("gptq")


def test_redo_reaches_all_that_can_be_named(table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(source=SimpleNamespace(sha256="m" * 64))
    monkeypatch.setattr(table, "context_of", lambda *_, **__: context)
    monkeypatch.setattr(table, "text_of", lambda _: "t")
    monkeypatch.setattr(table, "page", lambda *_: "")
    told: list[tuple[str, bool]] = []
    for module in ("encoder", "calibration", "obq", "oracles"):
        fill = sys.modules[f"methods_{module}"]
        monkeypatch.setattr(fill, "fill", lambda *given, module=module: told.append((module, given[-1])))
    names = (table.ENCODER, table.SAMPLES, table.GREEDY, table.ORACLES)
    place = ["--out", str(tmp_path), "--page", str(tmp_path / "page.md")]
    monkeypatch.setattr(sys, "argv", ["methods_table.py", "--redo", *names, *place])
    table.main()
    assert told == [(module, True) for module in ("encoder", "calibration", "obq", "oracles")]


def test_obq_is_set_beside_gptq_on_a_few_rows_of_some_layers(table: ModuleType, tmp_path: Path) -> None:
    """Of the test model: one record a linear, made once unless asked for again or the code changed; both below RTN, whose ranges
    are not searched either."""
    made = sys.modules["methods_obq"]
    calibration, llama = tmp_path / "calibration.npy", write_llama(tmp_path / "hf")
    np.save(calibration, np.random.default_rng(0).integers(3, 250, (8, 32)))
    context = SimpleNamespace(
        inventory=SimpleNamespace(layers=2), model_folder=llama, source=SimpleNamespace(sha256="m" * 64),
        calibration_file=lambda _: calibration,
    )  # fmt: skip
    found = known(table)
    made.fill(context, found, tmp_path / "rows.jsonl")
    assert len(found.greedy) == 14
    for better in ("gptq", "obq"):
        assert np.median([getattr(one, better) / one.rtn for one in found.greedy.values()]) < 1
    made.fill(context, found, tmp_path / "rows.jsonl")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 14
    made.fill(context, found, tmp_path / "rows.jsonl", redo=True)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 28
    for name in list(found.greedy)[:2]:
        found.greedy[name] = found.greedy[name].model_copy(update={"code": "older"})
    made.fill(context, found, tmp_path / "rows.jsonl")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 30
    assert "4 rows in each of 14 linears of SmolLM2-135M (w4-g64)" in made.section(found.greedy)


def test_the_share_of_error_is_the_quadratic_form(table: ModuleType) -> None:
    w, h = np.array([[2.0, 1.0]], np.float32), np.array([[1.0, 0.5], [0.5, 1.0]])
    rounded = np.array([[1.0, 1.0]], np.float32)
    assert sys.modules["methods_obq"].share(w, rounded, h) == pytest.approx(1 / 7)


def test_records_come_back_the_newest_of_each_and_a_cut_line_is_passed_over(table: ModuleType, tmp_path: Path) -> None:
    rows = sys.modules["methods_rows"]
    beside, kept = tmp_path / "methods.jsonl", tmp_path / "rows.jsonl"
    old, new = planted(table, "rtn", "w4-g64", 0.5), planted(table, "rtn", "w4-g64", 0.25)
    others = [planted(table, "awq", "w4-g64", 1, model="n"), planted(table, "awq", "w4-g64", 1, text="another text")]
    speeds = [timed(table, "rtn-w4-g64", "here", 2.0), timed(table, "rtn-w4-g64", "there", 3.0)]
    rows.append(beside, planted(table, "rtn", "w8-g64", 0.1))
    for record in (old, *others, *speeds, rows.EncoderRow.model_validate(ENCODED), new):
        rows.append(kept, record)
    with kept.open("a") as file:
        file.write(old.model_dump_json()[:50])
    found = rows.read((beside, kept, tmp_path / "nowhere"), "m", "t")
    assert {name: row.quality.kl.mean for name, row in found.rows.items()} == {"rtn-w8-g64": 0.1, "rtn-w4-g64": 0.25}
    assert {key: speed.decode.median for key, speed in found.speeds.items()} == {
        ("rtn-w4-g64", "here"): 2.0, ("rtn-w4-g64", "there"): 3.0}  # fmt: skip
    assert list(found.encoder) == ["rtn-w8-g64"]
    rows.write(beside, found)
    assert rows.read((beside,), "m", "t") == found


def test_a_fresh_checkout_goes_on_from_the_records_beside_the_page(table: ModuleType) -> None:
    rows = sys.modules["methods_rows"]
    path = ROOT / "docs" / "methods.jsonl"
    lines = [rows.RECORD.validate_json(line) for line in path.read_text().splitlines()]
    texts = {line.text for line in lines if isinstance(line, rows.Row)}
    found = rows.read((path,), BUILTIN_SHA256[:12], *texts)
    assert sum(map(len, found)) == len(lines) > 0
    assert set(found.rows) <= {f"{method}-{scheme.name}" for method, scheme in table.wanted(())}
    assert path.stat().st_size < 200_000


@pytest.fixture
def context() -> Any:
    """Of model "m" and text "t" on the machine "here"."""
    device = SimpleNamespace(fingerprint="here", name="cpu", cores=2, isa=("avx2",))
    return SimpleNamespace(source=SimpleNamespace(sha256="m"), device=device, evaluation=(None, SimpleNamespace(sha256="t")))


def test_a_row_that_fails_is_a_row_with_its_reason_and_is_not_tried_again(
    table: ModuleType, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise CandidateFailed("no memory left")

    monkeypatch.setattr(table, "place_of", fails)
    names, kept = ("rtn-w4-g64", "rtn-w8-g64"), tmp_path / "rows.jsonl"
    found = known(table)
    table.fill(context, found, asked(*names), kept, None)
    assert [row.kind for row in found.rows.values()] == ["failed", "failed"]
    assert all("no memory left" in (row.reason or "") for row in found.rows.values())
    assert len(kept.read_text().splitlines()) == 2
    assert "min left" in capsys.readouterr().out
    table.fill(context, found, asked(*names), kept, None)
    assert len(kept.read_text().splitlines()) == 2
    table.fill(context, found, asked(*names, redo_failed=True), kept, None)
    assert len(kept.read_text().splitlines()) == 4


def test_a_row_of_other_code_is_made_again_and_marked_until_then(
    table: ModuleType, context: Any, written: Callable[..., str]
) -> None:
    now = sys.modules["methods_rows"].code_of("rtn")
    for code, old in ((now, False), ("", False), ("before", True)):
        row = planted(table, "rtn", "w4-g64", 0.5, code=code, bytes=10**8, plain_bytes=4 * 10**8)
        assert table.row_due(context, known(table, row), "rtn", table.scheme("w4-g64"), asked()) is old
        assert ("`rtn-w4-g64`** ° |" in written(row)) is old


def test_what_cannot_even_be_simulated_is_refused_with_what_is_missing(
    table: ModuleType, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'llama_cpp'", name="llama_cpp")

    monkeypatch.setattr(table, "place_of", lambda *_: (None, "llama.cpp is not here: make runtime-llama"))
    monkeypatch.setattr(table, "simulated", lacks)
    (method, made), = table.wanted(["gguf-q4_k"])  # fmt: skip
    row = table.row_of(context, method, made, None)
    assert (row.kind, row.reason) == ("refused", "llama.cpp is not here: make runtime-llama; simulating it takes llama_cpp too")


def test_quality_first_and_later_only_the_speeds(
    table: ModuleType, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def row_of(_: Any, method: str, scheme: Any, __: Any) -> Any:
        made.append(f"{method}-{scheme.name}")
        return planted(table, method, scheme.name, 0.5)

    def speed_of(_: Any, one: Any, __: Any) -> Any:
        made.append("speed of " + one)
        return timed(table, one, "here", 2.0)

    removed: list[str] = []
    monkeypatch.setattr(table, "row_of", row_of)
    monkeypatch.setattr(table, "speed_of", speed_of)
    monkeypatch.setattr(table, "place_of", lambda _, method, scheme: (f"{method}-{scheme.name}", ""))
    monkeypatch.setattr(table, "discard", lambda _, method, scheme, place: removed.append(f"{method}-{scheme.name}"))
    kept, found = tmp_path / "rows.jsonl", known(table, timed(table, "rtn-w4-g64", "there", 9.0))
    table.fill(context, found, asked("rtn-w4-g64"), kept, None)
    assert made == ["rtn-w4-g64"]
    table.fill(context, found, asked("rtn-w4-g64"), kept, None)
    assert made == ["rtn-w4-g64"]
    table.fill(context, found, asked("rtn-w4-g64", quality_only=False), kept, None)
    assert made == ["rtn-w4-g64", "speed of rtn-w4-g64"]
    assert found.speeds["rtn-w4-g64", "here"].decode.median == 2.0
    assert found.speeds["rtn-w4-g64", "there"].decode.median == 9.0
    table.fill(context, found, asked("rtn-w4-g64", quality_only=False), kept, None)
    assert len(made) == 2
    table.fill(context, found, asked("rtn-w4-g64", redo=True), kept, None)
    assert made[2:] == ["rtn-w4-g64"]


def test_an_artifact_that_was_dear_is_kept_until_it_is_timed(
    table: ModuleType, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = 2 * table.KEPT_S
    monkeypatch.setattr(table, "row_of", lambda _, m, s, __: planted(table, m, s.name, 1, apply_cpu_s=dear if m == "gptq" else 1))
    monkeypatch.setattr(table, "speed_of", lambda _, one, __: timed(table, one, "here", 2.0))
    monkeypatch.setattr(table, "place_of", lambda _, method, scheme: (f"{method}-{scheme.name}", ""))
    removed: list[str] = []
    monkeypatch.setattr(table, "discard", lambda _, method, scheme, place: removed.append(f"{method}-{scheme.name}"))
    names, found = ("rtn-w4-g64", "gptq-w4-g64"), known(table)
    table.fill(context, found, asked(*names), tmp_path / "rows.jsonl", None)
    assert removed == ["rtn-w4-g64"]
    table.fill(context, found, asked(*names, quality_only=False), tmp_path / "rows.jsonl", None)
    assert sorted(removed) == ["gptq-w4-g64", "rtn-w4-g64", "rtn-w4-g64"]


@pytest.mark.parametrize(("kind", "here", "again"), [("simulated", True, True), ("refused", True, True),
                                                     ("simulated", False, False), ("measured", True, False)])  # fmt: skip
def test_what_lacked_a_runtime_is_made_again_once_it_is_here(
    table: ModuleType, context: Any, monkeypatch: pytest.MonkeyPatch, kind: str, here: bool, again: bool
) -> None:
    monkeypatch.setattr(table, "place_of", lambda *_: ("a candidate", "") if here else (None, "llama.cpp is not here"))
    place = "llama.cpp" if kind == "measured" else None
    found = known(table, planted(table, "gguf", "q4_0", 0.5, kind=kind, place=place))
    (method, made), = table.wanted(["gguf-q4_0"])  # fmt: skip
    assert table.row_due(context, found, method, made, asked()) is again


def test_what_rounds_comes_before_what_searches_and_what_trains(table: ModuleType) -> None:
    names = [method for method, _ in table.cheapest_first(table.wanted(()))]
    assert names.index("turboquant") < names.index("gptq") < names.index("qlora")
    assert len(names) == len(table.wanted(()))


def test_time_left_is_rows_times_their_mean(table: ModuleType) -> None:
    assert table.remaining_s([planted(table, "rtn", "w4-g64", 1), planted(table, "rtn", "w8-g64", 1, seconds=30.0)], 3) == 60.0


def test_orders_that_do_not_hold_are_said(table: ModuleType) -> None:
    page = sys.modules["methods_page"]
    spread = {"a": (0.6, 0.5, 0.7), "b": (0.5, 0.4, 0.6), "c": (0.1, 0.0, 0.2)}
    found = {name: Interval(mean=mean, low=low, high=high) for name, (mean, low, high) in spread.items()}
    orders = [
        page.Order("first", "a", "b", "For a reason."),
        page.Order("second", "c", "b", "Not said."),
        page.Order("third", "a", "z"),
        page.Order("fourth", "a", "c"),
    ]
    first, second, third, fourth = page.expected(orders, found).splitlines()
    assert first == "- first: **does not hold here**, the intervals overlap (0.6000 against 0.5000). For a reason."
    assert fourth == "- fourth: **does not hold here** (0.6000 against 0.1000). The reason is not known"
    assert second == "- second: holds (0.1000 against 0.5000)"
    assert third == "- third: not measured"


@pytest.fixture
def written(table: ModuleType) -> Callable[..., str]:
    """The page of some records, as the machine "here" writes it."""
    page = sys.modules["methods_page"]
    context = SimpleNamespace(device=SimpleNamespace(fingerprint="here"), inventory=SMOLLM2,
                              evaluation=(None, SimpleNamespace(name="text", licence="PSF")))  # fmt: skip
    return lambda *records: page.page(known(table, *records), context, WANTED, "code")


def test_the_page_names_the_class_and_the_reason(table: ModuleType, written: Callable[..., str]) -> None:
    encoder = sys.modules["methods_encoder"]
    rows = [planted(table, "rtn", "w4-g64", 0.5, bytes=10**8, plain_bytes=4 * 10**8),
            planted(table, "kbit", "nf4-b64", 0.2, kind="simulated", place=None),
            planted(table, "obq", "w4-g64", 0.2, kind="refused", quality=None, reason="46 hours | at least")]  # fmt: skip
    text = written(*rows, encoder.EncoderRow.model_validate(ENCODED))
    assert "3 of 4 rows (1 measured, 1 simulated, 1 refused), 0 of 1 timed" in text
    assert "| `rtn-w8-g64` | weights | 25.0 | 0.25 | 0.00100 [0.00000, 0.00200] | 1.000 | 2.5 | 0.30 |" in text
    assert "| **`rtn-w4-g64`** | measured | onnxruntime | 100 | 0.25 |" in text
    assert "| `kbit-nf4-b64` | simulated |" in text
    assert "- `obq-w4-g64` refused: 46 hours \\| at least" in text
    assert "goes on with: `gptq-w4-g64`.\n" in text
    assert text.count("| not asked yet |") == len(METHODS)


def test_a_cache_is_judged_by_its_own_bytes_and_what_is_beaten_is_not_bold(
    table: ModuleType, written: Callable[..., str]
) -> None:
    kl = {"fp32-kv8": 0.01, "w8-g64-kv4": 0.1, "fp32-kv4": 0.2}
    rows = [planted(table, f"kv_int{name[-1]}", name, value, target="kv_cache", bytes=10**8, plain_bytes=10**8)
            for name, value in kl.items()]  # fmt: skip
    unrun = planted(table, "kivi", "fp32-kv2-kivi", 0.001, target="kv_cache", kind="simulated")
    text = written(*rows, unrun)
    int8 = 2 * 30 * 3 * 64 / 1e3
    assert f"| **`kv_int8-fp32-kv8`** | measured | onnxruntime | {int8:.1f} kB a token | 0.25 | 0.0100" in text
    assert "| **`kv_int4-w8-g64-kv4`**" in text
    assert "| `kv_int4-fp32-kv4` | measured" in text
    assert "| `kivi-fp32-kv2-kivi` | simulated" in text
    assert text.index("kv_int8-fp32-kv8") < text.index("kv_int4-w8-g64-kv4") < text.index("kv_int4-fp32-kv4")


def test_what_the_proxy_keeps_and_means_are_counted() -> None:
    """Of SmolLM2's rows of 576 weights 12 stay in 16 bits instead of 3, 20 bytes more a row; of those of 1,536 it is 31, 51 bytes
    more; a centred block of 64 has 2 bytes more, its last one too."""
    reads_576, reads_1536 = 576 + 2 * 192 + 576 + 2 * 1536, 576

    def stored(name: str) -> int:
        return bytes_of_weights(SMOLLM2, scheme(name))

    assert stored("int3-b64-p2") - stored("int3-b64") == 30 * (reads_576 * 20 + reads_1536 * 51)
    assert stored("nf4-b64-c") - stored("nf4-b64") == 30 * 2 * (reads_576 * 9 + reads_1536 * 24)


def test_the_encoder_is_in_the_package_that_make_installs(table: ModuleType) -> None:
    encoder = sys.modules["methods_encoder"]
    assert encoder.PACKAGE in (ROOT / "Makefile").read_text()
    path = encoder.archive()
    if path is None:
        pytest.skip(f"{encoder.PACKAGE} is not here")
    with ZipFile(path) as shipped:
        assert set(encoder.FILES) <= set(shipped.namelist())


def test_a_row_of_the_encoder_has_bytes_and_what_applying_cost(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny BERT: linears in codes, scales and zeros, embeddings, norms and biases in float32."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import BertConfig, BertModel

    encoder = sys.modules["methods_encoder"]
    hidden, wide, layers, words, places = 64, 128, 2, 50, 128
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": words, "max_position_embeddings": places}
    BertModel(BertConfig(hidden_size=hidden, intermediate_size=wide, type_vocab_size=2, **sizes)).save_pretrained(tmp_path)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(encoder, "builtin_paragraphs", lambda _: [" ".join(f"w{i + j}" for j in range(9)) for i in range(8)])
    made = encoder.fakes
    wanted = ("rtn-w4-g64", "dynamic_int8-w8a8")
    monkeypatch.setattr(encoder, "fakes", lambda *given: {name: made(*given)[name] for name in wanted})
    four, eight = encoder.rows(tmp_path, "digest", ())
    shapes = [(hidden, hidden)] * 4 * layers + [(wide, hidden), (hidden, wide)] * layers + [(hidden, hidden)]  # the pooler's
    others = (words + places + 2) * hidden + 2 * hidden * (1 + 2 * layers) + sum(n for n, _ in shapes)
    assert four.plain_bytes == eight.plain_bytes == 4 * (others + sum(n * k for n, k in shapes))
    assert eight.bytes == 4 * others + sum(n * k + 4 * n for n, k in shapes)
    assert four.bytes == 4 * others + sum(n * k // 2 + n * k // 64 * 4 + n * k // 64 // 2 for n, k in shapes)
    assert all(row.apply_cpu_s > 0 and row.apply_peak_bytes > 0 for row in (four, eight))


def test_rows_of_the_encoder_without_what_applying_cost_are_made_again(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = sys.modules["methods_encoder"]
    with ZipFile(tmp_path / "model.zip", "w") as shipped:
        for name in encoder.FILES:
            shipped.writestr(name, "")
    monkeypatch.setattr(encoder, "archive", lambda: tmp_path / "model.zip")
    monkeypatch.setattr(encoder, "digest_of", lambda _: "e")
    left: list[set[str]] = []
    monkeypatch.setattr(encoder, "rows", lambda _, digest, rows: left.append(set(rows)) or ())
    whole = encoder.EncoderRow.model_validate(ENCODED)
    old = whole.model_copy(update={"name": "rtn-w4-g64", "apply_cpu_s": None})
    other = whole.model_copy(update={"name": "rtn-w3-g64", "model": "another"})
    encoder.fill(known(table, whole, old, other), tmp_path / "kept")
    assert left == [{"rtn-w8-g64"}]


def test_the_page_says_why_there_is_no_encoder(table: ModuleType, written: Callable[..., str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    encoder = sys.modules["methods_encoder"]
    monkeypatch.setattr(encoder, "archive", lambda: None)
    assert f"the package {encoder.PACKAGE} is not installed" in written()
    monkeypatch.setattr(encoder, "archive", lambda: Path("model.zip"))
    assert "No rows: not measured yet." in written()


def test_rows_of_the_same_operators_and_sizes_share_their_times(table: ModuleType, written: Callable[..., str]) -> None:
    """GPTQ's integers and static ranges of another clip run as plain ones do; adapters beside, or another runtime, do not."""
    same = {"bytes": 97_718_031, "quantized_linears": 151, "linears": 151}
    rows = [
        planted(table, "rtn", "w4-g64", 0.6, **same),
        planted(table, "gptq", "w4-g64", 0.1, **same | {"bytes": 97_718_021}),
        planted(table, "gptq_lora", "w4-g64", 0.1, **same | {"bytes": 140_800_524}),
        planted(table, "awq", "w4-g64", 0.1, **same, place="openvino+f32"),
        planted(table, "static_int8", "w8a8-static", 0.7, **same),
        planted(table, "static_int8", "w8a8-static-mse", 0.5, **same),
    ]
    by_name = {row.name: row for row in rows}
    alike = {name: sys.modules["methods_rows"].twins(row, by_name) for name, row in by_name.items()}
    assert {name: found for name, found in alike.items() if found} == {
        "rtn-w4-g64": ["gptq-w4-g64"],
        "gptq-w4-g64": ["rtn-w4-g64"],
        "static_int8-w8a8-static": ["static_int8-w8a8-static-mse"],
        "static_int8-w8a8-static-mse": ["static_int8-w8a8-static"],
    }
    text = written(*rows, timed(table, "rtn-w4-g64", "here", 2.0))
    assert "1 of 6 timed, 2 with those of the same operators" in text
    assert text.count("2.00x") == 4 and text.count(", `rtn-w4-g64`'s") == 2


def test_speeds_are_of_one_machine(table: ModuleType, written: Callable[..., str]) -> None:
    """This one, else that which timed most; a row that it did not time says so, and what cannot be timed says nothing."""
    rows = [
        planted(table, "rtn", "w4-g64", 0.5),
        planted(table, "rtn", "w8-g64", 0.1),
        planted(table, "kbit", "nf4-b64", 0.2, kind="simulated"),
        planted(table, "none", "fp32", 0.0, target="none"),
    ]
    there = [timed(table, "rtn-w4-g64", "there", 3.0), timed(table, "rtn-w8-g64", "there", 4.0)]

    def speeds(text: str) -> dict[str, str]:
        lines = [line.split(" | ") for line in text.splitlines() if line.startswith(("| `", "| **`")) and "tests/" not in line]
        return {line[0].strip("| *`"): " ".join(line[10:12]).strip() for line in lines}

    theirs = written(*rows, *there)
    assert "2 of 2 timed" in theirs and "Speeds: machine there" in theirs
    assert speeds(theirs) == {"none-fp32": "", "rtn-w4-g64": "3.00x [3.00, 3.00] 3.00x [3.00, 3.00]",
                              "rtn-w8-g64": "4.00x [4.00, 4.00] 4.00x [4.00, 4.00]", "kbit-nf4-b64": ""}  # fmt: skip
    ours = written(*rows, *there, timed(table, "rtn-w4-g64", "here", None))
    assert "Speeds: machine here" in ours
    assert speeds(ours)["rtn-w4-g64"] == "failed: no memory left"
    assert speeds(ours)["rtn-w8-g64"] == "not timed yet not timed yet"
    option = timed(table, "rtn-w8-g64", "here", 4.0).model_copy(update={"place": "onnxruntime+plain"})
    other = option.model_copy(update={"place": "openvino"})
    assert "4.00x [4.00, 4.00], in onnxruntime+plain" in speeds(written(*rows, option))["rtn-w8-g64"]
    assert speeds(written(*rows, other))["rtn-w8-g64"] == "not timed yet not timed yet", "another runtime than its row's"


def test_turboquants_distortions_are_the_papers_and_would_be_said_if_they_were_not(
    table: ModuleType, written: Callable[..., str]
) -> None:
    distortion = sys.modules["methods_distortion"]
    found = distortion.distortions()
    text = distortion.section(found)
    assert [one.bits for one in found] == [1, 2, 3, 4]
    assert "**" not in text
    for one in found:  # what the paper rounds; the mse form's product is too small by the error
        assert one.mse.mean == pytest.approx({1: 0.3634, 2: 0.1175, 3: 0.0345, 4: 0.0095}[one.bits], rel=0.05)
        assert one.product.mean == pytest.approx(1 - one.mse.mean, abs=0.01)
    biased = [one._replace(unbiased=one.product, mse=one.unbiased) for one in found]
    assert distortion.section(biased).count("**biased**") == distortion.section(biased).count("**not so**") == 4
    page = sys.modules["methods_page"]
    context = SimpleNamespace(device=SimpleNamespace(fingerprint="here"), inventory=SMOLLM2,
                              evaluation=(None, SimpleNamespace(name="text", licence="PSF")))  # fmt: skip
    assert text in page.page(known(table), context, WANTED, "code", found)
    assert "TurboQuant's distortions" not in written()


def test_verdicts_are_pytests(table: ModuleType) -> None:
    oracles = sys.modules["methods_oracles"]
    named = {
        "rtn": ("closed form", ("test_affine.py::test_half_goes_to_even_and_zero_stays_zero",)),
        "awq": ("", ("test_affine.py::test_nowhere",)),
    }
    # pytest refuses a name that is not there
    assert oracles.verdicts(named) == {"rtn": "**did not run**", "awq": "**did not run**"}
    del named["awq"]
    assert oracles.verdicts(named) == {"rtn": "agrees"}


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (("", ""), "agrees"),
        (("", "<failure/>"), "**disagrees**"),
        (("", "<skipped message='no llama.cpp'/>"), "skipped here: no llama.cpp"),
        (("", None), "**did not run**"),
        (("<error/>", None), "**disagrees**"),
    ],
)
def test_every_test_of_an_oracle_must_agree(table: ModuleType, outcomes: tuple[str | None, ...], said: str) -> None:
    cases = [[ElementTree.fromstring(f"<testcase>{one}</testcase>")] if one is not None else [] for one in outcomes]
    assert sys.modules["methods_oracles"].verdict(cases) == said


def test_an_oracle_is_asked_again_when_the_code_changed_or_it_was_skipped(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Callable[..., str]
) -> None:
    oracles = sys.modules["methods_oracles"]
    asked: list[str] = []

    def verdicts(named: dict[str, Any]) -> dict[str, str]:
        asked.extend(named)
        return {name: "skipped here: no llama.cpp" if name == "gguf" else "agrees" for name in named}

    monkeypatch.setattr(oracles, "verdicts", verdicts)
    monkeypatch.setattr(oracles, "code_digest", lambda: "code")
    kept, found = tmp_path / "rows.jsonl", known(table)
    oracles.fill(found, kept)
    assert asked == list(METHODS)
    again = sys.modules["methods_rows"].read((kept,), "m", "t")
    assert again == found
    oracles.fill(again, kept)
    assert asked[len(METHODS) :] == ["gguf"]
    text = written(*again.verdicts.values(), again.verdicts["rtn"].model_copy(update={"code": "older"}))
    assert text.count("| agrees |") == len(METHODS) - 2
    assert "| agrees (as the code was before) |" in text and "| skipped here: no llama.cpp |" in text
    monkeypatch.setattr(oracles, "code_digest", lambda: "new code")
    oracles.fill(again, kept)
    assert asked[len(METHODS) + 1 :] == list(METHODS)
    oracles.fill(again, kept, redo=True)
    assert asked[2 * len(METHODS) + 1 :] == list(METHODS)
