"""A policy admits the page's own texts by their hashes and nothing else; the pages without a script admit none."""

from __future__ import annotations

import re

import pytest

from quantadvisor.documents import SelfCheck
from quantadvisor.reports import gate, selfcheck
from quantadvisor.reports.policy import digest, policy

from .test_gate import recorded


def test_the_digest_is_that_of_the_specification() -> None:
    """W3C, Content Security Policy Level 3, 8.3: the hash of its example."""
    assert digest("alert('Hello, world.');") == "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"


def test_without_a_script_nothing_runs() -> None:
    assert "script-src" not in policy("p { color: red }")
    assert f"script-src {digest('1')};" in policy("p { color: red }", "1")


HISTORY = recorded(4)
PAGES = {
    "gate": gate.page(HISTORY[0]),
    "history": gate.page(HISTORY[-1], HISTORY),
    "selfcheck": selfcheck.page(SelfCheck(proof="gpu", device="Made-up GPU", versions={}, note="", kernels=())),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_still_page_admits_its_one_style_sheet(name: str) -> None:
    page = PAGES[name]
    said = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert said == [
        f"default-src 'none'; style-src {digest(*styles)}; base-uri 'none'; form-action 'none'",
    ]
    assert page.index("<style>") > page.index(said[0])
    assert not re.search(r"<script|<link|\sstyle=|@import|url\(", page)
