"""One entry of `partition_by`: a column, the UTC day, hour, month or year of one, or a range of its numbers. Loads neither pyarrow nor Beam.

The kernel that cuts a batch by partition is in `partitioning.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from beam_pipelines.errors import SpecError, nearest

_UNSAFE_IN_NAMES = frozenset('/=%\\:*?"<>|[]{}')
TRANSFORMS = ("day", "hour", "month", "year", "range")
FINEST_FIRST = ("hour", "day", "month", "year")
"""Those of time."""
_LIMIT = 2**63
NULL_DIRECTORY = "__HIVE_DEFAULT_PARTITION__"
"""The directory of rows without a value to partition by; the word is Hive's."""
OUTSIDE = "__UNPARTITIONED__"
"""The partition of numbers outside of all ranges; the word is BigQuery's."""


@dataclass(frozen=True)
class Partition:
    """A partition column: `transform` of `column`; an empty `transform` is the column's own value. `bounds` of a `range` are start, end and step: [start, start + step), … up to end."""

    transform: str
    column: str
    bounds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The column's name in the directory layout. Readers pass over directories that begin with `_`: `day(_window_start)` is `window_start_day`.

        That of ranges has their numbers in it, so that files of others are never taken for these: `range(n, -5, 20, 5)` is `n_range_m5_20_5`.
        """
        if not self.transform:
            return self.column
        return "_".join([self.column.lstrip("_"), self.transform, *(str(n).replace("-", "m") for n in self.bounds)])

    def __str__(self) -> str:
        return f"{self.transform}({', '.join(map(str, (self.column, *self.bounds)))})" if self.transform else self.column


def parse_partition(text: str) -> Partition:
    """The partition that `text` names: `column`, `day(column)`, `hour(column)`, `month(column)`, `year(column)` or `range(column, start, end, step)`.

    Raises SpecError for another function, brackets that do not match, and numbers that are no ranges.

    >>> parse_partition('day(scheduled_departure)').name
    'scheduled_departure_day'
    """
    match = re.fullmatch(r"(\w+)\((.*)\)", text.strip())
    if match is None:
        if text.count("(") != text.count(")"):
            raise SpecError(
                f"partition_by {text!r}: the brackets do not match.",
                hint='Write day(event_time); in a YAML list quote what has commas: "range(n, 0, 100, 10)".',
            )
        return Partition("", text.strip().strip('"'))
    transform, column = match.group(1), match.group(2).strip().strip('"')
    if transform not in TRANSFORMS:
        raise SpecError(f"partition_by {text!r}: unknown function '{transform}';", hint=nearest(transform, TRANSFORMS))
    if not column:
        raise SpecError(f"partition_by {text!r}: no column.", hint="Write day(event_time).")
    return _range(text, column) if transform == "range" else Partition(transform, column)


def _range(text: str, inside: str) -> Partition:
    column, *numbers = (part.strip() for part in inside.split(","))
    try:
        start, end, step = map(int, numbers)
    except ValueError:
        start = end = step = 0
    if not (column and start < end and step > 0):
        raise SpecError(f"partition_by {text!r}: expected range(column, start, end, step): whole numbers, start < end and step > 0.")
    if start < -_LIMIT or end >= _LIMIT or end - start >= _LIMIT:
        raise SpecError(f"partition_by {text!r}: expected numbers of 64 bits that are less than 2^63 apart.")
    return Partition("range", column.strip('"'), (start, end, step))


def by_ingestion(text: str | None) -> str:
    """The unit of `hour()`, `day()`, `month()` or `year()`, which no column stands for: a table's partitions by the time of ingestion; "" for any other text."""
    match = re.fullmatch(r"\s*(hour|day|month|year)\(\s*\)\s*", text or "")
    return "" if match is None else match[1]


def table_partition(text: str | None) -> Partition:
    """What `partition_by` of a table says: as `parse_partition`, or `day()` and so on, without a column, by the time of ingestion; of no text all of it is empty.

    >>> table_partition("day()"), table_partition(None)
    (Partition(transform='day', column='', bounds=()), Partition(transform='', column='', bounds=()))
    """
    unit = by_ingestion(text)
    return Partition(unit, "") if unit else parse_partition(text or "")


def is_derived(name: str, columns: Collection[str]) -> bool:
    """Whether a partition of that name is computed from one of the columns.

    >>> is_derived("n_range_m5_20_5", ["n"]), is_derived("window_start_day", ["_window_start"]), is_derived("day", ["day"])
    (True, True, False)
    >>> is_derived("price_range", ["price"]), is_derived("x_day_3", ["x"])
    (False, False)
    """
    match = re.fullmatch(r"(.+)_(?:hour|day|month|year|range(?:_m?\d+){3})", name)
    return match is not None and match[1] in {column.lstrip("_") for column in columns}


def check_name(partition: Partition) -> None:
    """Raises SpecError where the partition's name cannot stand in a directory name."""
    if partition.name[:1] in "._" or not partition.name.isprintable() or _UNSAFE_IN_NAMES & set(partition.name):
        raise SpecError(
            f"partition_by: the name {partition.name!r} cannot stand in a directory name.",
            hint="Rename the column: no leading '.' or '_', none of / = % \\ : * ? \" < > | [ ] { }.",
        )
