"""A stream whose source runs in another process than the one that started it: what the two tell one another, by files in the state folder.

    {state}/stream/control/000007/drain                  the starter: end
    {state}/stream/control/000007/{process}-0.json       the source: how it stands, what this process has counted, at which watermark it ended

For people and for the end of the job; that nothing is lost does not depend on it. Where sources run in several processes it does, for there they say besides

    {state}/stream/control/000007/{process}-0.json       what is under way of what this process has stored (`durable`), and which elements of the graph it has
    {state}/stream/control/000007/behind                 the watermark behind all sinks: what was before it is under way no more
    {state}/stream/control/000007/replayed-0             the archive's tail is read again, which one process does for all
    {state}/stream/control/000007/ended                  the starter: at which watermark all have ended

Draining, a source says where it ended and stands still. When all have, the starter says the earliest of these watermarks, and only `SETTLED_S` later do the sources let the runner's go
to its end. Whoever judges a timer looks for it, unless it was not there `FRESH_S` ago: so no timer that the end has fired is taken for one that time has.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from beam_pipelines import draining, durable, metrics
from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.places import create_new, exists, join, list_files, read_bytes, write_bytes
from beam_pipelines.sources.pubsub_puller import NEVER, Puller
from beam_pipelines.sources.pubsub_pulling import PullSettings, PullStatus
from beam_pipelines.sources.pubsub_replay import Replay

_EVERY_S = 0.5
FRESH_S, SETTLED_S = 1.0, 3.0
_DRAIN, _BEHIND, _ENDED = "drain", "behind", "ended"
_NO_ROWS = pa.record_batch([], schema=pa.schema([]))
_lock = threading.Lock()
_looked: dict[str, float] = {}
_log = logging.getLogger(__name__)


class Report(msgspec.Struct, frozen=True):
    """How one source stands. `ended_micros`: the watermark at which it ended; None while it runs. `over`: the runner's may go to its end.

    `elements` of the graph this process has of the source. `under_way` is `durable.under_way` at `told_ms`.
    """

    number: int
    status: PullStatus
    counts: dict[str, int]
    ended_micros: int | None = None
    over: bool = True
    elements: tuple[int, ...] = (0,)
    told_ms: int = 0
    under_way: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Together:
    """The `sources` of one start, each of as many `elements`, in processes that talk by `folder`. Picklable."""

    folder: str
    sources: int
    elements: int

    def complete(self, told: Collection[Report]) -> bool:
        """Whether all processes that read have been heard: it is known of each element where it is."""
        places = {(report.number, element) for report in told for element in report.elements}
        return len(places) == self.sources * self.elements

    def behind(self, watermark_micros: int) -> int | None:
        """Says that the watermark behind all sinks is this one. Gives the moment (ms since 1970, by the clock of whoever stored it) before which everything that was stored is in the sinks; None
        where not all processes have been heard."""
        told = reports(self.folder).values()
        write_bytes(join(self.folder, _BEHIND), str(watermark_micros).encode())
        if not self.complete(told):
            return None
        return min(min([r.told_ms, *(at for timestamp, at in r.under_way if timestamp >= watermark_micros)]) for r in told)

    def heed(self) -> None:
        """To be called before a timer is judged: then `draining` knows at which watermark all sources have ended, if they have."""
        now = time.monotonic()
        with _lock:
            if draining.ended_at() is None and now - _looked.get(self.folder, -FRESH_S) >= FRESH_S:
                if (at := all_ended(self.folder)) is None:
                    _looked[self.folder] = now
                else:
                    draining.end(at)


def report(folder: str, process: str, puller: Puller, elements: Sequence[int]) -> None:
    """Says from now on, until `puller` is closed, how it stands and which `elements` it stands for, and asks it to end when that is said."""
    path = join(folder, f"{process}-{puller.settings.number}.json")
    threading.Thread(target=_reports, args=(folder, path, puller, elements), name="pubsub-reports", daemon=True).start()


def _reports(folder: str, path: str, puller: Puller, elements: Sequence[int]) -> None:
    pause, settled_s = threading.Event(), None
    while not puller.closed:
        try:
            if not draining.requested() and exists(join(folder, _DRAIN)):
                draining.request()
            if puller.settings.elements > 1:
                settled_s = _heard(folder, puller, settled_s)
            over, (now_ms, under_way) = puller.ended, durable.under_way()
            said = Report(
                puller.settings.number, puller.status(), metrics.snapshot(), puller.ended_at, over, tuple(elements), now_ms, under_way
            )
            write_bytes(path, msgspec.json.encode(said))
        except (BeamPipelinesError, OSError) as error:  # nobody hears of this source for a moment; its work goes on
            _log.warning("%s: %s", path, error)
        except Exception as error:  # in silence, the source would hear of no end
            puller.give_up(error)
            return
        pause.wait(_EVERY_S)


def _heard(folder: str, puller: Puller, settled_s: float | None) -> float | None:
    """Hears of the others; gives when the source may end (monotonic), if it is known."""
    told = [report.status for report in reports(folder).values() if report.number == puller.settings.number]
    if known := [status.watermark_micros for status in told if status.watermark_micros is not None]:
        puller.others = max(known)
    if content := read_bytes(join(folder, _BEHIND)):
        durable.all_through(int(content))
    if puller.ended_at is None or puller.ended or (at := all_ended(folder)) is None:
        return None
    if settled_s is None:
        draining.end(at)
        return time.monotonic() + SETTLED_S
    if time.monotonic() >= settled_s:
        puller.ended = True
    return settled_s


def in_one(replay: Replay, settings: PullSettings, elements: Collection[int]) -> Replay:
    """`replay` in the process that has the first of the `elements`; in the others nothing, when that one is through."""

    def read() -> Iterator[pa.RecordBatch]:
        assert settings.control is not None
        done = join(settings.control, f"replayed-{settings.number}")
        while not exists(done):
            if 0 in elements:
                yield from replay()
                write_bytes(done, b"")
                return
            yield _NO_ROWS
            time.sleep(_EVERY_S)

    return read


def say_all_ended(folder: str, told: Collection[Report]) -> int:
    """Says at which watermark all sources have ended, and gives it: the earliest, without those that never had a message where others had."""
    ends = [report.ended_micros for report in told if report.ended_micros is not None]
    at = min([end for end in ends if end != NEVER], default=NEVER)
    write_bytes(join(folder, _ENDED), str(at).encode())
    return at


def all_ended(folder: str) -> int | None:
    """The watermark at which all sources have ended; None while one runs."""
    content = read_bytes(join(folder, _ENDED))
    return int(content) if content else None


def ask_to_end(folder: str) -> None:
    """Asks the sources that report to `folder` to end."""
    create_new(join(folder, _DRAIN), b"")


def reports(folder: str, *, unread: dict[str, str] | None = None) -> dict[str, Report]:
    """The newest report of each source, by process and source. What cannot be read is left out, and `unread` says of it why: another version wrote it, or not
    all of it is there."""
    found = {name: read_bytes(join(folder, name)) for name in list_files(folder) if name.endswith(".json")}
    known: dict[str, Report] = {}
    for name, content in found.items():
        try:
            if content:
                known[name] = msgspec.json.decode(content, type=Report)
        except msgspec.MsgspecError as error:
            if unread is not None:
                unread[name] = str(error)
    return known
