"""Builds the artifact that this project's own gate measures: RTN 8 bit of the embedded model for ONNX Runtime, into ARGV[1]."""

import sys
from pathlib import Path

from quantadvisor.advisor.context import cache_folder
from quantadvisor.advisor.model_source import resolve_model
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.text import calibration_tokens


def build_artifact(out: Path) -> None:
    folder, _ = resolve_model("builtin:smollm2-135m", cache_folder())
    tokens, _ = calibration_tokens(folder, 128, 128)
    method("rtn").apply(folder, scheme("w8-g64"), "onnxruntime", tokens, out)


if __name__ == "__main__":
    build_artifact(Path(sys.argv[1]))
