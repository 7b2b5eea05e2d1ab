"""What log-probabilities of the most likely tokens tell: against the KL over the whole vocabulary, and through a server."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantadvisor.documents import CandidateFailed
from quantadvisor.profiling.served_quality import cache_config, compared, pool_tokens, says_passkey, server_scores
from quantadvisor.profiling.server import RunningServer

from .test_served import MODEL, running

WINDOWS = np.array([[1, 5, 2, 7], [0, 3, 3, 6]], np.int64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_the_kl_of_some_tokens_is_a_lower_bound_and_of_all_the_whole(seed: int, many: int) -> None:
    numbers = np.random.default_rng(seed)
    p, q = (log_softmax(numbers.normal(0, 2, 30)) for _ in range(2))
    whole = float((np.exp(p) * (p - q)).sum())
    told = {int(token): float(q[token]) for token in np.argsort(-q)[:many]}
    following = next(iter(told))
    nll, kl, top1 = compared(told, p, following)
    assert nll == -q[following]
    assert top1 == (p.argmax() == q.argmax())
    assert -1e-9 <= kl <= whole + 1e-9
    if many == 30:
        assert kl == pytest.approx(whole, abs=1e-6)


def client(url: str) -> RunningServer:
    made = RunningServer(url, 1, MODEL, seed=0, side="")
    made.ready()
    return made


def test_a_servers_scores_against_the_closed_form(python: str, tmp_path: Path) -> None:
    """The stand-in answers as a uniform model of 8 tokens, and tells all of them."""
    expected = np.stack([log_softmax(np.arange(8) * (0.1 + row / 10)) for row in range(8)]).astype(np.float16)
    np.save(tmp_path / "reference.npy", expected)
    with running(python, tmp_path) as url:
        scores = server_scores(client(url), WINDOWS, tmp_path / "reference.npy")
        assert pool_tokens(cache_config(client(url))) == 192
    want = np.delete(expected.astype(float), [3, 7], axis=0)  # the last of each window is not told
    want -= np.log(np.exp(want).sum(1, keepdims=True))
    assert scores.shape == (3, 6)
    assert scores[0] == pytest.approx(math.log(8))
    assert scores[1] == pytest.approx((np.exp(want) * (want + math.log(8))).sum(1), abs=1e-9)


def test_a_server_that_tells_none_is_a_reason(python: str, tmp_path: Path) -> None:
    np.save(tmp_path / "reference.npy", np.zeros((8, 8), np.float16))
    with (
        running(python, tmp_path, no_logprobs=True) as url,
        pytest.raises(CandidateFailed, match=r"its log-probabilities cannot be had: HTTP 400: .*prompt_logprobs"),
    ):
        server_scores(client(url), WINDOWS, tmp_path / "reference.npy")


def test_a_passkey_is_what_the_server_goes_on_with(python: str, tmp_path: Path) -> None:
    prompt = np.arange(3, 40)
    with running(python, tmp_path, continues=" 71432") as url:
        assert says_passkey(client(url), prompt, "71432", 5)
        assert not says_passkey(client(url), prompt, "71433", 5)
        asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines() if "stream" not in line]
    assert [(one["prompt"], one["max_tokens"], one["temperature"]) for one in asked] == [(prompt.tolist(), 5, 0)] * 2


def test_a_server_that_cannot_be_asked_for_a_passkey_is_a_reason(python: str, tmp_path: Path) -> None:
    with (
        running(python, tmp_path, context=30) as url,
        pytest.raises(CandidateFailed, match=r"the passkey at the declared context cannot be asked: HTTP 400: .*30 tokens"),
    ):
        says_passkey(client(url), np.arange(3, 40), "71432", 5)
