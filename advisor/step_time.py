"""One cost model of a forward pass, two sources of its kernel times. Pure: seconds, as numbers or as arrays over cases.

    step    = products(c, c) + c * request + fixed           a token for each of c running requests
    prompts = products(rows, r) + r * own + fixed            r prompts in a pass of their own
    joining = products(c + rows, c + 1) - products(c, c) + own     what one prompt adds to a step of c requests
    TPOT    = step + share * joining * (c - 1) / output      requests that end are followed by others meanwhile

products(rows, heads): all linears at `rows` rows, lm_head at `heads`; request: what a running request adds to a step (its
cache, its token); own: what a prompt adds beside products (attention over itself); fixed: what no request changes.

`advisor plan` takes them from data sheets and measured kernel tables (serving_times). `advisor run` takes products from kernels
probed on this device and calibrates the rest on its own profile before it predicts, whatever the device is: a candidate on the
pass of a ghost (predict), another point on the candidate's own passes (scaling). Where a runtime has no scheduler a batch is
static, and nothing joins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Seconds = Any
"""float, or an array over cases."""
Products = Callable[[Any, Any], Any]
"""Seconds of all products at (rows, rows of lm_head)."""


def step_s(products: Products, running: Any, request_s: Seconds, fixed_s: Seconds) -> Seconds:
    return products(running, running) + running * request_s + fixed_s


def prompts_s(products: Products, rows: Any, prompts: Any, own_s: Seconds, fixed_s: Seconds) -> Seconds:
    return products(rows, prompts) + prompts * own_s + fixed_s


def joining_s(products: Products, running: Any, rows: Any, own_s: Seconds) -> Seconds:
    return products(rows + running, running + 1) - products(running, running) + own_s


def tpot_s(step: Seconds, joining: Seconds, running: Any, output: Any, share: float) -> Seconds:
    return step + share * (running - 1) / output * joining
