"""From a look at a file to a proposal: a contract type for each column, what means NULL, a key, an event time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa

from beam_pipelines.arrow.conform import conform_batch
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.cli.look import Look, Number, Seen
from beam_pipelines.errors import SpecError

NULL_TEXTS = ("NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "none", "NaN", "nan", "-", "--", "?", "\\N", "(null)", "missing")
_MOST_MISFITS = 0.05
_FEW = 12  # distinct values that an `in` may list
_WIDE_OBJECT = 40  # keys; an object with more is rather a map
TIME_NAMES = re.compile(
    r"(^|_)(event_?time|timestamp|time|ts|at|date|datetime|created|updated|occurred|ordered)($|_)|(_at|time|date)$", re.IGNORECASE
)
_KEY_NAMES = re.compile(r"(^|_)(id|key|uuid|guid|no|number|code)$|Id$|ID$", re.IGNORECASE)
_FORMATS = ("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y")
_CLOCKS = ("%H:%M:%S", "%H:%M", "%I:%M:%S %p", "%I:%M %p")
_SHAPES = (
    ("boolean", re.compile(r"(true|false)", re.IGNORECASE)),
    ("int64", re.compile(r"[+-]?(0|[1-9]\d*)")),
    ("decimal", re.compile(r"[+-]?\d+\.\d+")),
    ("float64", re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")),
    ("date", re.compile(r"\d{4}-\d\d-\d\d")),
    ("timestamp", re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")),
    ("time", re.compile(r"\d\d:\d\d(:\d\d(\.\d+)?)?")),
    ("uuid", re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")),
    ("formatted", re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}( .+)?")),
)  # fmt: skip


@dataclass
class Proposed:
    """A column of the contract: its rules as the spec says them, and notes for the reader. `rules` None: it cannot be in a contract."""

    name: str
    rules: dict[str, Any] | None
    seen: Seen
    notes: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str((self.rules or {}).get("type", ""))

    @property
    def required(self) -> bool:
        return bool((self.rules or {}).get("required"))


@dataclass(frozen=True)
class Proposal:
    """A contract in the making."""

    look: Look
    columns: tuple[Proposed, ...]
    key: tuple[str, ...]
    event_time: str | None
    repeated_rows: int
    primary: bool = False
    """Whether the key is the primary key of a table."""

    @property
    def good(self) -> list[Proposed]:
        return [c for c in self.columns if c.rules is not None]


def propose(look: Look) -> Proposal:
    """What the sample suggests. It knows what the file shows, not what it means."""
    names = _names(look.columns)
    text = look.format["type"] == "csv"
    columns = [_column(name, seen, text=text) for name, seen in zip(names, look.columns, strict=True)]
    if not any(c.rules for c in columns):
        raise SpecError(f"{look.path}: none of its columns has a type that a contract can name.")
    good = [c for c in columns if c.rules is not None]
    distinct = _distinct([c.values for c in good])
    primary = _primary(look, good)
    key = primary or _key(good, distinct, look.rows)
    return Proposal(look, tuple(columns), key, _event_time(good), look.rows - distinct, bool(primary))


def _primary(look: Look, columns: Sequence[Proposed]) -> tuple[str, ...]:
    """The primary key by the names of the contract; () where there is none, or none that a contract can have."""
    names = {c.seen.keys[-1]: c.name for c in columns if _may_identify(c)}
    return tuple(names[name] for name in look.key) if names.keys() >= set(look.key) else ()


def _names(columns: Sequence[Seen]) -> list[str]:
    """Contract names: the file's own where they are allowed, else made so that they are and differ (SQL does not see case)."""
    taken: set[str] = set()
    found = []
    for i, seen in enumerate(columns):
        name = re.sub(r"[$\0]", "_", seen.keys[-1]).lstrip("_") or f"column_{i + 1}"
        plain, number = name, 2
        while name.lower() in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.lower())
        found.append(name)
    return found


