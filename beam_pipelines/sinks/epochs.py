"""Which start of a stream this is: numbers that only rise, each taken once. Loads no Beam.

    {state}/stream/epochs/000001.json    the first start
    {state}/stream/epochs/000002.json    the next: from now on the first may store nothing more
    {state}/stream/specs/{hash}.json     what starts run, one file for all that run the same

A start takes the next number by creating its file, which only one of all who try can do. Whoever holds a number looks, before it says that
something is stored for good, whether a higher one exists (`Fence`). What the older process stored before that lies where the newer one, which
lists the archive after it took its number, finds it; so between the two no message is lost, and no third state exists.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from beam_pipelines.errors import SinkError
from beam_pipelines.places import create_new, each, exists, join, list_files, read_bytes, write_bytes
from beam_pipelines.sinks.owners import Process, alive, this_process
from beam_pipelines.sinks.run import utc_now

if TYPE_CHECKING:
    from beam_pipelines.spec.load import LoadedSpec

_Kind = TypeVar("_Kind")
_TRIES = 20


class Ran(msgspec.Struct, frozen=True):
    """What a start runs: its `spec` as it was written, with parameters put in and secrets as references; and the final rows' `columns` as in `LoadedSpec`.

    Fields that the spec leaves out are left out here, so they mean what the version that reads this takes them for.
    """

    spec: dict[str, Any]
    columns: dict[str, str | None] = {}

    @classmethod
    def of(cls, loaded: LoadedSpec) -> Ran:
        return cls(loaded.spec.model_dump(mode="json", by_alias=True, exclude_unset=True), dict(loaded.columns))


class Start(msgspec.Struct, frozen=True):
    """Who took an epoch, and with which versions of its lookups (of one that was killed nothing else says it). `owner`: None in records of earlier versions.

    `ran` names the file that holds what it runs (`what_ran`), `versions` those of the programs at work; both are empty in records of earlier versions.
    """

    run_id: str
    started_at: str
    host: str
    pid: int
    lookups: dict[str, str] = {}
    owner: Process | None = None
    ran: str = ""
    versions: dict[str, str] = {}


def stream_folder(state: str) -> str:
    """Where a pipeline's stream keeps what must outlive its process."""
    return join(state, "stream")


def doors_folder(state: str) -> str:
    """Where rows of a stream that left otherwise than written or dead are listed."""
    return join(stream_folder(state), "doors")


def take_epoch(
    state: str,
    run_id: str,
    lookups: Mapping[str, str] | None = None,
    *,
    ran: Ran | None = None,
    versions: Mapping[str, str] | None = None,
) -> int:
    """The next epoch, now this process's; every earlier one is fenced. What it runs is written down before it is taken.

    Raises SinkError where other starts are always quicker, or the state folder refuses.
    """
    who = Start(run_id, utc_now(), socket.gethostname(), os.getpid(), dict(lookups or {}), this_process())
    mine = msgspec.json.encode(msgspec.structs.replace(who, ran="" if ran is None else keep_ran(state, ran), versions=dict(versions or {})))
    for _ in range(_TRIES):
        number = latest_epoch(state) + 1
        if create_new(_path(state, number), mine):
            return number
    raise SinkError(f"{_folder(state)}: {_TRIES} other starts came first.", hint="Start this stream once, not in a loop.")


def latest_epoch(state: str) -> int:
    """The highest epoch taken; 0 before the first start."""
    return max(epochs_in(_folder(state)), default=0)


def all_starts(state: str) -> dict[int, Start]:
    """All starts so far, by epoch."""
    return starts_of(state, range(1, latest_epoch(state) + 1))


def starts_of(state: str, epochs: Iterable[int]) -> dict[int, Start]:
    """The starts of these epochs, in order; without those that nobody took."""
    return read_by_epoch(_folder(state), epochs, Start)


