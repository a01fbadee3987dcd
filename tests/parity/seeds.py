"""Bugs to be seeded, one at a time: the test of the test. Each is a change of one function, as somebody might make it; the law must not survive it.

`on` says which of the two laws looks for it: `kernels`, or `graph` where the stage is Beam's, files' or the views'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from beam_pipelines.arrow import copies, open_sessions, open_windows, panes, stream_partials
from beam_pipelines.arrow.contract import Column
from beam_pipelines.arrow.schema import POSITION
from beam_pipelines.formats import archive as archives
from beam_pipelines.sinks import archive, commit, speed, speed_views, stream_ledger
from beam_pipelines.transforms import deduplicate_stream, prepare, stage
from tests.parity.specs import Setting

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Seed:
    """A bug in a stage. `sow` makes it; it is looked for with the spec of `setting`. `again`: a second one of its stage, for the
    slow tests."""

    stage: str
    bug: str
    on: str
    setting: Setting
    sow: Callable[[Patch], None]
    again: bool = False


def _around(owner: Any, name: str, changed: Callable[..., Any]) -> Callable[[Patch], None]:
    """Puts `changed(original, *arguments)` in a function's place."""

    def sow(patch: Patch) -> None:
        original = getattr(owner, name)

        def replaced(*arguments: Any, **options: Any) -> Any:
            return changed(original, *arguments, **options)

        patch.setattr(owner, name, replaced)

    return sow


# ── the bugs, in the order of the data flow ─────────────────────────────────────────────────────────────────────────────────────────────────


def _next_position(write: Any, messages: pa.RecordBatch, *rest: Any, **options: Any) -> Any:
    at = messages.schema.get_field_index(POSITION)
    return write(messages.set_column(at, messages.schema.field(at), pc.add(messages.column(at), 1)), *rest, **options)


def _other_field(steps: Any, fmt: Any, contract: Any, **options: Any) -> Any:
    columns = dict(contract.columns) | {"m": contract.columns["m"].model_copy(update={"path": "n"})}
    return steps(fmt, contract.model_copy(update={"columns": columns}), **options)


def _more_digits(steps: Any, contract: Any, **options: Any) -> Any:
    columns = dict(contract.columns) | {"price": Column(type="decimal(10,3)")}
    return steps(contract.model_copy(update={"columns": columns}), **options)


def _first_step_skipped(steps: Any, given: Any, **options: Any) -> Any:
    return steps(given[1:], **options)


def _no_checks(steps: Any, contract: Any, checks: Any, **options: Any) -> Any:
    return steps(contract, [], **options)


def _only_the_first(take: Any, waiting: Any) -> Any:
    first = waiting.batches[0]
    take(waiting)
    return first


def _worse_copy_stays(mask: Any, rows: pa.RecordBatch, *, within: int | None = None, keep: str = "newest") -> Any:
    return mask(rows, within=within, keep="oldest" if keep == "newest" else "newest")


def _nothing_taken_back(earlier: Any, rule: Any, superseded: pa.RecordBatch, schema: pa.Schema) -> Any:
    return earlier(rule, superseded.slice(0, 0), schema)


def _every_row_in_time(split: Any, rows: pa.RecordBatch, micros: Any, end: Any, spec: Any, *, name: str) -> Any:
    none = split(rows.slice(0, 0), micros[:0], end[:0], spec, name=name)[1]
    return np.ones(rows.num_rows, bool), none


def _a_minute_early(split: Any, rows: Any, micros: Any, end: Any, spec: Any, *, name: str) -> Any:
    return split(rows, micros, end - 60_000_000, spec, name=name)


def _stays_in_its_window(remove: Any, windows: Any, rows: Any) -> None:
    return None


def _nothing_retracted(retracted: Any, windows: Any, gone: Any) -> Any:
    return retracted(windows, gone)[:0]


def _all_but_the_last(merge: Any, partials: pa.RecordBatch, *rest: Any, **options: Any) -> Any:
    return merge(partials.slice(0, max(1, partials.num_rows - 1)), *rest, **options)


