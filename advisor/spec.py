"""Reads and writes workload specs (YAML, schema quantadvisor/workload/1); presets; what a model's size rules out.

Whatever is wrong with a file ends as one line (`spec_errors`): `chat.yaml:7: traffic.concurrency: must be ...`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from quantadvisor.documents import BadInput, Lengths, Results, Workload
from quantadvisor.documents.workload import Budget

from .spec_errors import bad_spec, describe, models_in, place

PRESETS = ("chat", "rag", "summarize", "agents", "long_context")
LARGEST_SPEC_BYTES = 1 << 20
DEEPEST = 50
"""Levels of nesting; the fields need four. The scanner's time grows with the square of the depth."""
COMMENT_COLUMN = 40


def load_workload(path: Path) -> Workload:
    """The validated workload of a YAML file, or BadInput: one line with file, line, field, value and remedy."""
    name = str(path)
    text = _read(path)
    data, lines = _parse(name, text)
    _refuse_odd_values(name, data, lines)
    try:
        workload = Workload.model_validate(data)
    except ValidationError as error:
        raise bad_spec(name, error, data, lines) from None
    _refuse_contradictions(name, workload, lines)
    return workload


def workload_from_preset(model: str, preset: str, concurrency: int | None = None) -> Workload:
    """The workload of a preset for any model, without a file."""
    workload = load_workload(_preset_file(preset))
    if concurrency is not None and concurrency < 1:
        raise BadInput("--concurrency", f"must be greater than 0, found {concurrency}", "give the requests in flight")
    if not model:
        raise BadInput("model", "is empty", "name builtin:smollm2-135m, a folder, a GGUF file or a hub id")
    traffic = workload.traffic.model_copy(update={"concurrency": concurrency or workload.traffic.concurrency})
    return workload.model_copy(update={"model": model, "traffic": traffic})


def workload_of(spec: str, preset: str | None, concurrency: int | None) -> Workload:
    """The workload of a YAML file, or of a model and a preset."""
    if preset is not None:
        return workload_from_preset(spec, preset, concurrency)
    if concurrency is not None:
        raise BadInput("--concurrency", "goes with --preset", "set traffic.concurrency in the spec")
    if not spec.endswith((".yaml", ".yml")) and not Path(spec).exists():
        raise BadInput(spec, "no such workload file", "for a model without a file add --preset chat")
    return load_workload(Path(spec))


def init_text(preset: str = "chat", from_log: Path | None = None) -> str:
    """A spec with every field, each with its description from the schema; lengths measured from a request log."""
    workload = load_workload(_preset_file(preset))
    source = f"preset {preset}"
    if from_log is not None:
        from .request_log import lengths_from_log

        prompt, output, concurrency = lengths_from_log(from_log)
        update = {"prompt_tokens": prompt, "output_tokens": output}
        known = {"concurrency": concurrency} if concurrency else {}
        workload = workload.model_copy(update={"traffic": workload.traffic.model_copy(update=update | known)})
        source += f", lengths{' and concurrency' if concurrency else ''} of {from_log.name}"
    head = (
        f"# Workload of QuantAdvisor ({source}). Names carry the units; paths start where advisor is started.\n"
        "# Required: schema, model and traffic.{prompt_tokens, output_tokens, concurrency}; the rest may go.\n"
    )
    return head + "\n".join(_emit(Workload, workload.model_dump(mode="json", by_alias=True), 0)) + "\n"


def check_against_model(workload: Workload, max_context_tokens: int | None, smallest_weight_bytes: int) -> None:
    """Refuse what this model can never serve: a context beyond its own, a limit below its weights in 2 bit."""
    context = workload.traffic.context_length
    if max_context_tokens is not None and context > max_context_tokens:
        raise BadInput(
            "traffic",
            f"a context of {context:,} tokens (prompt + output) is beyond the {max_context_tokens:,} of the model",
            "lower traffic.prompt_tokens or traffic.output_tokens, or choose a model of longer context",
        )
    limit = workload.memory_limit_gib
    if limit is not None and limit * 2**30 < smallest_weight_bytes:
        raise BadInput(
            "memory_limit_gib",
            f"{limit:g} GiB is below the smallest weights possible (2 bit) of {workload.model},"
            f" {smallest_weight_bytes / 2**30:.3f} GiB",
            "raise it, or choose a smaller model",
        )


def not_acted_on(workload: Workload) -> tuple[str, ...]:
    """Declared fields that this version accepts and does not use, to be said beside the advice."""
    traffic = workload.traffic
    declared = {
        "traffic.batch": traffic.batch is not None,
        "traffic.shared_prefix_tokens": traffic.shared_prefix_tokens > 0,
        "traffic.arrivals": traffic.arrivals != "closed",
        "parallel.tensor": workload.parallel.tensor > 1,
        "price_per_hour": workload.price_per_hour is not None,
    }
    return tuple(f"{field} is declared, and this version does not act on it" for field, on in declared.items() if on)


def schema(which: Literal["workload", "results"]) -> dict[str, Any]:
    """JSON Schema of what `advisor run` reads or writes."""
    documents: dict[str, type[BaseModel]] = {"workload": Workload, "results": Results}
    if which not in documents:
        raise BadInput("schema", f"{which!r} is unknown", "give workload or results")
    return documents[which].model_json_schema(by_alias=True)


def _preset_file(preset: str) -> Path:
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, 1)
        mend = f"did you mean {near[0]}?" if near else f"known: {', '.join(PRESETS)}"
        raise BadInput("--preset", f"{preset!r} is unknown", mend)
    return Path(__file__).parent / "presets" / f"{preset}.yaml"


