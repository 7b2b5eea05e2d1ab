"""The child that times kernels, on the GPU of virtual_cuda.py. QA_TIMED is a file in which each point is noted; INT4 fails.

Another package's INT8 product takes HALF the time of ours below CLIFF rows, and twice from there on.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("virtual_cuda", Path(__file__).with_name("virtual_cuda.py"))
assert spec
assert spec.loader
virtual = importlib.util.module_from_spec(spec)
spec.loader.exec_module(virtual)
CLIFF = 100
RIVAL = "torchao INT8 dynamic"
KINDS = {"16 bit": "bfloat16", "w8a8": "int-quantized", "fp8": "float-quantized"}

for line in sys.stdin:
    asked = json.loads(line)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    with Path(os.environ["QA_TIMED"]).open("a") as file:
        file.write(f"{asked['probe']} {asked['sizes']}\n")
    if kind := KINDS.get(asked["probe"]):
        plain, own = (virtual.product_s(one, *asked["sizes"]) for one in ("bfloat16", kind))
        ours = {} if asked["probe"] == "16 bit" else {"triton": [own] * 3}
        other = (
            {RIVAL: [own * (0.5 if asked["sizes"][0] < CLIFF else 2)] * 3} if asked["rivals"] and asked["probe"] == "w8a8" else {}
        )
        said = {"samples": ours | {"16 bit": [plain] * 3} | other, "without": {"GemLite A8W8 INT8 dynamic": "planted: not here"}}
    else:
        said = {"refused": "planted: it does not launch"}
    print(json.dumps(said), flush=True)
