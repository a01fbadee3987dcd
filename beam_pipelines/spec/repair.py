"""A guess at what a spec with wrong parts was meant to be, so that its names and expressions can be checked in the same go.

Wrong fields are renamed to the nearest one or left out; what cannot be left out gets a stand-in. Names that a replaced part may have made
become `doubtful` in the document: nothing is said of them later. Where they cannot be seen, no name of that kind is called unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError

from beam_pipelines.arrow.durations import WRITTEN
from beam_pipelines.arrow.model import Misfits
from beam_pipelines.spec.document import Document, walk
from beam_pipelines.spec.messages import path_of
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.problems import Path
from beam_pipelines.spec.shape import fields_of, models_at
from beam_pipelines.spec.sinks import DESTINATIONS

_ROUNDS = 12
_FILES = {"files": "-", "format": "json"}
_SECTIONS: dict[str, Any] = {
    "spec": 1, "pipeline": "p", "sources": {"batch": (_FILES,)}, "sinks": ({"from": "rows", "jsonl": {"path": "/-"}},),
}  # fmt: skip
"""What may stand for a whole section that a spec must have."""
_DESTINATIONS = DESTINATIONS
_OPTIONAL = {  # fields of the fixed parts that may be left out when they are wrong
    "contract": ("unknown_columns", "version", "description"),
    "columns": ("path", "default", "null_values", "trim", "coerce", "format", "unit", "time_zone", "ambiguous", "missing", "required", "min",
                "max", "in", "regex", "min_length", "max_length", "sensitive", "description"),
    "checks": ("severity", "description"),
    "aggregates": ("trigger", "time"),
    "lookups": ("columns", "refresh", "duplicates"),
}  # fmt: skip


class _Change(NamedTuple):
    """What becomes of the value at `path`; `value` None: it goes. `doubt`: what is replaced may have made names."""

    path: Path
    value: Any = None
    doubt: bool = True


def repaired(document: Document) -> PipelineSpec | None:
    """The spec as it may have been meant; None if no guess makes it valid.

    What is wrong with how its parts fit together shows only when the parts are right: that is added to the document's problems.
    """
    value = document.value
    tried: set[Path] = set()
    for number in range(_ROUNDS):
        try:
            return PipelineSpec.model_validate(value, strict=True, by_alias=True, by_name=False, context=WRITTEN)
        except ValidationError as error:
            if number:
                _report(error, document, value)
            value = _Round(document, value, frozenset(tried), tried).changed(error)
            if value is None:
                return None
    return None


def _places(detail: Any) -> list[tuple[int | str, ...]]:
    """Where the wrong parts are: a model's own verdict may name several inside it."""
    error = detail.get("ctx", {}).get("error")
    return [(*detail["loc"], *below) for below, _ in error.faults] if isinstance(error, Misfits) else [tuple(detail["loc"])]


def _report(error: ValidationError, document: Document, value: Any) -> None:
    """Adds parts that do not fit each other, which the first look at the spec could not see; not what follows from a stand-in."""
    for detail in error.errors(include_url=False):
        verdict = detail.get("ctx", {}).get("error")
        for below, message in verdict.faults if isinstance(verdict, Misfits) else ():
            path = (*path_of(detail["loc"], value), *below)
            if not document.doubtful & {*path[2:], _text_at(value, path)}:
                document.problem(path, message)


