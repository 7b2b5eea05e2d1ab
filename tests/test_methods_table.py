"""`make methods`: each method has an oracle that exists, rows survive interruptions, a failure is a row, the page says it."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.methods.registry import METHODS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/methods_table.py, which finds its neighbour in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("methods_table", "methods_page", "methods_encoder"):
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
    data = {"model": "m", "method": method, "scheme": scheme, "target": "weights", "kind": "measured", "quality": quality}
    return table.Row.model_validate(data | {"seconds": 10.0} | more)


def test_every_method_has_an_oracle_and_its_test_exists(table: ModuleType) -> None:
    oracles = sys.modules["methods_page"].ORACLES
    for name in METHODS:
        file, function = oracles[name][1].split("::")
        tree = ast.parse((ROOT / "tests" / "methods" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_expected_orders_speak_of_rows_that_there_are(table: ModuleType) -> None:
    names = {f"{method}-{scheme.name}" for method, scheme in table.wanted(())}
    for _, better, worse in sys.modules["methods_page"].EXPECTED:
        assert {better, worse} <= names


def test_rows_come_back_the_newest_of_each_and_a_cut_line_is_passed_over(table: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        planted(table, "rtn", "w4-g64", 0.5),
        planted(table, "rtn", "w4-g64", 0.25),
        planted(table, "awq", "w4-g64", 1, model="n"),
    ]
    path.write_text("\n".join(row.model_dump_json() for row in rows) + "\n" + rows[0].model_dump_json()[:50])
    found = table.known_rows(path, "m")
    assert list(found) == ["rtn-w4-g64"] and found["rtn-w4-g64"].quality.kl.mean == 0.25


def test_a_row_that_fails_is_a_row_with_its_reason_and_is_not_tried_again(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise CandidateFailed("no memory left")

    monkeypatch.setattr(table, "place_of", fails)
    context = type("Context", (), {"source": type("Source", (), {"sha256": "m"})})
    names, kept = table.wanted(["rtn-w4-g64", "rtn-w8-g64"]), tmp_path / "rows.jsonl"
    rows: dict[str, Any] = {}
    table.fill(context, rows, names, kept, redo_failed=False)
    assert [row.kind for row in rows.values()] == ["failed", "failed"]
    assert all("no memory left" in (row.reason or "") for row in rows.values())
    assert len(kept.read_text().splitlines()) == 2
    assert "min left" in capsys.readouterr().out
    table.fill(context, dict(rows), names, kept, redo_failed=False)
    assert len(kept.read_text().splitlines()) == 2
    table.fill(context, dict(rows), names, kept, redo_failed=True)
    assert len(kept.read_text().splitlines()) == 4


def test_time_left_is_rows_times_their_mean(table: ModuleType) -> None:
    assert table.remaining_s([planted(table, "rtn", "w4-g64", 1), planted(table, "rtn", "w8-g64", 1, seconds=30.0)], 3) == 60.0


def test_orders_that_do_not_hold_are_said(table: ModuleType) -> None:
    page = sys.modules["methods_page"]
    rows = {row.name: row for row in (planted(table, "gptq", "w4-g64", 0.6), planted(table, "rtn", "w4-g64", 0.5),
                                      planted(table, "awq", "w4-g64", 0.1))}  # fmt: skip
    gptq, awq, *_ = page.expected(rows).splitlines()
    assert "**does not hold**, the intervals overlap (0.6000 against 0.5000)" in gptq
    assert "holds (0.1000" in awq and "overlap" not in awq


def test_the_page_names_the_class_and_the_reason(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    page = sys.modules["methods_page"]
    monkeypatch.setattr(page, "verdicts", lambda named: dict.fromkeys(named, "agrees"))
    device = type("Device", (), {"name": "cpu", "cores": 2, "isa": ("avx2",)})
    source = type("Text", (), {"name": "text", "licence": "PSF"})
    rows = [planted(table, "rtn", "w4-g64", 0.5, place="onnxruntime", bytes=10**8, plain_bytes=4 * 10**8),
            planted(table, "kbit", "nf4-b64", 0.2, kind="simulated"),
            planted(table, "obq", "w4-g64", 0.2, kind="refused", quality=None, reason="46 hours | at least")]  # fmt: skip
    encoder = sys.modules["methods_encoder"]
    one = {
        "name": "rtn-w8-g64",
        "target": "weights",
        "distance": {"mean": 0.001, "low": 0, "high": 0.002},
        "top1": 1,
        "seconds": 1,
    }
    text = page.page(rows, [encoder.EncoderRow.model_validate(one)], device, source, 2048)
    assert "| `rtn-w8-g64` | weights | 0.00100 [0.00000, 0.00200] | 1.000 | 1 |" in text
    assert "is not installed" in page.page(rows, [], device, source, 2048)
    assert "| `rtn-w4-g64` | measured | onnxruntime | 100 | 0.25 |" in text
    assert "| `kbit-nf4-b64` | simulated |" in text
    assert "- `obq-w4-g64` refused: 46 hours \\| at least" in text
    assert text.count("| agrees |") == len(METHODS)


def test_verdicts_are_pytests(table: ModuleType) -> None:
    page = sys.modules["methods_page"]
    named = {
        "rtn": ("closed form", "test_affine.py::test_half_goes_to_even_and_zero_stays_zero"),
        "awq": ("", "test_affine.py::test_nowhere"),
    }
    assert page.verdicts(named) == {"rtn": "**did not run**", "awq": "**did not run**"}  # pytest refuses a name that is not there
    del named["awq"]
    assert page.verdicts(named) == {"rtn": "agrees"}
