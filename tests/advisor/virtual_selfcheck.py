"""The child in which Triton kernels check themselves, on a GPU that is not there: W8A8 is wrong, the INT4 cache slow.

QA_CHECKED is a file in which each subject that was asked for is noted. QA_VERSIONS says what is installed: the real child
imports torch and triton to say it.
"""

import json
import os
import sys
from pathlib import Path

SUBJECTS = [
    f"{name} {shape}"
    for shape in ("1x40x192", "16x4096x4096")
    for name in (
        "w4a16-g32", "w4a16-g64", "w4a16-g64-asymmetric", "w8a16-g64", "w8a8", "fp8", "decode-attention-int8",
        "decode-attention-int4", "decode-attention-fp8", "decode-attention-turbo", "llm-int8", "codebook-nf4",
    )
]  # fmt: skip


def checked(name):
    with Path(os.environ["QA_CHECKED"]).open("a") as file:
        file.write(name + "\n")
    kernel, _, shape = name.partition(" ")
    wrong, slow = kernel == "w8a8", kernel == "decode-attention-int4"
    speed = None if shape == "1x40x192" else "slower" if slow else "faster"
    return {"name": kernel, "shape": shape, "right": not wrong, "reason": "planted" if wrong else "", "speed": speed}


for line in sys.stdin:
    asked = json.loads(line)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert asked["interpreted"] is False
    if asked["probe"] == "list":
        said = {"subjects": SUBJECTS, "device": os.environ["QA_GPU"], "versions": json.loads(os.environ["QA_VERSIONS"])}
    else:
        said = checked(asked["probe"])
    print(json.dumps(said), flush=True)
