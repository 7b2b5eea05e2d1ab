"""The child that measures a GPU's roofs, on the GPU of virtual_cuda.py: started by path in the place of the real one."""

import json
import os
import sys

from quantadvisor.kernels.gpu_devices import gpus  # noqa: F401  (as the real one, it can import ours)

READ_BYTES_PER_S, FLOPS_PER_S = json.loads(os.environ["QA_ROOFS"])

for _ in sys.stdin:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    products = {number: {"source": "planted", "samples": [value] * 3} for number, value in FLOPS_PER_S.items()}
    read = {"source": "planted", "samples": [READ_BYTES_PER_S] * 3}
    refused = {"fp32": "planted: none"}
    print(json.dumps({"read": read, "products": products, "refused": refused, "l2_bytes": 1024}), flush=True)
