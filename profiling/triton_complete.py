"""`python -m quantadvisor.profiling.triton_complete FOLDER PROMPT [--cache kvturbo]`: a greedy completion by the triton runtime.

The serve command of an artifact whose runtime is triton. Exit 2 and one line where it cannot run: no GPU, kernels that
`advisor selfcheck` has not passed there, a folder that it does not read. `--interpreted` runs it in triton's interpreter on
the CPU, for models of a few layers: seconds a token, numbers alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any


def completion(session: Any, prompt: Sequence[int], most: int, end: int | None) -> list[int]:
    """Up to `most` greedy tokens after `prompt`; `end`, where it comes, is the last one."""
    import numpy as np

    logits = session.prefill(np.array([prompt], np.int64), len(prompt) + most)
    found: list[int] = []
    while True:
        following = logits.argmax(-1)[:, None].astype(np.int64)
        found.append(int(following[0, 0]))
        if len(found) >= most or found[-1] == end:
            return found
        logits = session.decode(following)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="triton_complete", description="A greedy completion by the triton runtime.")
    parser.add_argument("folder", help="a Hugging Face folder in 16 bits, or of compressed-tensors, GPTQ or bitsandbytes")
    parser.add_argument("prompt")
    parser.add_argument("--cache", default="", help="kvint8, kvint4, kvfp8 or kvturbo; without it 16 bits")
    parser.add_argument("--tokens", type=int, default=12, help="at most")
    parser.add_argument("--interpreted", action="store_true", help="on the CPU, in triton's interpreter")
    asked = parser.parse_args(arguments)
    if asked.interpreted and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
        from quantadvisor.kernels.triton_interpreter import mend

        mend()
    from quantadvisor.profiling.runtimes import triton

    options = (asked.cache,) if asked.cache else ()
    reason = "--tokens: at least 1" if asked.tokens < 1 else None
    reason = reason or (triton.unreadable if asked.interpreted else triton.refuse)(asked.folder, options, ())
    if reason is None:
        from transformers import AutoTokenizer

        triton.warm_imports()
        try:
            tokenizer = AutoTokenizer.from_pretrained(asked.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = f"{asked.folder} has no tokenizer that can be read: {str(error).splitlines()[0]}"
        else:
            prompt = tokenizer(asked.prompt)["input_ids"]
            reason = None if prompt else "the prompt has no tokens: give some text"
    if reason:
        print(f"triton: {reason}", file=sys.stderr)
        return 2
    session = triton.TritonSession(asked.folder, options, os.cpu_count() or 1, "cpu" if asked.interpreted else "cuda")
    found = completion(session, prompt, asked.tokens, tokenizer.eos_token_id)
    print(asked.prompt + tokenizer.decode([*prompt, *found]).removeprefix(tokenizer.decode(prompt)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