@dataclass
class _Round:
    """One look at a spec that is still wrong: every wrong part is changed once. `before` are the parts that a change did not help."""

    document: Document
    value: Any
    before: frozenset[Path]
    done: set[Path]
    now: list[Path] = field(default_factory=list)
    renamed: list[tuple[Path, str]] = field(default_factory=list)

    def changed(self, error: ValidationError) -> Any:
        """The value with everything changed that is wrong; None where nothing can stand in for a part."""
        shown = self.value
        found = [(loc, detail["type"]) for detail in error.errors(include_url=False) for loc in _places(detail)]
        for loc, kind in sorted(found, key=lambda f: f[1] != "extra_forbidden"):  # a field that is renamed may be the one that is missing
            path = path_of(loc, shown)
            if any(path[: len(done)] == done for done in self.now):
                continue
            if not (self.rename(loc, path) if kind == "extra_forbidden" else self.replace(path, str(loc[-1]) if kind == "missing" else "")):
                return None
        return self.value

    def rename(self, loc: tuple[int | str, ...], path: Path) -> bool:
        """An unknown field goes under the nearest name that is free, or is left out."""
        around, name = _value_at(self.value, path[:-1]), str(loc[-1])
        if path[-1:] != (name,) or not isinstance(around, dict) or name not in around:
            return False
        fields = [f for m in models_at(PipelineSpec, loc[:-1]) for f in fields_of(m) if f not in around]
        close = get_close_matches(name, fields, n=1, cutoff=0.5)
        if not close:
            self.document.doubtful |= _keys_in(around[name])
        kept = {(close[0] if k == name else k): v for k, v in around.items() if k != name or close}
        self.value = _put(self.value, path[:-1], kept)
        if close:
            self.now.append((*path[:-1], close[0]))
            self.renamed.append((path[:-1], close[0]))
        return True

    def replace(self, path: Path, missing: str) -> bool:
        """A stand-in for the part at `path`, or for the part around it where that did not help before."""
        if (path, missing) in self.renamed:
            return True
        change = _stand_in(path, self.value, missing)
        while change is not None and change.path in self.before:
            change = _stand_in(change.path[:-1], self.value, "")
        if change is None:
            return False
        if change.doubt:
            given = _value_at(self.value, change.path)
            self.document.doubtful |= _names_in(change.path, given)
            self.document.vague |= _unseen(change.path, given)
        self.value = _put(self.value, change.path, change.value)
        self.now.append(change.path)
        self.done.add(change.path)
        return True


def _stand_in(path: Path, value: Any, missing: str) -> _Change | None:
    """What may stand where the part at `path` of a spec is wrong, or lacks `missing`."""
    match path:
        case ():
            return _Change((missing,), _SECTIONS[missing]) if missing in _SECTIONS else None
        case ("contract", *_):
            return _of_contract(path, value)
        case ("sources", "batch" | "stream" as way, int(i), *rest):
            return _of_source((*path[:2], i), way, rest, value)
        case ("lookups", name, *rest):
            return _optional(path, "lookups", rest) or _Change(("lookups", name), _FILES | {"key": "k"})
        case ("transform", int(), *rest):
            return _Change(path[:4], "1") if rest[:1] == ["set"] and len(rest) > 1 else _Change(path[:2], {"filter": "TRUE"})
        case ("checks", int(i), *rest):
            name = _name(_value_at(value, path[:2])) or f"check_{i}"
            return _optional(path, "checks", rest) or _Change(path[:2], {"name": name, "expr": "TRUE"})
        case ("aggregates", _, *rest):
            return _of_aggregate(path, rest)
        case ("sinks", int(i), *rest):
            return _of_sink(path, i, rest, value)
        case ("deduplicate", field, *_):
            return _Change(path[:2], "1d" if field == "within" else None)
    return _Change(path[:1], _SECTIONS.get(str(path[0])))


def _of_contract(path: Path, value: Any) -> _Change | None:
    contract = value.get("contract")
    columns = contract.get("columns") if isinstance(contract, dict) else None
    match path[1:]:
        case ("columns", str(name), *rest):
            found = _optional(path, "columns", rest)
            if found is not None:
                return found._replace(doubt=False)
            given = columns.get(name) if isinstance(columns, dict) else None
            computed = isinstance(given, dict) and isinstance(given.get("expr"), str)
            kind = "timestamp" if contract.get("event_time") == name else "string"  # so that it is not blamed for its stand-in
            made = {"type": kind} | ({"expr": given["expr"]} if computed else {})  # type: ignore[index]  # a dict where it is computed
            return _Change(path[:3], made if given != made else None)
        case ("key" | "event_time" as field, *_) if isinstance(columns, dict):
            kinds = {n: c.get("type") if isinstance(c, dict) else None for n, c in columns.items()}
            if field == "key":
                plain = next((n for n, k in kinds.items() if not str(k).startswith(("list", "struct"))), None)
                return _Change(path[:2], None if plain is None else (plain,), doubt=False)
            return _Change(path[:2], next((n for n, k in kinds.items() if k in ("timestamp", "date")), None), doubt=False)
        case (field, *_) if field in _OPTIONAL["contract"]:
            return _Change(path[:2], doubt=False)
    return None


def _of_source(path: Path, way: str, rest: list[str | int], value: Any) -> _Change:
    made = _FILES if way == "batch" else {"pubsub": "projects/p/subscriptions/s", "format": "json"}
    if rest and rest[0] not in made:
        return _Change((*path, rest[0]))
    if rest:
        return _Change((*path, rest[0]), made[str(rest[0])])
    given = _value_at(value, path)
    filled = {**made, **given} if isinstance(given, dict) else made
    return _Change(path, filled if filled != given else made)