def _column(name: str, seen: Seen, *, text: bool) -> Proposed:
    rules: dict[str, Any] = {}
    notes: list[str] = [seen.note] if seen.note else []
    if not seen.keys[-1]:
        return Proposed(name, None, seen, ["has no name in the file"])
    values = list(seen.values)
    if seen.kind is not None:
        if not seen.kind:
            return Proposed(name, None, seen, notes or ["no contract type holds it"])
        rules["type"] = seen.kind
    elif text:
        values, nulls = _without_null_texts(values)
        rules |= _of_texts(name, [v for v in values if v is not None], notes)
        rules |= {"null_values": nulls} if nulls else {}
    else:
        kind = _of_json(name, [v for v in values if v is not None], notes)
        if isinstance(kind, dict):
            values, nulls = _without_null_texts(values) if kind["type"] != "string" else (values, [])
            rules |= kind | ({"null_values": nulls} if nulls else {})
        else:
            rules["type"] = kind
    if seen.required or (seen.required is None and values and all(v is not None for v in values)):
        rules["required"] = True
    if name != seen.keys[-1] or (not text and "." in name):
        rules["path"] = list(seen.keys)
    _note_few(values, rules, notes)
    return Proposed(name, rules, seen, notes, values)


def _note_few(values: Sequence[Any], rules: dict[str, Any], notes: list[str]) -> None:
    known = Counter(v for v in values if isinstance(v, str | int) and not isinstance(v, Number | bool))
    if rules["type"] == "string" and 1 < len(known) <= _FEW and len(known) * 5 <= known.total():
        listed = sorted(known)
        if all(isinstance(v, str) and len(v) <= 30 and v.isprintable() for v in listed):
            import json

            notes.append(f"in: [{', '.join(json.dumps(v, ensure_ascii=False) for v in listed)}]?")


