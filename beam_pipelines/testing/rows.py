"""What a test may give as rows: mappings, `beam.Row`s, NamedTuples, dataclasses, RecordBatches, Tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from beam_pipelines.arrow.named_values import named_values
from beam_pipelines.errors import SpecError

Row = Mapping[str, Any]
Rows = Iterable[Any]
"""A RecordBatch, a Table, or an iterable of rows in any of these forms, mixed if need be."""
Record = Mapping[str, Any] | str | bytes
"""A record as a source has it: a mapping, or its text or bytes."""

EXPECTED = "a mapping, beam.Row, NamedTuple, dataclass, RecordBatch or Table"


def rows_of(given: Any, *, where: str) -> list[Row]:
    """All rows as mappings, in order. Raises SpecError that begins with `where` for what is no row."""
    rows = records_of(given, where=where)
    wrong = next(((i, row) for i, row in enumerate(rows) if isinstance(row, str | bytes)), None)
    if wrong is not None:
        raise _refused(f"{where}[{wrong[0]}]", wrong[1])
    return [row for row in rows if isinstance(row, Mapping)]


def records_of(given: Any, *, where: str) -> list[Record]:
    """As `rows_of`; texts and bytes are records as they stand."""
    if isinstance(given, pa.RecordBatch | pa.Table):
        return list(given.to_pylist())
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable) or named_values(given) is not None:
        raise SpecError(
            f"{where}: got {_named(given)}; expected a list of rows, a RecordBatch or a Table.", hint="Put a single row into a list."
        )
    return [record for i, one in enumerate(given) for record in _each(one, f"{where}[{i}]")]


def _each(one: Any, where: str) -> Iterator[Record]:
    if isinstance(one, pa.RecordBatch | pa.Table):
        yield from one.to_pylist()
    elif isinstance(one, str | bytes):
        yield one
    elif (row := named_values(one)) is not None:
        yield row
    else:
        raise _refused(where, one)


def _refused(where: str, given: Any) -> SpecError:
    return SpecError(f"{where}: got {_named(given)}; expected {EXPECTED}.")


def _named(given: Any) -> str:
    text = repr(given)
    return "None" if given is None else f"{type(given).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
