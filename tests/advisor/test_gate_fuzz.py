"""Results that were cut, edited or broken by anything: 10,000 mutations end in a decision or in one line, never a traceback."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from quantadvisor.advisor.gate_stored import gate_stored
from quantadvisor.advisor.stored_results import read_results
from quantadvisor.documents import AdvisorError, Gate, Results
from quantadvisor.reports import gate as words

from ..reports.sample import CHOICE
from .mutations import Path as Place
from .mutations import any_float, any_integer, any_text, mutated, paths
from .test_gate_stored import FILES, STRANGE, stored

KEPT = (CHOICE, "none-fp32@onnxruntime")


@cache
def whole() -> dict[str, Any]:
    """A small results document of two candidates."""
    data = stored(1, rounds=2).model_dump(mode="json", by_alias=True)
    data["candidates"] = [c for c in data["candidates"] if c["name"] in KEPT]
    data["profile"]["kernels"] = []
    return data


@cache
def baseline() -> Results:
    return Results.model_validate(whole())


@cache
def places() -> list[Place]:
    return [place for place in paths(whole()) if place]


def value(rng: random.Random) -> Any:
    """What a place is replaced with."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(STRANGE)
    if kind == 1:
        return [any_float(rng) for _ in range(rng.randint(0, 4))]
    return any_float(rng) if kind == 2 else any_integer(rng) if kind == 3 else any_text(rng, 8)


def drawn(rng: random.Random) -> str:
    """The document's text with up to three mutations; one in ten is cut short."""
    text = json.dumps(mutated(rng, whole(), places(), value))
    return text[: rng.randint(0, len(text))] if rng.randrange(10) == 0 else text


def decided(text: str, file: Path) -> str:
    """What becomes of a mutation, as either side: "decided" or the line that refuses it."""
    file.write_text(text)
    try:
        other = read_results(file)
        gates = [gate_stored(*sides, FILES) for sides in ((baseline(), other), (other, baseline()))]
    except AdvisorError as error:
        return str(error) if error.exit_code in (2, 3) else f"exit\n{error.exit_code}"
    for gate in gates:
        for render in (words.page, words.markdown, words.junit, words.workflow_commands, words.headline, words.facts):
            assert render(gate) is not None
        assert Gate.model_validate_json(gate.model_dump_json(by_alias=True)) == gate
    return "decided"


SHARES = [pytest.param(range(at, at + 2_500), marks=pytest.mark.slow) for at in range(0, 10_000, 2_500)]
"""Ten thousand in four shares, so that processes can divide them."""


@pytest.mark.parametrize("seeds", [range(150), *SHARES])
def test_mutations_end_in_a_decision_or_one_line(seeds: range, tmp_path: Path) -> None:
    seen = set()
    for seed in seeds:
        said = decided(drawn(random.Random(seed)), tmp_path / "results.json")
        assert len(said.splitlines()) == 1, f"seed {seed}: {said}"
        seen.add(said)
    assert "decided" in seen
    assert len(seen) > 10, "many reasons to refuse"
