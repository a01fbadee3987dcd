"""What retention has deleted: on record before it is gone, so that "where are my rows" has an answer. Loads no Beam.

    {state}/retention.json     per layer and call: rows, files, bytes, up to when they had arrived

    part.parquet ─▶ .part.parquet.retired ─▶ on record, all of a call at once ─▶ deleted
                    no reader sees it        the account, and `pending`: the names

Killed before the record, the next call gives the files back their names and decides anew; killed after it, the next call deletes what is pending. So
each row that is gone is on record once, and each that is on record is gone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.errors import RunError
from beam_pipelines.formats.archive_files import replaced_by as replaced_in_archive
from beam_pipelines.formats.named_files import again, unreplaced
from beam_pipelines.places import (
    delete,
    is_local,
    join,
    list_files,
    locked,
    move,
    open_new,
    parent,
    prune_folders,
    publish,
    read_bytes,
    write_bytes,
)
from beam_pipelines.sinks.speed_files import replaces as replaces_in_speed

Of = Literal["archive", "rows", "panes", "doors", "dead letters", "runs", "letters of failed runs"]
_RETIRED = ".retired"
_MOST_KEPT = 1_000
_OF_RUNS = frozenset({"runs", "letters of failed runs"})
_OF_MESSAGES = frozenset({"archive", "rows", "doors", "dead letters"})


class Deleted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one call has deleted of one layer. All of it had arrived (panes: ended; runs and their letters: started) before `until`, in microseconds since 1970.

    `stream`: of what a stream stores. `rows` are counted as often as they were stored.
    """

    layer: str
    of: Of
    rows: int
    files: int
    bytes: int
    until: int
    at: str
    stream: bool = True


