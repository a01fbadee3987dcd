"""One entry of `partition_by`: a column, or the UTC day, hour, month or year of one. Loads neither pyarrow nor Beam.

The kernel that cuts a batch by partition is in `partitioning.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from beam_pipelines.errors import SpecError, nearest

_UNSAFE_IN_NAMES = frozenset('/=%\\:*?"<>|[]{}')
TRANSFORMS = ("day", "hour", "month", "year")


@dataclass(frozen=True)
class Partition:
    """A partition column: `transform` of `column`; an empty `transform` is the column's own value."""

    transform: str
    column: str

    @property
    def name(self) -> str:
        """The column's name in the directory layout. Readers pass over directories that begin with `_`: `day(_window_start)` is `window_start_day`."""
        return f"{self.column.lstrip('_')}_{self.transform}" if self.transform else self.column

    def __str__(self) -> str:
        return f"{self.transform}({self.column})" if self.transform else self.column


def parse_partition(text: str) -> Partition:
    """The partition that `text` names: `column`, `day(column)`, `hour(column)`, `month(column)` or `year(column)`.

    Raises SpecError for another function.

    >>> parse_partition('day(scheduled_departure)').name
    'scheduled_departure_day'
    """
    match = re.fullmatch(r"(\w+)\((.*)\)", text.strip())
    if match is None:
        return Partition("", text.strip().strip('"'))
    transform, column = match.group(1), match.group(2).strip().strip('"')
    if transform not in TRANSFORMS:
        raise SpecError(f"partition_by {text!r}: unknown function '{transform}';", hint=nearest(transform, TRANSFORMS))
    if not column:
        raise SpecError(f"partition_by {text!r}: no column.", hint="Write day(event_time).")
    return Partition(transform, column)


def check_name(partition: Partition) -> None:
    """Raises SpecError where the partition's name cannot stand in a directory name."""
    if partition.name[:1] in "._" or not partition.name.isprintable() or _UNSAFE_IN_NAMES & set(partition.name):
        raise SpecError(
            f"partition_by: the name {partition.name!r} cannot stand in a directory name.",
            hint="Rename the column: no leading '.' or '_', none of / = % \\ : * ? \" < > | [ ] { }.",
        )
