"""A page in headless Chromium, and what a script finds in it. The page sits in a frame, whose width is the screen's."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or "/usr/bin/chromium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000",
)  # fmt: skip
FRAME = """<!doctype html><html lang="en"><title>frame</title><body>
<iframe title="page" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>addEventListener("load", async () => {{
  const view = document.querySelector("iframe").contentWindow, frame = view.document, root = frame.documentElement;
  const all = (what) => Array.from(frame.querySelectorAll(what));
  let found;
  try {{ found = await (async () => {{ {script} }})(); }} catch (error) {{ found = "ERROR " + error; }}
  document.body.textContent = "RESULT " + JSON.stringify(found) + " END";
}});</script>"""
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

needed = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium here")


def dump(file: Path, dark: bool = False) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the console said."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={file.parent / 'user'}", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def look(page: str, folder: Path, width: int, script: str, dark: bool = False) -> tuple[Any, list[str]]:
    """What `script` returns (it sees `view`, `frame`, `root`, `all`), and the console's lines."""
    wrapper = folder / "frame.html"
    source = FRAME.format(width=width, page=html.escape(page, quote=True), script=script)
    wrapper.write_text(source, encoding="utf-8")
    shown, console = dump(wrapper, dark)
    found = re.search(r"RESULT (.*) END</body>", shown, re.DOTALL)
    assert found is not None, shown[-2000:]
    return json.loads(html.unescape(found.group(1))), console


def printed(page: str, folder: Path) -> str:
    """The words on paper, blanks taken out: lines and cells break them anywhere."""
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext here: apt-get install poppler-utils")
    source, paper = folder / "page.html", folder / "page.pdf"
    source.write_text(page, encoding="utf-8")
    to = (f"--user-data-dir={folder / 'user'}", "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    subprocess.run([CHROMIUM, *FLAGS, *to, source.as_uri()], capture_output=True, timeout=180, check=True)
    done = subprocess.run(["pdftotext", "-raw", "-enc", "UTF-8", paper, "-"], capture_output=True, timeout=60, check=True)
    return "".join(done.stdout.decode().split())


def axe_core() -> Path:
    """axe-core's script, as axe-playwright-python brings it (nothing else of that package is used)."""
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no axe-core here: pip install --no-deps axe-playwright-python")
    return next(Path(package.submodule_search_locations[0]).rglob("axe.min.js"))


def violations(page: str, folder: Path, width: int, dark: bool) -> list[str]:
    """axe-core's, all of its rules. Its script could not run under the page's policy, which is taken out of this copy."""
    script = """
    const code = frame.createElement("script");
    code.src = AXE;
    await new Promise((loaded, failed) => { code.onload = loaded; code.onerror = failed; frame.head.append(code); });
    all("details").forEach((item) => (item.open = true));
    const seen = await view.axe.run(frame, {resultTypes: ["violations"]});
    const words = (node) => node.html.slice(0, 160) + " " + node.any.map((check) => check.message).join();
    return [seen.passes.length, seen.violations.map((one) => one.id + ": " + one.nodes.slice(0, 3).map(words).join(" | "))];
    """
    named = f"const AXE = {json.dumps(axe_core().as_uri())};"
    found, _ = look(POLICY.sub("", page), folder, width, named + script, dark)
    assert isinstance(found, list), found
    assert found[0] > 20, "axe-core looked at the page"
    return list(found[1])