class Intent(msgspec.Struct, frozen=True):
    """A commit that is to delete batch letters: under which `run_id`, on which commit (`base`) it stands, and what is on record if it was decided."""

    run_id: str
    base: int
    deleted: Deleted


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that was ever deleted, the earliest first; earlier calls than the newest thousand are summed up by layer."""

    deleted: tuple[Deleted, ...] = ()
    pending: tuple[str, ...] = ()
    intent: Intent | None = None


class Doomed(NamedTuple):
    """A file to delete; those that it has replaced go first. `top`: the folder that stays when it is empty."""

    layer: str
    of: Of
    path: str
    top: str
    rows: int
    bytes: int
    until: int


class Step(NamedTuple):
    """One durable act. `busy`: another process works in the folder, whose files stay this time."""

    act: Literal["retired", "busy", "recorded", "deleted", "done"]
    path: str


def of_a_stream(of: Of) -> bool:
    """Whether it is what a stream stores."""
    return of not in _OF_RUNS


def read_account(state: str) -> Account:
    """What has been deleted so far."""
    content = read_bytes(_path(state))
    return Account() if content is None else msgspec.json.decode(content, type=Account)


def write_account(state: str, account: Account) -> None:
    """Writes the account; when this returns it survives a power failure. Raises SinkError where the state folder refuses."""
    content = msgspec.json.format(msgspec.json.encode(replace(account, deleted=_summed(account.deleted))), indent=2)
    if not is_local(state):
        write_bytes(_path(state), content)
        return
    made = join(state, f".retention-{secrets.token_hex(8)}.inprogress")
    with open_new(made) as out:
        out.write(content)
    publish(made, _path(state))


def complete_since(state: str) -> int | None:
    """Since which arrival (microseconds) everything that a stream has read and stored is still there; None where nothing of it was deleted."""
    return max((d.until for d in read_account(state).deleted if d.stream and d.of in _OF_MESSAGES), default=None)


def deleted_before(state: str, output: str, of: Of) -> int | None:
    """Before which moment (microseconds) all that was deleted of an output of a stream had arrived (panes: ended); None where nothing was."""
    return max((d.until for d in read_account(state).deleted if d.stream and d.of == of and d.layer == output), default=None)


def expect_archived(state: str, since: int | None) -> None:
    """Raises RunError where a run needs messages that arrived at `since` (microseconds; None: all there ever were) and retention has deleted some of
    these: it would replace good rows with what is left."""
    until = max((d.until for d in read_account(state).deleted if d.of == "archive"), default=None)
    if until is not None and (since is None or since < until):
        needs = "all messages" if since is None else f"messages since {show_instant(since)}"
        raise RunError(
            f"archive: the run needs {needs}; retention has deleted what arrived before {show_instant(until)} ({_path(state)}).",
            hint="Give a range (--from) that begins later; what was committed before stays as it is.",
        )


def _summed(deleted: Sequence[Deleted]) -> tuple[Deleted, ...]:
    old, new = deleted[: max(0, len(deleted) - _MOST_KEPT)], deleted[max(0, len(deleted) - _MOST_KEPT) :]
    by_layer = sorted(old, key=lambda d: (d.layer, d.of, d.stream))
    return (*(_sum(list(group)) for _, group in groupby(by_layer, key=lambda d: (d.layer, d.of, d.stream))), *new)


def _sum(group: Sequence[Deleted]) -> Deleted:
    rows, files, size = (sum(getattr(d, name) for d in group) for name in ("rows", "files", "bytes"))
    return replace(group[-1], rows=rows, files=files, bytes=size, until=max(d.until for d in group), at=max(d.at for d in group))


def finish_deletions(state: str, folders: Iterable[str]) -> Iterator[Step]:
    """Brings to its end what a call left that died: what is on record is deleted, other files get back their names."""
    account = read_account(state)
    for folder in folders:
        for name in list_files(folder):
            path = join(folder, name)
            if name.endswith(_RETIRED) and path not in account.pending:
                move(path, join(folder, name[1:].removesuffix(_RETIRED)))
                yield Step("done", path)
    for path in account.pending:
        delete(path)
        prune_folders(parent(path), parent(parent(path)))
        yield Step("deleted", path)
    if account.pending:
        write_account(state, replace(account, pending=()))
        yield Step("done", state)


def delete_steps(state: str, doomed: Sequence[Doomed], *, at: str) -> Iterator[Step]:
    """Deletes files that are still live, step by step: after each one the process may die. `at`: now, as ISO 8601.

    Raises SinkError where the state folder refuses; then nothing is deleted.
    """
    gone: list[tuple[str, Doomed]] = []
    for folder, group in groupby(doomed, key=lambda d: parent(d.path)):
        with locked(folder, wait=False) as held:
            if not held:
                yield Step("busy", folder)
                continue
            for one in _live(folder, list(group)):
                for old in _replaces(one.of)(one.path):  # first: without the file that names them they would count again
                    delete(join(folder, old))
                retired = join(folder, f".{one.path.rpartition('/')[2]}{_RETIRED}")
                move(one.path, retired)
                gone.append((retired, one))
                yield Step("retired", one.path)
    if not gone:
        return
    account = read_account(state)
    paths = tuple(path for path, _ in gone)
    write_account(
        state, replace(account, deleted=(*account.deleted, *_accounts([one for _, one in gone], at)), pending=(*account.pending, *paths))
    )
    yield Step("recorded", state)
    for path, one in gone:
        delete(path)
        prune_folders(parent(path), one.top)
        yield Step("deleted", one.path)
    write_account(state, replace(read_account(state), pending=()))
    yield Step("done", state)


def _live(folder: str, group: Sequence[Doomed]) -> list[Doomed]:
    """Those that nobody has merged or deleted since they were doomed, seen while the folder is ours."""
    if group[0].of in _OF_RUNS:
        there = {join(folder, name) for name in list_files(folder)}
    else:
        there = {file.path for file in again(lambda: unreplaced(folder, _replaces(group[0].of)))}
    return [one for one in group if one.path in there]


def _replaces(of: Of) -> Callable[[str], Sequence[str]]:
    """What gives the names of the files that a file replaces."""
    return _nothing if of in _OF_RUNS else replaced_in_archive if of == "archive" else replaces_in_speed


def _nothing(path: str) -> Sequence[str]:
    return ()


def _accounts(doomed: Sequence[Doomed], at: str) -> Iterator[Deleted]:
    ordered = sorted(doomed, key=lambda d: (d.layer, d.of))
    for (layer, of), group in groupby(ordered, key=lambda d: (d.layer, d.of)):
        found = list(group)
        rows, size, until = sum(d.rows for d in found), sum(d.bytes for d in found), max(d.until for d in found)
        yield Deleted(layer, of, rows, len(found), size, until, at, stream=of_a_stream(of))


def _path(state: str) -> str:
    return join(state, "retention.json")
