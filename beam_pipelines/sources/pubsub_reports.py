"""A stream whose source runs in another process than the one that started it: what the two tell one another, by files in the state folder.

    {state}/stream/control/000007/drain                  the starter: end
    {state}/stream/control/000007/{process}-0.json       the source: how it stands, what this process has counted, at which watermark it ended

For people and for the end of the job; that nothing is lost does not depend on it.
"""

from __future__ import annotations

import logging
import threading

import msgspec

from beam_pipelines import draining, metrics
from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.places import create_new, exists, join, list_files, read_bytes, write_bytes
from beam_pipelines.sources.pubsub_puller import Puller
from beam_pipelines.sources.pubsub_pulling import PullStatus

_EVERY_S = 0.5
_DRAIN = "drain"
_log = logging.getLogger(__name__)


class Report(msgspec.Struct, frozen=True):
    """How one source stands. `ended_micros`: the watermark at which it ended; None while it runs."""

    number: int
    status: PullStatus
    counts: dict[str, int]
    ended_micros: int | None = None


def report(folder: str, process: str, puller: Puller) -> None:
    """Says from now on, until `puller` is closed, how it stands, and asks it to end when that is said."""
    path = join(folder, f"{process}-{puller.settings.number}.json")
    threading.Thread(target=_reports, args=(folder, path, puller), name="pubsub-reports", daemon=True).start()


def _reports(folder: str, path: str, puller: Puller) -> None:
    pause = threading.Event()
    while not puller.closed:
        try:
            if not draining.requested() and exists(join(folder, _DRAIN)):
                draining.request()
            ended = draining.ended_at() if puller.ended else None
            write_bytes(path, msgspec.json.encode(Report(puller.settings.number, puller.status(), metrics.snapshot(), ended)))
        except (BeamPipelinesError, OSError) as error:  # nobody hears of this source for a moment; its work goes on
            _log.warning("%s: %s", path, error)
        pause.wait(_EVERY_S)


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
