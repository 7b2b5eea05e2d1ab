"""What `advisor gate` is given, checked before anything is measured: kinds of sides, numbers, words, outputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from quantadvisor.documents import BadInput

LARGEST_ALPHA, SMALLEST_ALPHA = 0.2, 1e-6
LARGEST_THRESHOLD = 0.5
"""Up to twice the threshold passes: beyond this, what takes twice as long would."""
Kind = Literal["stored", "artifact", "spec", "server"]
Judged = Literal["model", "baseline", "none"]
JUDGED: tuple[Judged, ...] = get_args(Judged)
ON_INCONCLUSIVE = ("fail", "warn")
NAMES: dict[Kind, str] = {
    "stored": "a stored result",
    "artifact": "an artifact",
    "spec": "a workload spec",
    "server": "a running server",
}


class Asked(NamedTuple):
    """A gate that is to be measured."""

    sides: tuple[str, str]
    kinds: tuple[Kind, Kind]
    pythons: tuple[str | None, str | None]
    workload: Path | None
    runtime: str | None
    quality: Judged
    alpha: float
    threshold: float
    budget_s: float | None


def kinds_of(baseline: str, candidate: str) -> tuple[Kind, Kind]:
    """What both sides are; BadInput where the two cannot be gated against each other."""
    kinds = kind_of("BASELINE", baseline), kind_of("CANDIDATE", candidate)
    if kinds[0] != kinds[1] and {"stored", "server"} & set(kinds):
        why = "HTTP would be gated too" if "stored" not in kinds else "nothing would be interleaved"
        what = f"one side is {NAMES[kinds[0]]}, the other {NAMES[kinds[1]]}: {why}"
        raise BadInput("gate", what, "give two of a kind")
    return kinds


def kind_of(where: str, side: str) -> Kind:
    """By how it is written, and by what lies there."""
    if side.startswith(("http://", "https://")):
        return "server"
    path = Path(side)
    if not path.exists():
        mend = "give an artifact folder, a workload spec, a results.json or a server's URL"
        raise BadInput(f"{where} ({side})", "does not exist", mend)
    if side.endswith((".yaml", ".yml")):
        return "spec"
    return "stored" if path.is_file() or (path / "results.json").is_file() else "artifact"


def check_options(kinds: tuple[Kind, Kind], options: dict[str, object]) -> None:
    """Refuse options that mean nothing for these sides; `options` by name, None where not given."""
    of_artifacts = {"--baseline-env", "--candidate-env", "--runtime"}
    meant: dict[Kind, set[str]] = {
        "stored": set(),
        "artifact": {*of_artifacts, "--workload", "--time-budget"},
        "spec": {*of_artifacts, "--time-budget"} - {"--runtime"},
        "server": {"--workload", "--time-budget"},
    }
    known = meant[kinds[0]] | meant[kinds[1]]
    if "spec" in kinds:
        known -= {"--workload"}
    for option, value in options.items():
        if value is not None and option not in known:
            said = "is in the spec" if "spec" in kinds and option == "--workload" else f"is not for {NAMES[kinds[0]]}"
            raise BadInput(option, said, "leave it out")


def check_numbers(threshold: float, alpha: float, time_budget: float | None) -> None:
    if not 0 < threshold < LARGEST_THRESHOLD:
        why = "" if threshold < LARGEST_THRESHOLD else ": what is surely under twice the threshold passes"
        what = f"must lie between 0 and {LARGEST_THRESHOLD:g}, found {threshold:g}{why}"
        raise BadInput("--threshold", what, "0.025 is 2.5 %")
    if not SMALLEST_ALPHA <= alpha <= LARGEST_ALPHA:
        what = f"must lie between {SMALLEST_ALPHA:g} and {LARGEST_ALPHA:g}, found {alpha:g}"
        raise BadInput("--alpha", what, "0.01 is 1 %")
    if time_budget is not None and not 0 < time_budget < float("inf"):
        raise BadInput("--time-budget", f"must be seconds above 0, found {time_budget:g}")


def check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise BadInput(option, f"unknown word {word!r}", f"one of {', '.join(known)}")


def check_outputs(paths: dict[str, Path | None], inputs: tuple[str, ...]) -> None:
    """Before anything is measured: every output can be written, and none over another or over what is compared."""
    taken = {Path(side).absolute(): "is what is compared" for side in inputs if "://" not in side}
    for option, path in paths.items():
        if path is None:
            continue
        if path.is_dir():
            raise BadInput(f"{option} ({path})", "is a folder", "give the name of a file")
        if said := taken.get(path.absolute()):
            raise BadInput(f"{option} ({path})", said, "give another name")
        taken[path.absolute()] = f"is the output of {option} too"
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise BadInput(f"{option} ({path})", f"cannot write in {parent}", "give another name")
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            raise BadInput(f"{option} ({path})", "cannot be written", "give another name")
