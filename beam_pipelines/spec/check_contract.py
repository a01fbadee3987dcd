"""What a contract alone must satisfy beyond its shape: zones, patterns, bounds that convert, computed columns that fit."""

from __future__ import annotations

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.expressions import converts, family, regex_fault, strptime_fault
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.problems import Path
from beam_pipelines.spec.scope import Scope


def check_contract(contract: Contract, document: Document) -> dict[str, str | None]:
    """Adds what is wrong with the spec's contract to the document's problems; gives its columns and their DuckDB types."""
    at: Path = ("contract",)
    for name, column in contract.columns.items():
        path = (*at, "columns", name)
        check_zone(document, (*path, "time_zone"), column.time_zone)
        _check_patterns(document, path, column)
        _check_literals(document, path, column)
    kinds = {n: None if n in document.doubtful else c.dtype.sql for n, c in contract.columns.items()}
    scope = Scope(document, {n: kinds[n] for n in contract.read})
    for name, column in contract.computed.items():
        _check_computed(scope, (*at, "columns", name, "expr"), name, column, contract)
    return kinds


def _check_computed(scope: Scope, path: Path, name: str, column: Column, contract: Contract) -> None:
    later = {n: "computed after it; put it before" for n in contract.computed if n not in scope.columns}
    scope.gone = {**later, name: "meant to be this very column"}
    found = scope.expression(path, str(column.expr))
    wanted = column.dtype.sql
    if name in scope.document.doubtful:
        scope.columns[name] = None
        return
    if found is not None and not _assignable(found, wanted):
        message = f"the expression has type {found}; expected {column.type} ({wanted}). Cast it: CAST(… AS {wanted})"
        scope.document.problem(path, message)
    scope.columns[name] = wanted


def _assignable(found: str, wanted: str) -> bool:
    """Whether values of the type `found` become `wanted` without being read as text or cut."""
    if '"NULL"' in found or found == wanted:
        return True
    families = family(found), family(wanted)
    if families == ("date", "date"):
        return wanted != "DATE"  # a timestamp is not cut to its day in silence
    if families == ("number", "number"):
        floats = ("FLOAT", "DOUBLE")
        return wanted in floats or (found not in floats and _scale(found) <= _scale(wanted))
    return families[0] == families[1]


def _scale(kind: str) -> int:
    """Digits after the point of a DECIMAL; integers have none."""
    return int(kind.rstrip(")").split(",")[1]) if kind.startswith("DECIMAL(") else 0


def _check_patterns(document: Document, path: Path, column: Column) -> None:
    fault = regex_fault(column.regex) if column.regex is not None else None
    if fault is not None:
        document.problem((*path, "regex"), f"not a regular expression RE2 knows: {fault}")
    formats = (column.format,) if isinstance(column.format, str) else column.format or ()
    for i, pattern in enumerate(formats):
        why = "the pattern is empty" if not pattern else strptime_fault(pattern)
        if why is not None:
            where = (*path, "format") if isinstance(column.format, str) else (*path, "format", i)
            document.problem(where, why)


def _check_literals(document: Document, path: Path, column: Column) -> None:
    """Bounds, sets and defaults that are texts must read as the column's type."""
    kind = column.dtype
    if kind.kind not in ("date", "time", "timestamp", "datetime", "decimal", "uuid"):
        return
    sql = "UUID" if kind.kind == "uuid" else kind.sql
    given: list[tuple[Path, object]] = [(("min",), column.min), (("max",), column.max)]
    given += [(("default",), column.default)] if not (column.format or column.unit) else []
    given += [(("in", i), v) for i, v in enumerate(column.in_ or ())]
    for below, value in given:
        if value is not None and not converts(value, sql):
            document.problem((*path, *below), f"{str(value)!r} is no {column.type}")


def check_zone(document: Document, path: Path, zone: str | None) -> None:
    """A problem at `path` if `zone` is no time zone of the IANA database."""
    if zone is None or zone == "UTC":
        return
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        document.problem(path, f"unknown time zone {zone!r}; {_near_zone(zone)}")


def _near_zone(zone: str) -> str:
    import zoneinfo
    from difflib import get_close_matches

    known = {z.lower(): z for z in sorted(zoneinfo.available_timezones())}
    close = get_close_matches(zone.lower().replace(" ", "_"), known, n=1, cutoff=0.6)
    ends = [z for low, z in known.items() if low.rsplit("/", 1)[-1] == zone.lower().replace(" ", "_")]
    guess = ends[0] if ends else known[close[0]] if close else ""
    return f"did you mean '{guess}'?" if guess else "expected a name such as Europe/Berlin or UTC"
