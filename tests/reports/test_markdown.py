"""The Markdown that goes into a pull request: whole tables, every reason, and nobody's markup but ours."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from quantadvisor.reports.markdown import render_markdown

from . import sample
from .test_html import evil


def parsed(text: str) -> list[Token]:
    """Blocks as a CommonMark reader with tables sees them."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def words(tokens: list[Token]) -> str:
    return "\n".join(child.content for token in tokens for child in token.children or [])


def test_every_candidate_and_every_reason_is_there() -> None:
    made = sample.complete()
    shown = words(parsed(render_markdown([made])))
    for item in made.candidates:
        assert item.name in shown
        assert (item.refused or item.excluded or "") in shown
    for question in made.questions:
        assert question.evidence in shown


def test_the_verdict_is_the_first_heading() -> None:
    tokens = parsed(render_markdown([sample.complete()]))
    assert tokens[0].tag == "h1"
    assert tokens[1].content.startswith("Quantize to 8-bit weights")


def test_every_row_has_as_many_cells_as_its_head() -> None:
    for line_block in render_markdown([sample.complete(), sample.minimal()]).split("\n\n"):
        lines = [line for line in line_block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1, line_block


def test_commands_are_code() -> None:
    made = sample.complete()
    assert made.artifact
    fences = [token.content for token in parsed(render_markdown([made])) if token.type == "fence"]
    assert fences == ["".join(f"{item.command}\n" for item in made.artifact.serve)]


def test_hostile_names_are_words() -> None:
    """What is markup is ours: details and summary, nothing else."""
    tokens = parsed(render_markdown([evil()]))
    inline = [child for token in tokens for child in token.children or [] if child.type.startswith("html")]
    blocks = [token.content for token in tokens if token.type == "html_block"]
    assert inline == []
    assert blocks
    for block in blocks:
        assert block.replace("<details><summary>", "").replace("</summary>", "").replace("</details>", "").count("<") == 0
    assert '<script>alert("x")</script>' in words(tokens)


def test_several_are_compared_first() -> None:
    text = render_markdown([sample.complete(), sample.minimal()])
    assert text.startswith("# 2 runs side by side\n\n|")
    assert text.count("\n## ") == 2


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        render_markdown([])