def _of_aggregate(path: Path, rest: list[str | int]) -> _Change:
    found = _optional(path, "aggregates", rest)
    if found is not None:
        return found
    hour = {"type": "fixed", "size": "1h"}
    if rest[:1] == ["windowing"]:
        return _Change(path[:3], hour)
    if rest[:1] == ["measures"] and len(rest) > 1:
        return _Change(path[:4], "count()")
    return _Change(path[:2], {"windowing": hour, "measures": {"n": "count()"}})


def _of_sink(path: Path, i: int, rest: list[str | int], value: Any) -> _Change:
    own = f"/-{i}"
    if len(rest) > 1 and rest[0] in _DESTINATIONS:
        return _Change(path[:4], own if rest[1] == "path" else None)
    given = _value_at(value, path)
    if rest and rest[0] in _DESTINATIONS:
        return _Change(path[:3], {**(given if isinstance(given, dict) else {}), "path": own})
    if rest:
        return _Change(path[:3], "rows" if rest[0] == "from" else None)
    taken = given.get("from") if isinstance(given, dict) else None
    return _Change(path[:2], {"from": taken if isinstance(taken, str) else "rows", "jsonl": {"path": own}})


def _optional(path: Path, part: str, rest: list[str | int]) -> _Change | None:
    """A field that may be left out of an entry of `part`."""
    return _Change(path[: len(path) - len(rest) + 1]) if rest and rest[0] in _OPTIONAL[part] else None


def _name(value: Any) -> str:
    """The name that a check gives itself; "" if it has none that is good."""
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name.isidentifier() else ""


def _names_in(path: Path, value: Any) -> set[str]:
    """Names that the part may have made: its own, the columns that it adds, what it groups by."""
    given = value if isinstance(value, dict) else {}
    match path:
        case ("contract", "columns", str(name)) | ("lookups", str(name)):
            return {name}
        case ("transform", _, "set", str(name)) | ("aggregates", _, "measures", str(name)):
            return {name}
        case ("transform", _):
            return {name for columns in _added(given) for name in columns}
        case ("aggregates", _):
            return {n for n in (*_mapping(given.get("measures")), *_listed(given.get("group_by"))) if isinstance(n, str)}
    return set()


def _keys_in(value: Any) -> set[str]:
    return {step for below, _ in walk(value) for step in below if isinstance(step, str)}


def _added(step: dict[str, Any]) -> list[dict[str, Any]]:
    """Mappings whose keys are the columns that a step adds."""
    found = (step.get("set"), step.get("rename"), _mapping(step.get("apply")).get("columns"), _mapping(step.get("lookup")).get("take"))
    return [columns for columns in found if isinstance(columns, dict)]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _unseen(path: Path, value: Any) -> set[str]:
    """The kinds of names (`columns`, `checks`) that the part may have made and that cannot be seen in it."""
    given = value if isinstance(value, dict) else {}
    match path:
        case ("transform", _) if not (_added(given) or "filter" in given or "drop" in given):
            return {"columns"}
        case ("aggregates", _) if not (isinstance(given.get("measures"), dict) and _texts(given.get("group_by", ()))):
            return {"columns"}
        case ("checks", _) if not _name(given):
            return {"checks"}
    return set()


def _texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, str) for v in value)


def _value_at(value: Any, path: Path) -> Any:
    for step in path:
        there = (isinstance(value, dict) and step in value) or (isinstance(value, tuple) and isinstance(step, int) and step < len(value))
        if not there:
            return None
        value = value[step]
    return value


def _text_at(value: Any, path: Path) -> str:
    found = _value_at(value, path)
    return found if isinstance(found, str) else ""


def _put(value: Any, path: Path, new: Any) -> Any:
    """A copy with `new` at `path`; None takes it away (an entry of a list stays where it is)."""
    if not path:
        return new
    step, below = path[0], path[1:]
    if isinstance(value, tuple) and isinstance(step, int):
        return (*value[:step], _put(value[step], below, new), *value[step + 1 :])
    around = dict(value) if isinstance(value, dict) else {}
    made = _put(around.get(str(step)), below, new)
    if made is None:
        around.pop(str(step), None)
        return around
    return {**around, str(step): made}