def _read(path: Path) -> str:
    if path.is_dir():
        raise BadInput(str(path), "is a folder", "name the YAML file in it")
    try:
        if path.stat().st_size > LARGEST_SPEC_BYTES:
            raise BadInput(str(path), f"{path.stat().st_size:,} bytes: not a workload spec", "name the YAML file")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BadInput(str(path), "no such file", f"write one with: advisor init --out {path}") from None
    except UnicodeDecodeError as error:
        raise BadInput(str(path), f"not UTF-8 at byte {error.start}", "save it as UTF-8 text") from None
    except OSError as error:
        raise BadInput(str(path), f"cannot be read ({error.strerror})", "name a readable file") from None


def _parse(name: str, text: str) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    """(the mapping, line number of every field)."""
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise RecursionError
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise BadInput(f"{name}:{line}", f"alias *{event.anchor} is not supported", "write the value out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else root.tag.rsplit(":", 1)[-1]
            raise BadInput(name, f"must be a mapping of fields, found {found}", "see advisor init for a whole one")
        _walk(name, root, (), lines)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise BadInput(where, f"not YAML: {error.problem}", "indent with spaces, and quote values with ': '") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(name, f"not YAML: {str(error).splitlines()[0]}", "save it as UTF-8 text") from None
    except RecursionError:
        raise BadInput(name, "nested too deeply", "see advisor init for a whole one") from None


def _walk(name: str, node: yaml.Node, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> None:
    """Note the line of every field; refuse a field given twice, of which YAML would keep the last in silence."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
            _walk(name, item, (*path, i), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                what = f"given twice, first in line {lines[here]}"
                raise BadInput(place(name, here, {here: line}), what, "keep one")
            if key.tag != "tag:yaml.org,2002:str":
                raise BadInput(f"{name}:{line}", f"field name {key.value!r} is not text", "quote it, or mend it")
            lines[here] = line
            _walk(name, value, here, lines)


def _refuse_odd_values(
    name: str, data: Any, lines: Mapping[tuple[str | int, ...], int], path: tuple[str | int, ...] = ()
) -> None:
    """What pydantic would let pass or trip over: yes/no as a number, infinity, `budget` that is no mapping."""
    if isinstance(data, bool) and path[-1:] != ("trust_remote_code",):
        raise BadInput(place(name, path, lines), f"yes or no is no value here, found {data}", f"give {describe(path)}")
    if isinstance(data, float) and not math.isfinite(data):
        raise BadInput(place(name, path, lines), f"must be finite, found {data}", f"give {describe(path)}")
    if path == ("budget",) and not isinstance(data, dict):
        raise BadInput(
            place(name, path, lines), f"must be a mapping, found {data!r}", f"its fields: {', '.join(Budget.model_fields)}"
        )
    if isinstance(data, dict):
        for key, value in data.items():
            if path != ("quality", "tasks"):
                _refuse_odd_values(name, value, lines, (*path, key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            _refuse_odd_values(name, value, lines, (*path, i))


def _refuse_contradictions(name: str, workload: Workload, lines: Mapping[tuple[str | int, ...], int]) -> None:
    if workload.quality.tasks:
        from quantadvisor.profiling.tasks import task_name

        where = place(name, ("quality", "tasks"), lines)
        if missing := [file for file in workload.quality.tasks if not Path(file).is_file()]:
            raise BadInput(where, f"no task file {missing[0]}", "give the path of a YAML file of lm-evaluation-harness")
        for file in workload.quality.tasks:
            task_name(Path(file))
        if find_spec("lm_eval") is None:
            raise BadInput(
                where, "lm-evaluation-harness is not installed", "pip install 'quantadvisor[tasks]', or take tasks out"
            )
    traffic = workload.traffic
    if traffic.shared_prefix_tokens > traffic.prompt_length:
        where = place(name, ("traffic", "shared_prefix_tokens"), lines)
        what = f"{traffic.shared_prefix_tokens} is longer than the prompt, {traffic.prompt_length} tokens"
        raise BadInput(where, what, "lower it, or raise traffic.prompt_tokens")


def _emit(model: type[BaseModel], values: Mapping[str, Any] | None, depth: int) -> list[str]:
    """Lines `name: value  # description`, nested mappings indented; what may be given instead as comments."""
    text: list[str] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        given = values is not None
        value = values[key] if values is not None else field.get_default(call_default_factory=True)
        inner = models_in(field.annotation)
        margin = "  " * depth if given else "# " + "  " * (depth - 1)
        by_name = get_origin(field.annotation) is dict
        if isinstance(value, dict) and inner and inner[0] is not Lengths and not by_name:
            text += [_line(f"{margin}{key}:", field.description), *_emit(inner[0], value, depth + 1)]
            continue
        text.append(_line(f"{margin}{key}: {_scalar(value)}", field.description))
        if inner and value is None:
            text += _emit(inner[0], None, depth + 1)
        elif inner:
            text.append(f"#   {'each' if by_name else 'or'} {_alternative(inner[0])}")
    return text


def _alternative(model: type[BaseModel]) -> str:
    """`{mean: , std: }: what it is` of a mapping that may stand where a plain value does."""
    fields = ", ".join(f"{name}: " for name in model.model_fields)
    described = [f"{name}: {field.description}" for name, field in model.model_fields.items() if field.description]
    summary = (model.__doc__ or "; ".join(described)).splitlines()[0].rstrip(".")
    return f"{{{fields}}}   {summary}" + (f" ({'; '.join(described)})" if model.__doc__ and described else "")


def _line(left: str, comment: str | None) -> str:
    return f"{left:<{COMMENT_COLUMN}}# {comment}" if comment else left


def _scalar(value: Any) -> str:
    """A value on one line; JSON is YAML, and plain words need no quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str) and yaml.safe_load(value) == value and not set(value) & set("#{}[],&*"):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
