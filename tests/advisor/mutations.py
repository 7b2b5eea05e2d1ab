"""Seeded mutations of a JSON document: places in it replaced, taken out or doubled. A drawn document shares what it left alone
with the whole one, so a draw costs the paths it changes and not the document."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

Path = tuple[Any, ...]
KINDS = ("replace", "remove", "double")
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 5e-324, 1e308, sys.float_info.max, float("inf"), float("-inf"), float("nan"))
CHARACTERS = "aZ0 .,:;@-_/\\|`'\"<>&{}[]()#*\n\r\t\0\x1b\x7f\x85\xa0é−\u200b\u2028\u202e\ufeff\ufffd漢\U0001f600\U0010ffff"


def paths(value: Any, at: Path = ()) -> list[Path]:
    """Every place in a JSON document, the whole first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in inside for path in paths(part, (*at, key)))]


def changed(value: Any, path: Path, edit: Callable[[Any, Any], None]) -> Any:
    """A copy in which `edit(holder, key)` changed what holds the path's last key; only the holders on the way are copied.
    The value itself where an earlier mutation took the path away."""
    holder = value.copy() if isinstance(value, dict | list) else value
    key, *rest = path
    try:
        held = holder[key]
        if rest:
            holder[key] = changed(held, tuple(rest), edit)
        else:
            edit(holder, key)
    except (KeyError, IndexError, TypeError):
        return value
    return holder


def remove(holder: Any, key: Any) -> None:
    del holder[key]


def double(holder: Any, key: Any) -> None:
    if isinstance(holder, list):
        holder.insert(key, holder[key])


def replacing(value: Any) -> Callable[[Any, Any], None]:
    def edit(holder: Any, key: Any) -> None:
        holder[key] = value

    return edit


def mutated(rng: random.Random, whole: Any, places: Sequence[Path], value: Callable[[random.Random], Any]) -> Any:
    """One to three mutations of `whole`, the root aside: half replaced by what `value` draws, else taken out or doubled."""
    made = whole
    for _ in range(rng.randint(1, 3)):
        what = rng.choice(("replace", *KINDS))
        edit = replacing(value(rng)) if what == "replace" else remove if what == "remove" else double
        made = changed(made, rng.choice(places), edit)
    return made


def any_float(rng: random.Random) -> float:
    """One of the odd ones, of the usual size, or any 64 bits."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(FLOATS)
    return rng.uniform(-1e3, 1e3) if kind == 1 else struct.unpack("d", rng.randbytes(8))[0]


def any_integer(rng: random.Random) -> int:
    """To ±10**40, small ones as likely as large."""
    return rng.choice((-1, 1)) * rng.randrange(10 ** rng.randrange(1, 41))


def any_text(rng: random.Random, longest: int) -> str:
    """Characters that mean something to a terminal, a page or a table, and any other of Unicode besides surrogates."""
    drawn = (rng.choice(CHARACTERS) if rng.random() < 0.7 else chr(rng.randrange(0xD800)) for _ in range(rng.randint(0, longest)))
    return "".join(drawn)
