"""The model card of an artifact: what a reader of the folder alone must find."""

from quantadvisor.methods.schemes import scheme
from quantadvisor.reports.card import render_card

from ..advisor.documents import figure
from . import sample


def test_the_card_holds_scheme_numbers_command_versions_and_hashes() -> None:
    made = sample.complete()
    assert made.artifact
    card = render_card(made)
    assert card.startswith(f"# {made.workload.model}, {made.verdict.choice}")
    for item in made.artifact.serve:
        assert item.command in card
        assert ("ran once here" if item.verified else f"not verified: {item.reason}") in card
    for name, digest in made.artifact.sha256.items():
        assert f"| {name} | `{digest}` |" in card
    for package, version in made.environment.versions.items():
        assert f"{package} {version}" in card or f"{package}: {version}" in card
    assert "| TPOT |" in card
    assert "mean KL against fp32" in card


def test_energy_is_told_by_request_and_by_token() -> None:
    made = sample.complete()
    energy = {"request_j": figure(12.8), "token_j": figure(0.1)}
    candidates = [
        c.model_copy(update={"measured": c.measured.model_copy(update=energy)}) if c.measured else c for c in made.candidates
    ]
    card = render_card(made.model_copy(update={"candidates": tuple(candidates)}))
    assert "| energy per request | 12.8 J" in card
    assert "| energy per output token | 100 mJ" in card
    assert "energy" not in render_card(made)


def test_the_card_says_which_cpus_7_bits_of_weight_are_for() -> None:
    made = sample.complete()
    chosen = [c.model_copy(update={"scheme": scheme("w7a8")}) if c.name == made.verdict.choice else c for c in made.candidates]
    card = render_card(made.model_copy(update={"candidates": tuple(chosen)}))
    assert "- Scheme: w7a8: 7-bit weights (reduce_range: exact on CPUs without VNNI), 8-bit activations\n" in card
    assert "reduce_range" not in render_card(made)


def test_without_an_artifact_there_is_no_card() -> None:
    assert render_card(sample.minimal()) == ""
