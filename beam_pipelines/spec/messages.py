"""What pydantic found wrong, as sentences with a place: got X; expected Y; the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError

from beam_pipelines.arrow.durations import format_duration
from beam_pipelines.arrow.model import Misfits
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.problems import Path
from beam_pipelines.spec.shape import ModelType, fields_of, models_at, thing

Error = Any  # pydantic_core.ErrorDetails, whose ctx is free-form
_SIMPLE = {
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
}


class Fault(NamedTuple):
    """One error at a path of the file. `key`: the place is the key. `expected` is set where the value has the wrong type."""

    path: Path
    message: str
    key: bool = False
    expected: str = ""
    unknown: bool = False


def report(error: ValidationError, document: Document, root: ModelType, *, at: Path = ()) -> list[Fault]:
    """Adds every error to the document's problems, at its place below `at`; gives them back as well."""
    faults = list(_faults(error, document.value, document, root, at))
    for fault in faults:
        document.problem(fault.path, fault.message, key=fault.key, about=fault.path[:-1] if fault.unknown else None)
    return faults


def _faults(error: ValidationError, value: Any, document: Document, root: ModelType, at: Path) -> Iterator[Fault]:
    inside = value
    for step in at:
        inside = inside[step]
    found: list[tuple[Fault, Path]] = []
    for detail in error.errors(include_url=False):
        loc = detail["loc"]
        path, union = _path(loc, inside)
        group = path if union is None else path[: len(union)]
        found += [(fault, group) for fault in _translated(detail, loc, path, inside, root)]
    guesses = {(f.path[:-1], _guess(f.message)) for f, _ in found if f.unknown}
    kept = [(f, u) for f, u in found if not (f.message.startswith("needs '") and (f.path, f.message.split("'")[1]) in guesses)]
    for fault in _without_union_noise(kept):
        shown = fault if not fault.expected else fault._replace(message=_wrong_type(fault, inside, document, at))
        yield shown._replace(path=at + shown.path)


def path_of(loc: tuple[int | str, ...], inside: Any) -> Path:
    """The path in the file of a location of pydantic's, which has union tags between the steps."""
    return _path(loc, inside)[0]


def _path(loc: tuple[int | str, ...], inside: Any) -> tuple[Path, Path | None]:
    """The path in the file of a location of pydantic's, and where in it a union was entered."""
    value: Any = inside
    path: Path = ()
    union: Path | None = None
    for step in loc:
        key = step.removesuffix("[key]") if isinstance(step, str) else step
        listed = isinstance(value, tuple) and isinstance(key, int) and key < len(value)
        if listed or (isinstance(value, dict) and key in value):
            path, value = (*path, key), _at((key,), value)
        elif step != loc[-1] or not isinstance(value, dict):
            union = path if union is None else union
    return path, union


def _at(path: Path, value: Any) -> Any:
    for step in path:
        value = value[step]
    return value


def _translated(detail: Error, loc: tuple[int | str, ...], path: Path, value: Any, root: ModelType) -> Iterator[Fault]:
    kind, ctx, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        yield _unknown_field(loc, path, given, root)
    elif kind == "missing":
        models = models_at(root, loc[:-1])
        fields = f" Fields of {thing(models[0])}: {', '.join(fields_of(models[0]))}." if models else ""
        yield Fault(path, f"needs '{loc[-1]}'.{fields}", key=True)
    elif kind in _SIMPLE:
        yield Fault(path, "", expected=_SIMPLE[kind])
    elif kind in ("model_type", "model_attributes_type"):
        models = models_at(root, loc)
        yield Fault(path, "", expected=f"{thing(models[0])}, a mapping" if models else "a mapping")
    elif kind == "value_error":
        yield from _own(ctx["error"], path)
    elif kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall(r"'([^']*)'", ctx.get("expected") or ctx.get("expected_tags"))
        yield _no_choice(path, _at(path, value) if kind == "literal_error" else ctx["tag"], choices, ctx)
    elif kind == "union_tag_not_found":
        models = models_at(root, loc)
        words = ", ".join(m.model_fields["type"].default for m in models)
        yield Fault(path, f"needs 'type': {words}", key=True)
    elif kind in ("too_short", "too_long"):
        if len(_at(path, value)) < ctx.get("min_length", 0) or kind == "too_long":
            bound = f"at least {ctx['min_length']}" if kind == "too_short" else f"at most {ctx['max_length']}"
            yield Fault(path, f"got {len(_at(path, value))} entries; expected {bound}", key=True)
    else:
        yield Fault(path, _bounded(kind, ctx, given, detail))


