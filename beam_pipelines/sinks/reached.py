"""How far each start of a stream has come: one file each, `{state}/stream/progress/000007.json`. Loads no Beam.

Each start keeps its own account, and begins it with how far the one before had come. The newest account counts, never the farthest: a process that
was taken over may live on for a moment and get farther, but the windows it closes then are the newer one's to show.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import msgspec

from beam_pipelines.arrow.engine import literal
from beam_pipelines.places import join, list_files, local, write_bytes
from beam_pipelines.sinks.epochs import epochs_in, path_of_epoch, read_by_epoch, stream_folder

_LOG = logging.getLogger(__name__)


class Reached(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a start of a stream has come. Times are microseconds of the arrival clock, None where nothing is known.

    `watermark_micros`: what arrived before is stored, and windows that close before are shown for good. `began_micros`: the same of the starts
    before, when this one began. `through_ms`: what was archived before this moment (ms since 1970) is stored, whenever it arrived. `ended`: in
    order, all open windows shown; `out_ms`: until then (ms since 1970) messages may be leased to this process or an earlier one, None: unknown.
    """

    watermark_micros: int | None = None
    began_micros: int | None = None
    through_ms: int | None = None
    ended: bool = False
    out_ms: int | None = None


def starts(state: str) -> dict[int, Reached]:
    """How far each start has come, by its epoch."""
    return reached_by(state, epochs_in(_folder(state)))


def reached_by(state: str, epochs: Iterable[int]) -> dict[int, Reached]:
    """How far these starts have come, by epoch, in order; without those that have written nothing down."""
    return read_by_epoch(_folder(state), epochs, Reached)


def starts_sql(state: str) -> str | None:
    """A SELECT of the same as it is when it is asked: epoch, watermark_micros, began_micros, ended, NULL where nothing is said; None before the first start."""
    if not any(name.endswith(".json") for name in list_files(_folder(state))):
        return None
    said = "columns = {watermark_micros: 'BIGINT', began_micros: 'BIGINT', ended: 'BOOLEAN'}"
    files = literal(join(local(_folder(state)), "[0-9]*.json"))
    return f"SELECT parse_filename(filename, true)::BIGINT AS epoch, * EXCLUDE (filename) FROM read_json({files}, {said}, filename = true, hive_partitioning = false)"


def begin(state: str, epoch: int) -> Reached:
    """How far the starts before `epoch` have come; from now on the account of this one counts. Call it before anything is stored.

    Never past now: what no message can have said would be a start from which nothing is replayed, and no window shown.
    """
    earlier = {number: reached for number, reached in starts(state).items() if number < epoch}
    before = until_now(earlier[max(earlier)]) if earlier else Reached()
    write_progress(state, epoch, Reached(before.watermark_micros, before.watermark_micros, before.through_ms))
    return before


def until_now(reached: Reached) -> Reached:
    """The same with a watermark no later than now."""
    now = time.time_ns() // 1_000
    if reached.watermark_micros is None or reached.watermark_micros <= now:
        return reached
    _LOG.warning(
        "the start before noted a watermark in the future (%d microseconds since 1970); this one begins at the time of day",
        reached.watermark_micros,
    )
    return msgspec.structs.replace(reached, watermark_micros=now)


def write_progress(state: str, epoch: int, reached: Reached) -> None:
    """Writes down how far this start has come."""
    write_bytes(path_of_epoch(_folder(state), epoch), msgspec.json.encode(reached))


def _folder(state: str) -> str:
    return join(stream_folder(state), "progress")
