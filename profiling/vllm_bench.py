"""vLLM's own load generator (`vllm bench serve`), kept running in its environment: its imports take ten seconds and more.

A worker loads this file by its path in the place of a runtime; one request `bench` is one call of the generator.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any


def warm_imports() -> None:
    """ModuleNotFoundError with what mends it where this environment has no vLLM."""
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError(
            f"a server is loaded by vLLM's generator, which {sys.executable} does not have: make runtime-vllm, or name an "
            "interpreter that does as the runtime's python"
        )
    import vllm.benchmarks.serve  # noqa: F401


def bench(arguments: Sequence[str]) -> dict[str, Any]:
    """Seconds: `ttfts` [requests], `itls` [requests][gaps]; `output_lens` [requests] tokens; `errors`: of those that failed."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    found = main(parser.parse_args(list(arguments)))
    errors = [str(error) for error in found["errors"] if error]
    return {"errors": errors, **{name: found[name] for name in ("ttfts", "itls", "output_lens")}}
