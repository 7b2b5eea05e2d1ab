"""The child that times a package's kernels in the package's own interpreter, on a GPU that is not there: Marlin takes SECONDS.

QA_ASKED is a file in which each request is noted; an N of 13 ends the process.
"""

import json
import os
import sys
from pathlib import Path

SECONDS = 1e-6

if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        with Path(os.environ["QA_ASKED"]).open("a") as file:
            file.write(f"{asked['package']} {asked['rivals']} {asked['probe']} {asked['sizes']}\n")
        if asked["sizes"][1] == 13:
            sys.exit("planted: an illegal memory access")
        samples = {"16 bit": [9 * SECONDS] * 3, "vLLM Marlin, our integers": [SECONDS] * 3}
        print(json.dumps({"samples": samples, "without": {}}), flush=True)
