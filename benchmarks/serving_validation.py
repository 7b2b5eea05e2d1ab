"""`python benchmarks/serving_validation.py`: every figure of docs/validation.md, and (--write) the parameters that are shipped.

Leave-one-group-out: each (model, GPU, runtime, precision) is predicted by a fit of the other groups. The ablation puts
gradient boosting on the residuals, fitted on the same other groups, and takes parts of the physics away.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.advisor import serving_fit
from quantadvisor.advisor.serving_model import Prediction, calibrate, predict_cases
from quantadvisor.advisor.serving_work import case_of
from quantadvisor.documents import Document

ROOT = Path(__file__).resolve().parent.parent
POINTS = ROOT / "tests" / "data" / "serving_points.csv"
FITTED = ROOT / "advisor" / "serving_parameters.json"
MEASURED = ("silicon_ttft_ms", "silicon_tpot_ms")

Row = dict[str, Any]
Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=Path, default=POINTS)
    parser.add_argument("--write", action="store_true", help=f"write {FITTED.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with arguments.points.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    start = time.perf_counter()
    parameters = calibrate(rows)
    print(f"calibrated on {len(rows)} rows in {time.perf_counter() - start:.1f} s")
    described(parameters)
    print("\nfitted to all rows")
    report(rows, predictions(parameters, rows))
    print("\nleave one group out")
    held_out = leave_one_out(rows, serving_fit.group_of)
    report(rows, held_out)
    pairs(rows, held_out)
    speed(parameters, rows)
    print("\nleave one model out, leave one GPU out")
    for column in ("model_path", "system"):
        report(rows, leave_one_out(rows, lambda row, name=column: (str(row[name]),)))  # type: ignore[misc]
    print("\nablation: gradient boosting on the residuals, groups left out")
    report(rows, boosted(rows, held_out))
    if arguments.write:
        parameters.write(FITTED)
        print(f"written to {FITTED}")


def predictions(parameters: serving_fit.Parameters, rows: Sequence[Row]) -> list[Prediction]:
    return predict_cases(parameters, [case_of(row) for row in rows])


def leave_one_out(rows: Sequence[Row], group_of: Callable[[Row], tuple[str, ...]]) -> list[Prediction]:
    groups = [group_of(row) for row in rows]
    found: dict[int, Prediction] = {}
    for group in dict.fromkeys(groups):
        inside = [i for i, one in enumerate(groups) if one == group]
        parameters = calibrate([row for row, one in zip(rows, groups, strict=True) if one != group])
        without = [{k: v for k, v in rows[i].items() if k not in MEASURED} for i in inside]
        found |= dict(zip(inside, predictions(parameters, without), strict=True))
    return [found[i] for i in range(len(rows))]


def speed(parameters: serving_fit.Parameters, rows: Sequence[Row], points: int = 10_000) -> None:
    """The bar is 2 s; the processor's own seconds, which other programs do not lengthen, beside the clock's."""
    clock, processor = time.perf_counter(), time.process_time()
    predictions(parameters, [rows[i % len(rows)] for i in range(points)])
    print(f"{points:,} points: {time.perf_counter() - clock:.2f} s, {time.process_time() - processor:.2f} s of the processor")


def columns(rows: Sequence[Row], found: Sequence[Prediction]) -> tuple[Array, Array]:
    """(predicted, measured) TPOT in ms."""
    return np.array([one.tpot_ms for one in found]), np.array([float(row["silicon_tpot_ms"]) for row in rows])


def report(rows: Sequence[Row], found: Sequence[Prediction]) -> None:
    predicted, measured = columns(rows, found)
    inside = np.array([one.low for one in found]) <= measured
    inside &= measured <= np.array([one.high for one in found])
    first = np.array([float(row["silicon_ttft_ms"]) for row in rows])
    ttft = np.array([one.ttft_ms for one in found]) / first - 1
    ttft_inside = (np.array([one.ttft_low for one in found]) <= first) & (first <= np.array([one.ttft_high for one in found]))
    error = predicted / measured - 1
    groups = [" ".join(serving_fit.group_of(row)) for row in rows]
    print(f"{'group':<58} rows  TPOT MAPE  median    bias  within 80 %  TTFT median  within 80 %")
    for name in (*dict.fromkeys(groups), "all"):
        own = np.array([name in ("all", group) for group in groups])
        size = np.abs(error[own])
        print(
            f"{name:<58} {own.sum():4d}   {size.mean():7.1%} {np.median(size):7.1%} {error[own].mean():+7.1%}"
            f"      {inside[own].mean():6.1%}       {np.median(np.abs(ttft[own])):6.1%}"
            f"       {ttft_inside[own].mean():6.1%}"
        )


def pairs(rows: Sequence[Row], found: Sequence[Prediction]) -> None:
    """The ratio of two precisions of one model, GPU and runtime at one point, predicted over measured."""
    predicted, measured = columns(rows, found)
    keys = ("model_path", "system", "backend", "isl", "osl", "batch_size", "tp_size")
    at = {(tuple(row[k] for k in keys), row["precision"]): i for i, row in enumerate(rows)}
    both = [(i, at[key, "fp8"]) for (key, precision), i in at.items() if precision == "fp4" and (key, "fp8") in at]
    four, eight = np.array(both).T
    error = np.abs(predicted[four] / predicted[eight] / (measured[four] / measured[eight]) - 1)
    print(f"FP4 over FP8, {len(both)} pairs: mean error {error.mean():.1%}, median {np.median(error):.1%}")


def boosted(rows: Sequence[Row], held_out: Sequence[Prediction]) -> list[Prediction]:
    """The held-out predictions times what boosting learns from the other groups' residuals."""
    from sklearn.ensemble import GradientBoostingRegressor

    predicted, measured = columns(rows, held_out)
    names = ("isl", "osl", "batch_size", "tp_size")
    features = np.log([[float(row[name]) for name in names] for row in rows])
    groups = np.array([" ".join(serving_fit.group_of(row)) for row in rows])
    factor = np.ones(len(rows))
    for group in dict.fromkeys(groups):
        out = groups == group
        model = GradientBoostingRegressor(n_estimators=60, max_depth=2, learning_rate=0.1, loss="huber", random_state=0)
        model.fit(features[~out], np.log(measured[~out] / predicted[~out]))
        factor[out] = np.exp(model.predict(features[out]))
    return [
        Prediction(one.ttft_ms, *(value * scale for value in one[1:4]), *one[4:])
        for one, scale in zip(held_out, factor.tolist(), strict=True)
    ]


def described(document: Document) -> None:
    for name, value in document.model_dump().items():
        if isinstance(value, dict):
            for key, inner in value.items():
                shown = ", ".join(f"{one:.4g}" for one in inner) if isinstance(inner, tuple | list) else f"{inner:.4g}"
                print(f"  {name:<12} {key or 'all':<24} {shown}")
        else:
            print(f"  {name:<35} {value:.4g}")


if __name__ == "__main__":
    main()
