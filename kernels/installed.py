"""What is installed in an environment; standard library only, so that any interpreter runs this file by its path.

PYTHON installed.py NAME ...   prints {name: [version, digest of what was installed]}
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from importlib import metadata


def installed(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Name -> (version, digest of the installer's RECORD): another build of one version has other files. "" without a RECORD."""
    found = {}
    for name in names:
        try:
            one = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        record = one.read_text("RECORD") or ""
        found[name] = one.version, hashlib.sha256(record.encode()).hexdigest()[:12] if record else ""
    return found


if __name__ == "__main__":
    print(json.dumps(installed(sys.argv[1:])))
