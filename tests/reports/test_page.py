"""The page in a real browser: no console error, no horizontal overflow on a phone, light and dark, scripts harmless."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from quantadvisor.reports.html import render_html

from . import sample
from .test_html import EVIL, evil

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000",
)  # fmt: skip
MEASURE = """<!doctype html><title>frame</title><body><iframe width="{width}" height="900" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
  const frame = document.querySelector("iframe").contentDocument, root = frame.documentElement;
  const body = frame.defaultView.getComputedStyle(frame.body);
  const wide = [...frame.querySelectorAll("main *")].filter((item) =>
    !item.closest(".scroll, svg, .hidden, thead") && item.getBoundingClientRect().right > root.clientWidth + 1);
  document.body.textContent = "RESULT " + JSON.stringify([root.scrollWidth, root.clientWidth, body.backgroundColor,
    wide.slice(0, 5).map((item) => item.tagName + "." + item.className), frame.querySelectorAll("script").length,
    frame.querySelectorAll("[data-copy][hidden]").length]);
}});</script>"""


def opened(page: str, folder: Path, width: int, dark: bool = False) -> tuple[list[object], list[str]]:
    """[scroll and client width, background, what sticks out, scripts, hidden buttons], and the console's lines."""
    wrapper = folder / "frame.html"
    wrapper.write_text(MEASURE.format(width=width, page=html.escape(page, quote=True)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={folder / 'user'}", "--dump-dom", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"RESULT (\[.*?\])</body>", done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:]
    return json.loads(html.unescape(found.group(1))), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("kind", ["complete", "several", "evil"])
def test_no_error_and_no_overflow(tmp_path: Path, kind: str, width: int) -> None:
    long = sample.complete(workload=sample.workload(model="/models/" + "endless-" * 60 + EVIL + "x" * 300))
    made = {"complete": [sample.complete()], "several": [sample.complete(), long, sample.minimal()], "evil": [evil()]}
    seen, console = opened(render_html(made[kind]), tmp_path, width)
    assert console == []
    assert isinstance(seen[1], int)
    assert width - 20 <= seen[1] <= width, "all but a scroll bar"
    assert seen[0] == seen[1], seen
    assert seen[3] == []
    assert seen[4] == 1
    assert seen[5] == 0, "our own script ran: no copy button is hidden"


@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium here")
def test_dark_is_dark(tmp_path: Path) -> None:
    page = render_html([sample.complete()])
    backgrounds = []
    for dark in (False, True):
        folder = tmp_path / str(dark)
        folder.mkdir()
        backgrounds.append(opened(page, folder, 390, dark)[0][2])
    assert backgrounds == ["rgb(251, 250, 247)", "rgb(21, 23, 26)"]
