"""A stream whose work is done by other processes, seen from the one that started it: as if its sources were here."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from beam_pipelines import draining, metrics
from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.places import delete_tree, join, list_folders
from beam_pipelines.sinks.epochs import stream_folder
from beam_pipelines.sources import pubsub
from beam_pipelines.sources.pubsub_reports import Report, Together, ask_to_end, reports, say_all_ended

_LOG = logging.getLogger(__name__)


def control_folder(state: str, epoch: int) -> str:
    """Where the start with this epoch and its sources talk."""
    return join(stream_folder(state), "control", f"{epoch:06d}")


def forget_earlier(state: str, epoch: int) -> None:
    """Deletes what earlier starts and their sources have told one another."""
    top = join(stream_folder(state), "control")
    for name in list_folders(top):
        if name.isdigit() and int(name) < epoch:
            delete_tree(join(top, name))


@dataclass
class Elsewhere:
    """Hears of `sources` sources, each of as many `elements` (see `ReadPubsub`), by `folder`, and asks them to end when this process is asked to. To be called now and then."""

    folder: str
    sources: int
    elements: int = 1
    _asked: bool = False
    _ended_at: int | None = None
    _unread: set[str] = field(default_factory=set)

    def __call__(self) -> None:
        try:
            if draining.requested() and not self._asked:
                ask_to_end(self.folder)
                self._asked = True
            found = self._readable()
            if draining.ended_at() is None:
                self._end(found.values())
        except (BeamPipelinesError, OSError) as error:
            _LOG.warning("%s: %s", self.folder, error)
            return
        pubsub.heard(tuple(report.status for report in found.values()))
        metrics.heard({name.rpartition("-")[0]: report.counts for name, report in found.items()})

    def _end(self, told: Collection[Report]) -> None:
        """Ends in two steps: it is known where all have ended, and then all are over. Of one process both are the same."""
        if any(report.ended_micros is None for report in told) or not Together(self.folder, self.sources, self.elements).complete(told):
            return
        if self._ended_at is None:
            self._ended_at = say_all_ended(self.folder, told)
        if all(report.over for report in told):
            draining.end(self._ended_at)

    def _readable(self) -> dict[str, Report]:
        """The reports that can be read; of each other one a line, once."""
        unread: dict[str, str] = {}
        found = reports(self.folder, unread=unread)
        for name in unread.keys() - self._unread:
            _LOG.warning("%s: is no report that this version reads: %s", join(self.folder, name), unread[name])
        self._unread |= unread.keys()
        return found