def _own(error: Exception, path: Path) -> Iterator[Fault]:
    if isinstance(error, Misfits):
        for below, message in error.faults:
            yield Fault(path + tuple(below), message)
    else:
        yield Fault(path, str(error))


def _unknown_field(loc: tuple[int | str, ...], path: Path, given: object, root: ModelType) -> Fault:
    name = str(loc[-1])
    models = models_at(root, loc[:-1])
    fields = list(dict.fromkeys(f for m in models for f in fields_of(m)))
    close = get_close_matches(name, fields, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else "."
    if given is None and " " in name:
        guess = "; a comma inside { } ends a text: quote the text that holds it."
    what = thing(models[0]) if models else "this"
    return Fault(path, f"unknown field '{name}'{guess} Fields of {what}: {', '.join(fields)}.", key=True, unknown=True)


def _guess(message: str) -> str:
    found = re.search(r"did you mean '([^']+)'", message)
    return found.group(1) if found else ""


def _no_choice(path: Path, given: object, choices: list[str], ctx: Error) -> Fault:
    if not choices:  # Literal[1]
        return Fault(path, f"got {shown(given)}; expected {ctx['expected']}")
    close = get_close_matches(str(given), choices, n=1, cutoff=0.5)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    expected = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Fault(path, f"got {shown(given)}; expected {expected}.{guess}".removesuffix("."))


def _bounded(kind: str, ctx: Error, given: object, detail: Error) -> str:
    bounds = {"greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least"), "less_than": ("lt", "less than"),
              "less_than_equal": ("le", "at most")}  # fmt: skip
    if kind in bounds:
        name, words = bounds[kind]
        bound: Any = ctx[name]
        if isinstance(given, str):  # a duration
            bound = format_duration(int(bound))
        return f"got {shown(given)}; expected {words} {bound}"
    if kind == "string_pattern_mismatch":
        return f"got {shown(given)}; expected a text matching {ctx['pattern']}"
    if kind in ("string_too_short", "string_too_long"):
        short = kind == "string_too_short"
        count = ctx["min_length"] if short else ctx["max_length"]
        return f"got {shown(given)}; expected {'at least' if short else 'at most'} {count} character{'s' if count != 1 else ''}"
    return f"{detail['msg']}; got {shown(given)}"


def _without_union_noise(found: list[tuple[Fault, Path]]) -> Iterator[Fault]:
    """A value that fits no member of a union gives one fault per member: keep those of the member it got furthest in."""
    groups: dict[Path, list[Fault]] = {}
    for fault, union in found:
        groups.setdefault(union, []).append(fault)
    for union, faults in groups.items():
        typed = [f for f in faults if f.expected]
        yield from (f for f in faults if not f.expected)
        deepest = max((len(f.path) for f in typed), default=0)
        if deepest > len(union):
            typed = [f for f in typed if len(f.path) == deepest]
        for path in dict.fromkeys(f.path for f in typed):
            expected = list(dict.fromkeys(f.expected for f in typed if f.path == path))
            if "a number" in expected and "an integer" in expected:
                expected.remove("an integer")
            yield Fault(path, "", expected=" or ".join(expected))


def _wrong_type(fault: Fault, value: Any, document: Document, at: Path) -> str:
    given = _at(fault.path, value)
    hint = ""
    if fault.expected == "true or false" and isinstance(given, str) and given.lower() in ("yes", "no", "on", "off", "y", "n"):
        hint = f". Write {'true' if given.lower() in ('yes', 'on', 'y') else 'false'}"
    elif "text" in fault.expected and isinstance(given, (bool, int, float)):
        hint = f'. Quote it: "{document.source(at + fault.path) or given}"'
    elif fault.expected == "a list" and isinstance(given, str):
        hint = f". Write [{given}]"
    elif isinstance(given, str) and fault.expected in ("an integer", "a number"):
        hint = ", without quotes" if re.fullmatch(r"-?\d+(\.\d+)?", given) else ""
    return f"got {shown(given)}; expected {fault.expected}{hint}"


def shown(value: object) -> str:
    """A value as it would be written in YAML, in short.

    >>> shown(True), shown('yes'), shown({'a': 1})
    ('true', "the text 'yes'", 'a mapping')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, (tuple, list)) else f"the number {value}"
