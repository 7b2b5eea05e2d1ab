"""The options and the answer of vLLM's load generator that are used here, over a plain closed loop."""

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

NAMES = (
    "backend", "base-url", "endpoint", "model", "tokenizer", "dataset-name", "random-input-len", "random-output-len",
    "random-range-ratio", "temperature", "max-concurrency", "num-prompts", "seed", "ready-check-timeout-sec",
)  # fmt: skip


def add_cli_args(parser):
    for name in NAMES:
        parser.add_argument(f"--{name}", required=True)
    for name in ("ignore-eos", "save-detailed", "disable-tqdm"):
        parser.add_argument(f"--{name}", action="store_true")


def one(args, prompt):
    connection = http.client.HTTPConnection(urlsplit(args.base_url).netloc)
    body = {"model": args.model, "prompt": prompt, "max_tokens": int(args.random_output_len), "stream": True}
    last, ttft, itl = time.perf_counter(), None, []
    try:
        connection.request("POST", args.endpoint, json.dumps(body))
        response = connection.getresponse()
        if response.status != 200:
            return 0.0, [], f"HTTP {response.status}: {response.read().decode()}"
        for line in response:
            if b'"text"' in line:
                now = time.perf_counter()
                ttft, itl = (now - last, itl) if ttft is None else (ttft, [*itl, now - last])
                last = now
    except (OSError, http.client.HTTPException) as error:
        return 0.0, [], f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return (0.0, [], "Never received a valid chunk to calculate TTFT.") if ttft is None else (ttft, itl, "")


def main(args):
    numbers = random.Random(int(args.seed))
    length = int(args.random_input_len)
    prompts = [" ".join(str(numbers.randrange(10**6)) for _ in range(length)) for _ in range(int(args.num_prompts))]
    with ThreadPoolExecutor(int(args.max_concurrency)) as users:
        ttfts, itls, errors = zip(*users.map(lambda prompt: one(args, prompt), prompts), strict=True)
    return {"ttfts": ttfts, "itls": itls, "output_lens": [len(itl) + 1 for itl in itls], "errors": errors}
