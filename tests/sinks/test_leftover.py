"""A corrected input leaves rows behind in partitions that it no longer reaches: the run says so where it can know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from beam_pipelines.sinks.commit import Verdicts, conclude
from beam_pipelines.sinks.leftover import Leftover, leftovers
from tests.sinks.lake import Lake, rows


def go(lake: Lake, run_id: str, *batches: pa.RecordBatch, args: Mapping[str, Any] | None = None, **more: Any) -> tuple[Leftover, ...]:
    """Runs over batches, each a file of its own by its source."""
    run, output = lake.run(run_id), lake.output(**more)
    read = [(f"b{i}", b.column("_source")[0].as_py(), "read", "", b.num_rows) for i, b in enumerate(batches)]
    record = conclude(run, [output], [*read, *lake.stage(run, output, *batches)], Verdicts(args=args or {}))
    assert record.status == "success", record.failures
    return leftovers(lake.state, record)


def test_partitions_that_a_corrected_file_no_longer_reaches_are_told(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert go(lake, "r1", rows((1, "a"), (2, "b"), (3, "c"))) == ()
    found = go(lake, "r2", rows((1, "a")))
    assert found == (Leftover("out", ("k=b", "k=c"), "r1"),)
    assert "2 partitions (k=b, k=c) still hold rows of run r1" in str(found[0])
    assert "`replace: all`" in str(found[0])
    assert go(lake, "r3", rows((1, "a"), (2, "b"), (3, "c"))) == ()


def test_nothing_is_said_of_rows_whose_files_were_not_all_read_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    go(lake, "r1", rows((1, "a"), source="s"), rows((2, "b"), source="t"))
    assert go(lake, "r2", rows((1, "a"), source="s")) == ()
    assert go(lake, "r3", rows((1, "a"), source="s"), rows((1, "a"), source="t")) == (Leftover("out", ("k=b",), "r1"),)


def test_nothing_is_said_where_parameters_choose_the_partitions_or_all_is_replaced(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    go(lake, "r1", rows((1, "a")), args={"parameters": {"day": "1"}})
    assert go(lake, "r2", rows((2, "b")), args={"parameters": {"day": "2"}}) == ()
    assert go(lake, "r3", rows((2, "b")), replace="all") == ()