def _no_door(doors: Any, rows: pa.RecordBatch, door: str) -> Any:
    return doors(rows.slice(0, 0), door)


def _oldest(newest: Any, by: str, order: str) -> Any:
    return newest(by, order.replace("DESC", "ASC"))


def _never_seen(fresh: Any, positions: Any, messages: pa.RecordBatch) -> Any:
    return messages


def _duplicates_are_written(there: Any, sinks: Any, name: str, doors: int) -> bool:
    return bool(doors & sinks.written(name))


def _late_not_counted(tally: Any, counts: Any, outputs: Any) -> Any:
    return tally([count for count in counts if count[2] != "late"], outputs)


FIXED, SLIDING, SESSIONS = Setting("fixed", early=True), Setting("sliding"), Setting("sessions", lateness=120)

SEEDS = (
    Seed("archive", "messages are stored under the next one's position", "graph", FIXED, _around(archive, "write_messages", _next_position)),
    Seed("archive", "a message that was delivered twice is read twice", "graph", FIXED,
         _around(archives.Positions, "fresh", _never_seen), again=True),
    Seed("decode", "a column is filled from another field", "kernels", FIXED, _around(prepare, "message_steps", _other_field)),
    Seed("conform", "a decimal takes a digit more than the contract says", "kernels", FIXED, _around(prepare, "conform_steps", _more_digits)),
    Seed("transform", "the filter is left out", "kernels", FIXED, _around(prepare, "transform_steps", _first_step_skipped)),
    Seed("validate", "checks of one row are not applied", "kernels", FIXED, _around(prepare, "check_steps", _no_checks)),
    Seed("validate", "rows from the future pass", "kernels", FIXED, _around(prepare, "_future", lambda future, *_: ()), again=True),
    Seed("bundles", "of small batches in a bundle only the first goes on", "graph", FIXED, _around(stage._Waiting, "take", _only_the_first)),
    Seed("deduplicate", "a stream keeps the worse copy", "kernels", FIXED, _around(copies, "duplicate_mask", _worse_copy_stays)),
    Seed("deduplicate", "what a better copy supersedes is not taken back", "kernels", FIXED,
         _around(deduplicate_stream.ByRule, "_earlier", _nothing_taken_back), again=True),
    Seed("late gate", "a stream takes every row, however late", "kernels", FIXED, _around(stream_partials, "split_late", _every_row_in_time)),
    Seed("late gate", "a batch closes windows a minute early", "kernels", FIXED, _around(panes, "split_late", _a_minute_early), again=True),
    Seed("aggregate", "a row that is taken back stays in its window", "kernels", FIXED,
         _around(open_windows.OpenWindows, "_remove", _stays_in_its_window)),
    Seed("aggregate", "sessions that were joined are shown still", "kernels", SESSIONS,
         _around(open_sessions.OpenSessions, "_retracted", _nothing_retracted), again=True),
    Seed("aggregate", "the last of many partials is left out", "kernels", SLIDING, _around(panes, "_merge", _all_but_the_last), again=True),
    Seed("write", "duplicates leave by no door", "graph", FIXED, _around(speed, "doors_of", _no_door)),
    Seed("view", "duplicates are shown among the rows", "graph", FIXED, _around(speed_views, "_without_duplicates", lambda without, state: "")),
    Seed("view", "the oldest pane of a window is shown", "graph", FIXED, _around(speed_views, "_newest", _oldest), again=True),
    Seed("ledger", "a stream counts duplicates as written", "graph", FIXED, _around(stream_ledger._Sinks, "there", _duplicates_are_written)),
    Seed("ledger", "a batch does not count what is too late", "graph", FIXED, _around(commit, "tally", _late_not_counted), again=True),
)  # fmt: skip
STAGES = (
    "archive",
    "decode",
    "conform",
    "transform",
    "validate",
    "bundles",
    "deduplicate",
    "late gate",
    "aggregate",
    "write",
    "view",
    "ledger",
)
