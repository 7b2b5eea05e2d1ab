"""Takes the repository root off `sys.path`, where `python -m pytest` puts it: a folder there must shadow nobody."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
