"""A server that streams tokens by a clock; `faults.json` in the model's folder says what is wrong with it."""

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TTFT_S, ITL_S = 0.03, 0.01
VOCABULARY, POOL = 8, {"num_gpu_blocks": 12, "block_size": 16}
ENGINE = "import os, time; os.setsid(); time.sleep(600)"

parser = argparse.ArgumentParser()
for name in ("model", "served-model-name", "host", "port", "dtype", "kv-cache-dtype", "kv-cache-memory-bytes", "max-model-len"):
    parser.add_argument(f"--{name}")
parser.add_argument("--enforce-eager", action="store_true")


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): ...

    def plain(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/metrics":
            pool = POOL | ({"cache_dtype": kind} if (kind := self.server.faults.get("cache_dtype")) else {})
            labels = ",".join(f'{key}="{value}"' for key, value in pool.items())
            return self.plain(f"# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{{labels}}} 1.0\n".encode())
        return self.plain(json.dumps({"data": [{"id": self.server.named}]}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        faults, tokens = self.server.faults, asked["max_tokens"]
        number = next(self.server.asked)
        with open(self.server.folder / "asked", "a") as record:
            print(json.dumps(asked), file=record)
        if number > faults.get("dies_after", 1 << 30):
            print("RuntimeError: the engine is dead", file=sys.stderr, flush=True)
            os._exit(1)
        if number > faults.get("refuses_after", 1 << 30):
            return self.plain(b'{"error": "overloaded"}', 503)
        asks = "prompt_logprobs" if "prompt_logprobs" in asked else "stream" if asked.get("stream") else "passkey"
        if asks == faults.get("never_answers"):
            time.sleep(600)
        if asks == faults.get("drips"):
            self.send_response(200)
            self.end_headers()
            for _ in range(6000):
                self.wfile.write(b" ")
                time.sleep(0.1)
        if "prompt_logprobs" in asked:
            if faults.get("no_logprobs"):
                return self.plain(b'{"error": "unknown field prompt_logprobs"}', 400)
            return self.plain(json.dumps({"choices": [{"prompt_logprobs": prompt_logprobs(asked)}]}).encode())
        if not asked.get("stream"):
            if len(asked["prompt"]) > faults.get("context", 1 << 30):
                return self.plain(b'{"error": "this model holds 30 tokens"}', 400)
            return self.plain(json.dumps({"choices": [{"text": faults.get("continues", "w " * tokens)}]}).encode())
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        time.sleep(TTFT_S)
        says = faults.get("says", ["w"])
        for i in range(tokens):
            time.sleep(ITL_S if i else 0)
            choice = {"text": says[i % len(says)] + " ", "finish_reason": "length" if i == tokens - 1 else None}
            self.event({"choices": [choice]})
        self.event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def event(self, body):
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()


def prompt_logprobs(asked):
    """Of a uniform model: the first tokens of the vocabulary, and each token of the prompt."""
    import math

    one = {"logprob": -math.log(VOCABULARY), "rank": 1}
    told = {str(token): one for token in range(min(VOCABULARY, asked["prompt_logprobs"]))}
    return [None, *(told | {str(token): one} for token in asked["prompt"][1:])]


def main():
    asked = parser.parse_args()
    folder = Path(asked.model)
    faults = json.loads((folder / "faults.json").read_text()) if (folder / "faults.json").exists() else {}
    if "engine" in faults:
        (folder / "engine").write_text(str(subprocess.Popen([sys.executable, "-c", ENGINE]).pid))
    if "error" in faults:
        print(f"ERROR 11-28 [core.py:1] {faults['error']}\nRuntimeError: Engine core initialization failed", file=sys.stderr)
        sys.exit(1)
    if "hangs" in faults:
        time.sleep(600)
    if "hog" in faults:
        threading.Timer(0.2, lambda: setattr(main, "kept", bytearray(os.urandom(1 << 20) * 500))).start()
    server = ThreadingHTTPServer((asked.host, int(asked.port)), Answers)
    server.daemon_threads = True
    server.faults, server.asked, server.folder, server.named = faults, itertools.count(1), folder, asked.served_model_name
    server.serve_forever()


if __name__ == "__main__":
    main()