def _without_null_texts(values: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The values with texts that mean NULL as NULL, and those texts. A text counts where the other values are no plain texts as well, or where it is often."""
    counts = Counter(v for v in values if isinstance(v, str) and v in NULL_TEXTS)
    if not counts:
        return list(values), []
    others = [v for v in values if v is not None and v not in counts]
    textual = not others or _shape(others) == "string"
    nulls = [t for t in counts if not (textual and t in ("none", "missing", "-", "?") and counts[t] < 3)]
    return [None if v in nulls else v for v in values], nulls


# ---------------------------------------------------------------------------------------------------------------- texts


def _shape(texts: Iterable[Any]) -> str:
    """The narrowest type whose shape almost all texts have."""
    counts = Counter(texts)
    total = counts.total()
    for kind, pattern in _SHAPES:
        misfits = sum(n for t, n in counts.items() if not pattern.fullmatch(t.strip()))
        if misfits <= _tolerated(total):
            return kind
    return "string"


def _tolerated(total: int) -> int:
    return max(int(total * _MOST_MISFITS), 1 if total >= 5 else 0)


def _of_texts(name: str, texts: Sequence[str], notes: list[str]) -> dict[str, Any]:
    if not texts:
        notes.append("no value was seen")
        return {"type": "string"}
    if any(re.fullmatch(r"[+-]?0\d+", t.strip()) for t in texts):
        return {"type": "string"} | _trimmed(texts)  # a code with leading zeros, no number
    shape = _shape(texts)
    for candidate in _candidates(shape, texts):
        rules = candidate | _trimmed(texts)
        misfits = _misfits(rules, texts)
        if misfits.total() <= _tolerated(len(texts)):
            if misfits:
                shown = next(iter(misfits))
                notes.append(f"{misfits.total()} of {len(texts):,} do not fit, such as {shown[:40]!r}: dead letters")
            _note_times(rules, texts, notes)
            return rules
    return {"type": "string"}


def _trimmed(texts: Sequence[str]) -> dict[str, Any]:
    return {"trim": True} if any(t != t.strip() for t in texts) else {}


def _candidates(shape: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Rules to try, the best first."""
    if shape == "int64":
        return [{"type": t} for t in ("int64", "uint64", "decimal(38,0)")]
    if shape == "decimal":
        return [*_decimal(texts), {"type": "float64"}]
    if shape == "float64":
        return [{"type": "float64"}]
    if shape == "formatted":
        dates = [{"type": "date", "format": f} for f in _FORMATS]
        return dates + [{"type": "timestamp", "format": f"{f} {c}"} for f in _FORMATS for c in _CLOCKS]
    return [] if shape == "string" else [{"type": shape}]


def _decimal(texts: Sequence[str]) -> list[dict[str, Any]]:
    """A decimal where (almost) every number is written with the same few decimals: an amount, not a measurement."""
    scales = Counter(len(t.strip().partition(".")[2]) for t in texts if re.fullmatch(r"[+-]?\d+\.\d+", t.strip()))
    scale = max(scales)
    if scale > 4 or scales[scale] < 0.9 * scales.total():
        return []
    return [_decimal_type(texts, scale)]


def _decimal_type(texts: Sequence[str], scale: int) -> dict[str, Any]:
    digits = max((len(t.strip().lstrip("+-").partition(".")[0]) for t in texts if re.fullmatch(r"[+-]?\d+(\.\d+)?", t.strip())), default=1)
    return {"type": f"decimal({min(38, max(12, digits + 3 + scale))},{scale})"}


def _misfits(rules: dict[str, Any], texts: Sequence[str]) -> Counter[str]:
    """The texts that the product itself would refuse under `rules`."""
    counts = Counter(texts)
    contract = Contract(columns={"x": Column.model_validate({**rules, "format": rules["format"]} if "format" in rules else rules)})
    batch = pa.RecordBatch.from_pydict({"x": pa.array(list(counts), pa.string()), "n": pa.array(range(len(counts)), pa.int64())})
    batch = batch.rename_columns(["x", "_position"])
    dead = conform_batch(batch, contract).dead["position"].to_pylist()
    distinct = list(counts)
    return Counter({distinct[i]: counts[distinct[i]] for i in dead})


def _note_times(rules: dict[str, Any], texts: Sequence[str], notes: list[str]) -> None:
    if rules["type"] == "timestamp" and not any(re.search(r"(Z|[+-]\d\d:?\d\d)$", t.strip()) for t in texts[:50]):
        notes.append("no offset: read as time_zone says")
    pattern = rules.get("format", "")
    if "%m/%d" in pattern or "%m-%d" in pattern:
        swapped = pattern.replace("%m", "%x").replace("%d", "%m").replace("%x", "%d")
        if not _misfits({**rules, "format": swapped}, texts):
            notes.append(f"or {swapped}: the sample fits both")


# ----------------------------------------------------------------------------------------------------------------- json


def _of_json(name: str, values: Sequence[Any], notes: list[str]) -> str | dict[str, Any]:
    """A contract type, or rules where it takes more than a type."""
    if not values:
        notes.append("no value was seen")
        return "json"
    kinds = Counter(map(_kind, values))
    kind, count = kinds.most_common(1)[0]
    if len(values) - count > _tolerated(len(values)):
        notes.append(f"{' and '.join(sorted(kinds))} were seen")
        return "json"
    if count < len(values):
        other = next(v for v in values if _kind(v) != kind)
        notes.append(f"{len(values) - count} of {len(values):,} are no {kind}, such as {str(other)[:40]!r}: dead letters")
        values = [v for v in values if _kind(v) == kind]
    if kind == "text":
        rules = _of_texts(name, values, notes)
        return rules if rules["type"] in ("timestamp", "date", "time", "uuid", "string") else {"type": "string"}
    if kind == "number":
        return _of_numbers(name, values, notes)
    if kind == "boolean":
        return "boolean"
    inner = _nested(values)
    if inner is None:
        notes.append("different shapes: kept as JSON text")
    return inner or "json"


def _kind(value: Any) -> str:
    if isinstance(value, Number):
        return "number"
    words = {bool: "boolean", str: "text", list: "list", dict: "object"}
    return words.get(type(value), "null")


def _of_numbers(name: str, values: Sequence[Number], notes: list[str]) -> str:
    whole = [v for v in values if re.fullmatch(r"-?\d+", v)]
    if len(values) - len(whole) <= _tolerated(len(values)) and whole:
        return _of_integers(name, values, whole, notes)
    plain = [v for v in values if re.fullmatch(r"-?\d+(\.\d+)?", v)]
    scale = max((len(v.partition(".")[2]) for v in plain), default=9)
    if len(plain) == len(values) and scale <= 2:
        return str(_decimal_type(plain, scale)["type"])
    return "float64"


def _of_integers(name: str, values: Sequence[Number], whole: Sequence[Number], notes: list[str]) -> str:
    low, high = min(map(int, whole)), max(map(int, whole))
    if low <= -(10**38) or high >= 10**38:
        notes.append("integers of more than 38 digits: kept as JSON text")
        return "json"
    kind = "int64" if low >= -(2**63) and high < 2**63 else "uint64" if low >= 0 and high < 2**64 else "decimal(38,0)"
    # a decimal takes 5.0 and 1e3, which are whole; an integer is written as one
    unfit = [v for v in values if not re.fullmatch(r"-?\d+", v) and not (kind.startswith("decimal") and _is_whole(v))]
    if unfit:
        notes.append(f"{len(unfit)} of {len(values):,} are no integers, such as {unfit[0]}: dead letters")
    if TIME_NAMES.search(name) and low >= 10**9 and high < 10**19:
        unit = next(u for u, limit in (("s", 10**11), ("ms", 10**14), ("us", 10**17), ("ns", 10**20)) if high < limit)
        notes.append(f"a count of time? then {{type: timestamp, unit: {unit}}}")
    return kind


def _is_whole(number: str) -> bool:
    value = Decimal(number)
    return abs(value) < 10**38 and value == value.to_integral_value()


def _nested(values: Sequence[Any]) -> str | None:
    """The type of nested values; None where they differ too much, or where a field has a name that types cannot hold."""
    present = [v for v in values if v is not None]
    kinds = {_kind(v) for v in present}
    if not present:
        return "string"
    if kinds == {"list"}:
        inner = _nested([item for v in present for item in v])
        return None if inner is None else f"list<{inner}>"
    if kinds == {"object"}:
        names = dict.fromkeys(n for v in present for n in v)
        if not names or len(names) > _WIDE_OBJECT or not all(re.fullmatch(r"[A-Za-z_][\w-]*", n) for n in names):
            return None
        fields = {n: _nested([v.get(n) for v in present]) for n in names}
        return None if None in fields.values() else f"struct<{', '.join(f'{n}: {t}' for n, t in fields.items())}>"
    if kinds == {"number"}:
        kind = _of_numbers("", present, [])
        return None if kind == "json" else kind
    return {"text": "string", "boolean": "boolean"}.get(kinds.pop()) if len(kinds) == 1 else None


# ------------------------------------------------------------------------------------------------------- key, event time


def _distinct(columns: Sequence[Sequence[Any]]) -> int:
    return len(set(zip(*([_hashable(v) for v in c] for c in columns), strict=True)))


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, list | dict) else value