def newest_start(state: str) -> tuple[int, Start] | None:
    """The highest epoch and who took it; None before the first start."""
    return next(iter(starts_of(state, [latest_epoch(state)]).items()), None)


def keep_ran(state: str, ran: Ran) -> str:
    """Writes it down, once for all who run the same; gives its name."""
    content = msgspec.json.encode(ran)
    name = hashlib.sha256(content).hexdigest()[:16]
    if not exists(_ran_path(state, name)):
        write_bytes(_ran_path(state, name), content)
    return name


def run_another(state: str, epoch: int, *, ran: str, lookups: Mapping[str, str], versions: Mapping[str, str]) -> None:
    """Writes down what a start runs from now on, where a service goes on with it under another spec; `ran` as in `Start`."""
    start = starts_of(state, [epoch])[epoch]
    changed = msgspec.structs.replace(start, ran=ran, lookups=dict(lookups), versions=dict(versions))
    write_bytes(_path(state, epoch), msgspec.json.encode(changed))


def what_ran(state: str, start: Start) -> Ran | None:
    """What a start runs; None where nobody has written it down, as versions before this did not."""
    content = read_bytes(_ran_path(state, start.ran)) if start.ran else None
    return msgspec.json.decode(content, type=Ran) if content else None


def handed_in(state: str, run_id: str) -> str:
    """Where it is written down that a service runs this run, whose launcher may be gone."""
    return join(state, "dataflow", f"{run_id}.json")


def runs_here(state: str, start: Start) -> bool | None:
    """Whether the process of a start runs; None where that cannot be seen from here: it ran on another machine, or a service runs it."""
    return None if exists(handed_in(state, start.run_id)) or start.owner is None else alive(start.owner)


class _Page(msgspec.Struct, frozen=True):
    url: str = ""


def job_page(state: str, run_id: str) -> str:
    """The page of the job that a service runs this run in; "" where there is none, or it is not known."""
    content = read_bytes(handed_in(state, run_id))
    return msgspec.json.decode(content, type=_Page).url if content else ""


@dataclass(frozen=True)
class Fence:
    """Raises SinkError once a later start has taken the stream over. Picklable; one look at one file per call."""

    state: str
    epoch: int

    def __call__(self) -> None:
        newer = _path(self.state, self.epoch + 1)
        if not exists(newer):
            return
        content = read_bytes(newer)
        who = msgspec.json.decode(content, type=Start) if content else None
        by = f"run {who.run_id}, process {who.pid} on {who.host}, since {who.started_at}" if who else "another start"
        raise SinkError(
            f"{self.state}: this stream was taken over by a later start ({by}); this process is epoch {self.epoch} and stores nothing more.",
            hint="Nothing is lost: what it had not stored goes to the later one. Run one stream per state folder.",
        )


def _ran_path(state: str, name: str) -> str:
    return join(stream_folder(state), "specs", f"{name}.json")


def _folder(state: str) -> str:
    return join(stream_folder(state), "epochs")


def _path(state: str, number: int) -> str:
    return path_of_epoch(_folder(state), number)


def path_of_epoch(folder: str, epoch: int) -> str:
    """The file of a start, in a folder that has one of each."""
    return join(folder, f"{epoch:06d}.json")


def epochs_in(folder: str) -> list[int]:
    """The epochs of which such a folder has a file."""
    return [int(name[:-5]) for name in list_files(folder) if name.endswith(".json") and name[:-5].isdigit()]


def read_by_epoch(folder: str, epochs: Iterable[int], kind: type[_Kind]) -> dict[int, _Kind]:
    """What such a folder says of these epochs, in order; without those of which it has no file."""

    def read(epoch: int) -> tuple[int, bytes | None]:
        return epoch, read_bytes(path_of_epoch(folder, epoch))

    found = each(folder, read, [(epoch,) for epoch in epochs])
    return dict(sorted((epoch, msgspec.json.decode(content, type=kind)) for epoch, content in found if content))
