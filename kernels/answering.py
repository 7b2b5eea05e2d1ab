"""A child's side of ProbeProcess: one JSON object per line in, one out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], failed: str) -> None:
    """Answers until standard input ends. An error is the reply {failed: its type and first line}; what libraries print goes to
    standard error, so that it does not disturb the replies."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            said = {failed: f"{type(error).__name__}: {text.splitlines()[0][:300]}"}
        print(json.dumps(said), file=answers, flush=True)
