"""Beam's types for rows of known columns: what `SqlTransform`, `GroupBy` and other languages' transforms read of a `beam.Row`.

timestamp    Beam's Timestamp        list      list
datetime     datetime                struct    Row
all else     as in a dict            any of them may be NULL
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple, Optional

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.arrow.message_positions import micros_of
from beam_pipelines.errors import SpecError


class Kind(NamedTuple):
    """Beam's type of a value, and what makes one of Python's value; None where it is the same."""

    hint: Any
    made: Callable[[Any], Any] | None


def kind_of(arrow: pa.DataType) -> Kind:
    """How Beam sees values of an Arrow type. Raises SpecError for a type that Beam has no word for."""
    if pa.types.is_dictionary(arrow):
        return kind_of(arrow.value_type)
    if pa.types.is_timestamp(arrow):
        return Kind(Timestamp, _instant) if arrow.tz is not None else Kind(datetime, None)
    if pa.types.is_struct(arrow):
        kinds = {f.name: kind_of(f.type) for f in arrow}
        return Kind(row_hint(kinds), lambda value: row_of(value, kinds))
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
        item = kind_of(arrow.value_type)
        return Kind(Sequence[item.hint], None if item.made is None else lambda values: [_made(v, item.made) for v in values])  # type: ignore[name-defined]
    for holds, hint in _PLAIN:
        if holds(arrow):
            return Kind(hint, None)
    raise SpecError(f"ToRows: Beam has no type for Arrow's {arrow}.", hint="Leave the column out of the schema, or cast it before.")


def row_hint(kinds: Mapping[str, Kind]) -> RowTypeConstraint:
    """The type of a `beam.Row` of such columns, each of which may be NULL."""
    return RowTypeConstraint.from_fields([(name, Optional[kind.hint]) for name, kind in kinds.items()])  # noqa: UP045  # made at run time


def row_of(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> beam.Row:
    """`values` as a `beam.Row` of that type."""
    return beam.Row(**{name: _made(values[name], kind.made) for name, kind in kinds.items()})


def _instant(moment: datetime) -> Timestamp:
    return Timestamp(micros=micros_of(moment))


def _made(value: Any, made: Callable[[Any], Any] | None) -> Any:
    return value if value is None or made is None else made(value)


_PLAIN: tuple[tuple[Callable[[pa.DataType], bool], Any], ...] = (
    (pa.types.is_boolean, bool),
    (pa.types.is_integer, int),
    (pa.types.is_floating, float),
    (pa.types.is_decimal, Decimal),
    (lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t), str),
    (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t), bytes),
    (pa.types.is_date, date),
    (pa.types.is_time, time),
)
