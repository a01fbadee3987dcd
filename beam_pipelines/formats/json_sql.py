"""The SELECT that takes a JSON record apart, and the condition under which counting proves it.

One `from_json` reads all columns. Columns that are not strings are fetched as JSON text, whose first character tells their kind. The
few whose names DuckDB's structs cannot hold side by side (equal but for case) are fetched one by one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.layers import Define
from beam_pipelines.arrow.schema import UNKNOWN
from beam_pipelines.formats.json_plan import BOOLEAN, NUMBER, STRING, Member, Plan, kinds_of

LINE, COUNT, STRINGS, OBJECTS = "_line", "_members", "_strings", "_objects"
COUNTS = (COUNT, STRINGS, OBJECTS)
_OBJECT, _JSON = "_is_object", "_json"


@dataclass(frozen=True)
class Extraction:
    """`let` takes the record apart, `defines` give the columns' texts. With `countable`, rows whose COUNT is not negative are proven by counting.

    `suspect`: rows that are not proven.
    """

    let: tuple[Define, ...]
    defines: tuple[Define, ...]
    suspect: str
    countable: bool

    def unknown(self, column: str | None) -> tuple[Define, ...]:
        """`_unknown` from `column`, where it is kept."""
        return (Define(UNKNOWN, column),) if column is not None else ()


def extraction(plan: Plan) -> Extraction:
    """The SQL of a plan."""
    alone = _alone(plan.root)
    structure = _structure(plan.root, alone)
    let = (Define(_JSON, f"from_json({LINE}, {literal(json.dumps(structure, ensure_ascii=False))})"),) if structure else ()
    struct = f"{_JSON}$"
    defines = [Define(name, _text(name, member, plan, struct, alone)) for name, member in plan.leaves]
    countable = not alone and not any(member.nested for _, member in plan.leaves)
    if not countable:
        return Extraction(let, tuple(defines), f"{COUNT} <> -1", False)
    objects = [m for m in plan.root.walk() if not m.columns and m.path]
    defines += [Define(f"{_OBJECT}{i}", f"({_field(struct, m)}) IS NOT NULL") for i, m in enumerate(objects)]
    defines += [Define(f"{_JSON}{i}", f"({_field(struct, m)})::VARCHAR") for i, (_, m) in enumerate(plan.leaves) if _two_faced(m)]
    return Extraction(let, tuple(defines), _suspect(plan, len(objects)), True)


def _suspect(plan: Plan, objects: int) -> str:
    """Where counting proves nothing.

    DuckDB gives a struct, all NULL, for any value in an object's place. So a record's objects are counted too: when no member is
    unknown or repeated and no column's value is an object, then they are the members on the way to columns, or one of those is none.
    """
    first = {id(member): name for name, member in reversed(plan.leaves)}
    present: list[str] = [f"{_OBJECT}{i}$" for i in range(objects)]
    strings: list[str] = []
    wrong: list[str] = []
    for name in first.values():
        number = [n for n, _ in plan.leaves].index(name)
        text = f"{_JSON}{number}$" if _two_faced(plan.leaves[number][1]) else quote(name + "$")
        kind = _natural(name, plan)
        present.append(f"({text} IS NOT NULL)")
        if kind == STRING:
            strings.append(f"({text} IS NOT NULL)")
            if objects:
                wrong.append(f"({text} >= '{{' AND {text} < '|')")  # an object, or a text that looks like one
        elif kind == NUMBER:
            wrong.append(f"{text} < '-' OR {text} >= ':'")  # of all JSON values only numbers begin with - or a digit
        else:
            wrong.append(f"{text} < 'f' OR {text} >= 'u'")
    conditions = [f"{COUNT} <> {_sum(present)}", f"{STRINGS} <> {_sum(strings)}", *wrong]
    if objects:
        conditions.append(f"{OBJECTS} <> {_sum(present[:objects])}")
    return f"CASE WHEN {COUNT} >= 0 THEN {' OR '.join(conditions)} ELSE {COUNT} <> -1 END"


def _two_faced(member: Member) -> bool:
    """Whether its text, without the quotes of a string, does not tell its JSON kind."""
    return bool(member.kinds & STRING) and not member.nested and (member.coerce or bool(member.kinds & NUMBER))


def _sum(flags: list[str]) -> str:
    return "(" + " + ".join(f"{f}::INTEGER" for f in flags) + ")" if flags else "0"


def _natural(name: str, plan: Plan) -> int:
    """The one kind by which counting proves a column: the others are proven by members."""
    column = plan.column(name)
    if column.unit is not None and column.dtype.temporal:
        return NUMBER
    return kinds_of(column.dtype) & (STRING | NUMBER | BOOLEAN)


def _alone(root: Member) -> set[tuple[str, ...]]:
    """Paths of leaves that pass a name which equals a neighbour's but for case, or that no struct can hold."""
    alone: set[tuple[str, ...]] = set()
    for member in root.walk():
        names: dict[str, list[Member]] = {}
        for key, child in member.children.items():
            names.setdefault(key.casefold().lower(), []).append(child)
        for key, children in names.items():
            if len(children) > 1 or "\0" in key:
                alone |= {leaf.path for child in children for leaf in child.walk() if leaf.columns}
    return alone


def _structure(member: Member, alone: set[tuple[str, ...]]) -> dict[str, object]:
    out: dict[str, object] = {}
    for key, child in member.children.items():
        if child.columns:
            if child.path not in alone:
                out[key] = "VARCHAR" if child.kinds & STRING and not child.nested and not _two_faced(child) else "JSON"
        elif below := _structure(child, alone):
            out[key] = below
    return out


def _text(name: str, member: Member, plan: Plan, struct: str, alone: set[tuple[str, ...]]) -> str:
    pointer = literal("/" + "/".join(key.replace("~", "~0").replace("/", "~1") for key in member.path))
    plain = bool(member.kinds & STRING) and not member.nested
    if member.path in alone:
        return f"json_extract_string({LINE}, {pointer})" if plain else f"nullif(json_extract({LINE}, {pointer})::VARCHAR, 'null')"
    field = _field(struct, member)
    if not _two_faced(member):
        return f"({field})::VARCHAR"
    return f"CASE WHEN starts_with(({field})::VARCHAR, '\"') THEN json_extract_string({field}, '$') ELSE ({field})::VARCHAR END"


def _field(struct: str, member: Member) -> str:
    for key in member.path:
        struct = f"struct_extract({struct}, {literal(key)})"
    return struct