def _may_identify(column: Proposed) -> bool:
    return re.match(r"float|boolean|list|struct|json|binary", column.kind) is None


def _key(columns: Sequence[Proposed], distinct: int, rows: int) -> tuple[str, ...]:
    """The fewest columns that tell all different rows of the sample apart; () where more than four would be needed."""
    usable = [c for c in columns if c.required and _may_identify(c)]
    if rows < 2 or not usable:
        return ()
    alone = [c for c in usable if _distinct([c.values]) == distinct]
    if alone:
        best = next((c for c in alone if _KEY_NAMES.search(c.name)), None) or next(
            (c for c in alone if not c.kind.startswith(("decimal", "timestamp"))), None
        )
        if best is not None:
            return (best.name,)
    chosen = [c for c in usable if not c.kind.startswith("decimal")]
    if not chosen or _distinct([c.values for c in chosen]) != distinct:
        return ()
    for column in sorted(
        chosen, key=lambda c: (bool(_KEY_NAMES.search(c.name)), c.kind in ("timestamp", "date"), c.kind == "string", _distinct([c.values]))
    ):
        rest = [c for c in chosen if c is not column]
        if rest and _distinct([c.values for c in rest]) == distinct:
            chosen = rest
    return tuple(c.name for c in chosen) if len(chosen) <= 4 else ()


def _event_time(columns: Sequence[Proposed]) -> str | None:
    times = [c for c in columns if c.kind == "timestamp"] or [c for c in columns if c.kind == "date"]
    ranked = sorted(times, key=lambda c: (not c.required, not TIME_NAMES.search(c.name)))
    return ranked[0].name if ranked else None
