"""What a run over a range of event time need not read from BigQuery or a database, and what it cannot do without names of rows that last. Loads no Beam."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.errors import SpecError
from beam_pipelines.spec.horizon import EVERYTHING, reach
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import TableSource

_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999  # the times that BigQuery knows: years 1 to 9999


class Near(NamedTuple):
    """Rows outside of `range` in the table's `column` do not matter; those without a value there do."""

    column: str
    range: Range


def near_of(spec: PipelineSpec, asked: Range | None) -> Near | None:
    """The rows that a run over `asked` depends on, where the table's own column says which they are: None where a stage has a say in the event time.

    Raises SpecError where the run would leave duplicates in other partitions, whose rows have no names that it could know.
    """
    if asked is None:
        return None
    _check_names(spec)
    time = spec.contract.event_time
    column = spec.contract.read.get(time) if time is not None else None
    if time is None or column is None or len(column.keys(time)) > 1 or column.default is not None or time in _made(spec.transform):
        return None
    before, after = reach(spec)
    if before >= EVERYTHING:
        return None
    return Near(column.keys(time)[0], Range(max(asked.start - before, _FIRST), min(asked.end + after, _LAST)))


def _made(steps: tuple[TransformStep, ...]) -> Iterator[str]:
    """The columns that steps make or make anew."""
    for step in steps:
        yield from (*(step.set or ()), *(step.rename or ()), *(step.rename or {}).values(), *(step.drop or ()))
        yield from (*(step.apply.columns if step.apply else ()), *(step.lookup.take if step.lookup else ()))


def _check_names(spec: PipelineSpec) -> None:
    if spec.deduplicate is None:
        return
    for number, source in enumerate(spec.sources.batch):
        if isinstance(source, TableSource) and source.row_id is None:
            raise SpecError(
                f"sources.batch[{number}]: {source.name}: a run over a range hides duplicates in partitions it does not write by the names of their rows, "
                "and rows of a table have none that last; got no row_id.",
                hint="Say which integer column is different in every row: row_id: id. Or run without --from and --to.",
            )
