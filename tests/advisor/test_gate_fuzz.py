"""Results that were cut, edited or broken by anything: 10,000 mutations end in a decision or in one line, never a traceback."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantadvisor.advisor.gate_stored import gate_stored
from quantadvisor.advisor.stored_results import read_results
from quantadvisor.documents import AdvisorError, Gate, Results
from quantadvisor.reports import gate as words

from ..reports.sample import CHOICE
from .test_gate_stored import FILES, STRANGE, paths, stored

KEPT = (CHOICE, "none-fp32@onnxruntime")
HUGE = st.integers(min_value=-(10**40), max_value=10**40)
VALUES = st.one_of(
    st.sampled_from(STRANGE), st.floats(allow_nan=True), HUGE, st.text(max_size=8), st.lists(st.floats(), max_size=4)
)


@cache
def whole() -> dict[str, Any]:
    """A small results document of two candidates."""
    data = stored(1, rounds=2).model_dump(mode="json", by_alias=True)
    data["candidates"] = [c for c in data["candidates"] if c["name"] in KEPT]
    data["profile"]["kernels"] = []
    return data


@cache
def places() -> list[tuple[Any, ...]]:
    return [place for place in paths(whole()) if place]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The document's text with up to three values replaced, fields taken out or doubled, perhaps cut short."""
    data = copy.deepcopy(whole())
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(places()))
        at: Any = data
        try:
            for key in parents:
                at = at[key]
            at[last]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took it away
        what = draw(st.sampled_from(("replace", "replace", "remove", "double")))
        if what == "replace":
            at[last] = draw(VALUES)
        elif what == "remove":
            del at[last]
        elif isinstance(at, list):
            at.append(copy.deepcopy(at[last]))
    text = json.dumps(data)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


def decided(text: str, file: Path) -> str:
    """What becomes of a mutation, as either side: "decided" or the line that refuses it."""
    file.write_text(text)
    baseline = Results.model_validate(whole())
    try:
        other = read_results(file)
        gates = [gate_stored(*sides, FILES) for sides in ((baseline, other), (other, baseline))]
    except AdvisorError as error:
        return str(error) if error.exit_code in (2, 3) else f"exit\n{error.exit_code}"
    for gate in gates:
        for render in (words.page, words.markdown, words.junit, words.workflow_commands, words.headline, words.facts):
            assert render(gate) is not None
        assert Gate.model_validate_json(gate.model_dump_json(by_alias=True)) == gate
    return "decided"


OPTIONS = {"deadline": None, "derandomize": True, "database": None}
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=150, suppress_health_check=CHECKS, **OPTIONS)
@given(text=mutated())
def test_a_few_mutations(text: str, tmp_path: Path) -> None:
    assert len(decided(text, tmp_path / "results.json").splitlines()) == 1


@pytest.mark.slow
@settings(max_examples=10_000, suppress_health_check=CHECKS, **OPTIONS)
@given(text=mutated())
def test_ten_thousand_mutations(text: str, tmp_path: Path) -> None:
    assert len(decided(text, tmp_path / "results.json").splitlines()) == 1
