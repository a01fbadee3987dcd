"""The columns at one point of a pipeline, and checking names and expressions against them at their place in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from beam_pipelines.arrow.expressions import ExpressionError, Fault, Kind, check_expression
from beam_pipelines.errors import nearest
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.problems import Path

ARRIVAL = "_arrival_time"
PROVENANCE: dict[str, str | None] = {"_source": "VARCHAR", "_position": "BIGINT", ARRIVAL: "TIMESTAMP"}
STORABLE_NOT = ("INTERVAL", "TIME WITH TIME ZONE", "BIT", "UNION", '"NULL"')


@dataclass
class Scope:
    """Columns by name with their DuckDB types (None: known in the run only). `gone` says what became of
    names that were there before."""

    document: Document
    columns: dict[str, str | None] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)

    def add(self, path: Path, name: str, kind: str | None, *, replace: bool = False) -> None:
        """Adds a column, or replaces one of the same name if that is allowed; refuses names that SQL cannot tell apart."""
        if name.startswith("_"):
            self.document.problem(path, f"column {name!r}: names that start with '_' are reserved for provenance columns", key=True)
        elif not name or "$" in name:
            self.document.problem(path, f"column {name!r}: a name must not be empty or contain '$'", key=True)
        twin = next((c for c in self.columns if c.lower() == name.lower()), None)
        if twin is not None and twin != name:
            self.document.problem(path, f"column {name!r} differs from {twin!r} only in case, which SQL does not see", key=True)
        elif twin is not None and not replace:
            self.document.problem(path, f"column {name!r} exists already", key=True)
        self.columns[name] = kind

    def remove(self, name: str, why: str) -> None:
        self.columns.pop(name, None)
        self.gone[name] = why

    def known(self, path: Path, name: str, *, also: Mapping[str, str | None] | None = None) -> bool:
        """Whether the column is there; a problem at `path` if not."""
        columns = {**self.columns, **(also or {})}
        if name in columns:
            return True
        if self.doubtful(name):
            return False
        self.document.problem(path, f"unknown column {name!r}; {self._gone(name)}{nearest(name, columns)}")
        return False

    def doubtful(self, name: str) -> bool:
        """Whether a wrong part of the spec may have made the column."""
        return name in self.document.doubtful or "columns" in self.document.vague

    def _gone(self, name: str) -> str:
        return f"it was {self.gone[name]}. " if name in self.gone else ""

    def all_known(self, path: Path, names: Iterable[str], *, also: Mapping[str, str | None] | None = None) -> None:
        """As `known` for a list of names at `path`; a name that stands there twice is a problem too."""
        seen: set[str] = set()
        for i, name in enumerate(names):
            if name in seen:
                self.document.problem((*path, i), f"{name!r} stands here twice")
            seen.add(name)
            self.known((*path, i), name, also=also)

    def expression(self, path: Path, sql: str, *, kind: Kind = "row", shift: int = 0) -> str | None:
        """The type of an expression over the columns; its problems, if any, at their characters. `shift` is where `sql` starts in
        the text at `path`."""
        try:
            return check_expression(sql, self.columns, kind=kind).type
        except ExpressionError as error:
            for fault in error.faults:
                if fault.column is None or not self.doubtful(fault.column):
                    self.document.problem(path, self._explained(fault), offset=fault.offset + shift)
            return None

    def _explained(self, fault: Fault) -> str:
        known = f"unknown column '{fault.column}'; "
        return fault.message if fault.column is None else fault.message.replace(known, known + self._gone(fault.column), 1)

    def value(self, path: Path, sql: str, *, what: str) -> str | None:
        """As `expression`, for a value that will be a column."""
        kind = self.expression(path, sql)
        if kind is not None and kind.startswith(STORABLE_NOT):
            shown, hint = ("NULL", "CAST(NULL AS INTEGER)") if "NULL" in kind else (kind, "epoch(x) for seconds, or CAST(x AS VARCHAR)")
            self.document.problem(path, f"{what} has type {shown}, which cannot be stored; write {hint}")
            return None
        return kind
