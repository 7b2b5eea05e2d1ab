"""Sizes of published models by name, for planning without weights and without the network.

`models/published.json` holds what each model's config.json says of its shapes, and the parameters that its card states.
A name is matched without its organisation and without the words that change no shape (`-Instruct`, `-FP8`, a date).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput

FILE = Path(__file__).parent / "models" / "published.json"
SHAPELESS = re.compile(
    r"[-_](instruct|chat|it|hf|base|pt|thinking|fp8|fp4|nvfp4|mxfp4|bf16|fp16|awq|gptq|int4|int8|w4a16|w8a8|autoround|dynamic|"
    r"quantized|kv|block|\d{4}|v0\.\d)(?=[-_.]|$)"
)


@cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """Hub id -> {also, parameters_b, config}."""
    models: Mapping[str, Mapping[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["models"]
    return models


def config_of(model: str) -> Mapping[str, Any]:
    """The config of a published model, a folder that holds one, or a config.json; BadInput names the nearest model."""
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return read_config(path)
    found = stems().get(stem(model))
    if found is not None:
        config: Mapping[str, Any] = published()[found]["config"]
        return config
    near = difflib.get_close_matches(stem(model), stems(), 1, 0.6)
    mend = f"did you mean {stems()[near[0]]}? " if near else ""
    raise BadInput(model, "no folder with a config.json and no model whose sizes are known here", f"{mend}Give the folder")


def read_config(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(str(path), "no such file", "name the folder that holds the model's config.json") from None
    except (OSError, ValueError) as error:
        raise BadInput(str(path), f"cannot be read as JSON ({error})", "give the model's config.json") from None
    if not isinstance(found, dict):
        raise BadInput(str(path), "must be a mapping of fields", "give the model's config.json")
    return found


@cache
def stems() -> Mapping[str, str]:
    """Stem -> hub id, of every name that a model goes by."""
    return {stem(name): model for model, entry in published().items() for name in (model, *entry["also"])}


@cache
def stem(name: str) -> str:
    """`RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic` -> `llama-3.3-70b`."""
    text = name.removeprefix("builtin:").rsplit("/", 1)[-1].lower()
    while (shorter := SHAPELESS.sub("", text)) != text:
        text = shorter
    return re.sub(r"^meta-", "", text).rstrip("-_.")
