"""What a server's distribution differs by from the fp32 model's, as far as it tells it: `prompt_logprobs`, as vLLM has them.

For each token of a text it tells the log-probability of that token and of its K most likely ones (20 by default). So the
perplexity and the top-1 agreement are exact, and the KL divergence is that of the distributions in which all other tokens
are one: by the data-processing inequality it is never more than the KL over the whole vocabulary, and reported as such.

Log-probabilities of a prompt show nothing of a quantized cache, which what is generated after a prompt is read from: a server is
asked for a passkey too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quantadvisor.documents import CandidateFailed

from .server import LONGEST_S, RunningServer, Stalled

MOST_LIKELY = 20
LOWER_BOUND = f"its KL is a lower bound: over the server's {MOST_LIKELY} most likely tokens, all others as one"


def server_scores(server: RunningServer, windows: np.ndarray, reference: Path) -> np.ndarray:
    """float64 [3, W * (S - 1)]: negative log-likelihood, KL (see above) and top-1 agreement of int64 [W, S] against the fp32
    log-probabilities float16 [W * S, V] of `reference`. A window's last position is not told. CandidateFailed where it
    does not tell any, Stalled where it does not answer in time."""
    expected = np.load(reference, mmap_mode="r")
    many, length = windows.shape
    columns = []
    for index, window in enumerate(windows):
        rows = expected[index * length : (index + 1) * length - 1].astype(np.float64)
        for position, told in enumerate(told_of(server, window.tolist())):
            columns.append(compared(told, rows[position], int(window[position + 1])))
    assert len(columns) == many * (length - 1)
    return np.array(columns).T


def told_of(server: RunningServer, tokens: Sequence[int]) -> list[dict[int, float]]:
    """Per token after the first: {token: log-probability} of it and of the most likely ones."""
    asked = {"prompt": list(tokens), "max_tokens": 1, "temperature": 0, "prompt_logprobs": MOST_LIKELY}
    if server.endpoint is None or server.endpoint.chat:
        raise CandidateFailed("the server has no /v1/completions, so its log-probabilities cannot be had")
    try:
        told = server.post(asked)["choices"][0].get("prompt_logprobs")
        found = [{int(token): float(one["logprob"]) for token, one in row.items()} for row in (told or [])[1:]]
    except Stalled:
        raise
    except CandidateFailed as error:
        raise CandidateFailed(f"its log-probabilities cannot be had: {error}") from None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        found = []
    if len(found) != len(tokens) - 1:
        raise CandidateFailed("its log-probabilities cannot be had: it does not answer prompt_logprobs as vLLM does")
    if not all(math.isfinite(value) for row in found for value in row.values()):
        raise CandidateFailed("its log-probabilities hold NaN")
    return found


def compared(told: Mapping[int, float], expected: np.ndarray, following: int) -> tuple[float, float, float]:
    """(negative log-likelihood of `following`, KL, top-1 agreement); `expected`: log-probabilities [V], normalised here."""
    want = expected - expected.max()
    want = want - math.log(np.exp(want).sum())
    tokens = [token for token in told if token < len(want)]
    got, p = np.array([told[token] for token in tokens]), np.exp(want[tokens])
    kl = float((p * (want[tokens] - got)).sum())
    rest_p, rest_q = max(0.0, 1.0 - p.sum()), max(1e-12, 1.0 - np.exp(got).sum())
    if rest_p > 0:
        kl += rest_p * (math.log(rest_p) - math.log(rest_q))
    best = max(told, key=lambda token: told[token])
    return -told[following], kl, float(best == int(want.argmax()))


def says_passkey(server: RunningServer, prompt: np.ndarray, answer: str, tokens: int) -> bool:
    """Does the server's greedy decoding after int64 [S] continue with `answer`, which is of so many tokens? CandidateFailed where
    it cannot be asked."""
    asked = {"prompt": prompt.tolist(), "max_tokens": tokens, "temperature": 0}
    try:
        said = server.post(asked, stall_s=LONGEST_S)["choices"][0]["text"]
    except Stalled:
        raise
    except CandidateFailed as error:
        raise CandidateFailed(f"the passkey at the declared context cannot be asked: {error}") from None
    except (KeyError, IndexError, TypeError):
        raise CandidateFailed("the passkey at the declared context cannot be asked: it answers with no text") from None
    return str(said).strip() == answer.strip()


def cache_config(server: RunningServer) -> dict[str, str]:
    """What the server's own metrics say of its cache (vLLM's cache_config_info): `num_gpu_blocks`, `block_size`, `cache_dtype`…;
    nothing where they do not."""
    for line in server.metrics().splitlines():
        if line.startswith("vllm:cache_config_info{"):
            parts = line[line.index("{") + 1 : line.rindex("}")].split(",")
            return {key: value.strip('"') for key, equals, value in (part.partition("=") for part in parts) if equals}
    return {}


def pool_tokens(config: Mapping[str, str]) -> int | None:
    """Tokens that a cache of that `cache_config` holds."""
    try:
        return int(config["num_gpu_blocks"]) * int(config["block_size"])
    except (KeyError, ValueError):
        return None
