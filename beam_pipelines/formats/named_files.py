"""Files of a folder that are never changed, only merged and deleted while others read: their names, how one comes to be, which are needed.

    000001-{id}.parquet      a bundle's rows
    000001-{id}.1.parquet    merged from many of these
    000001-{id}.2.parquet    merged from many of those
    000001-{id}.9.parquet    of a settled folder
    .000001-{id}.inprogress  not finished, and after a crash never will be

The six digits are the epoch of the process that wrote the file; `{id}` begins with the time at which it got its name, in milliseconds. A merged
file names those it *replaces*: it holds all their rows, if need be with other files that it names, and they are deleted later (`compaction`).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple, TypeVar

from beam_pipelines.places import delete, join, list_files, open_new, publish, refused

_NAME = re.compile(r"(\d{6,})-([0-9a-f]{32})(?:\.(\d+))?\.parquet")
_Found = TypeVar("_Found")
_UNFINISHED = re.compile(r"\.(\d{6,})-[0-9a-f]{20}\.inprogress")


class Named(NamedTuple):
    """What a file's name says. `level` 0: written by a bundle; from 1: merged. `made_at` is in seconds since 1970."""

    path: str
    epoch: int
    made_at: float
    level: int


def named(folder: str) -> list[Named]:
    """The finished files of a folder, in order of epoch and time."""
    found = ((name, _NAME.fullmatch(name)) for name in list_files(folder))
    return [Named(join(folder, name), int(m[1]), int(m[2][:12], 16) / 1000, int(m[3] or 0)) for name, m in found if m]


def new_name(epoch: int, *, level: int = 0, now: Callable[[], float] = time.time) -> str:
    """The name of a file that is finished now; no other file has it."""
    return f"{epoch:06d}-{int(now() * 1000):012x}{secrets.token_hex(10)}{f'.{level}' if level else ''}.parquet"


def write_new(
    folder: str, write: Callable[[BinaryIO], None], *, epoch: int, level: int, now: Callable[[], float] = time.time
) -> str:  # fmt: skip
    """The path of a new file with what `write` puts into it. When this returns, the file survives a power failure.

    Raises SinkError where the place refuses; then, and where `write` raises, there is no file.
    """
    made = join(folder, f".{epoch:06d}-{secrets.token_hex(10)}.inprogress")
    try:
        with open_new(made) as out:
            write(out)
        path = join(folder, new_name(epoch, level=level, now=now))
        publish(made, path)
    except OSError as error:
        _discard(made)
        raise refused(folder, error) from error
    except BaseException:
        _discard(made)
        raise
    return path


def _discard(made: str) -> None:
    try:
        delete(made)
    except OSError:
        return  # the reason is on its way up; the compactor of a later epoch deletes what is left


def unfinished(folder: str, before_epoch: int, *, pattern: re.Pattern[str] = _UNFINISHED) -> list[str]:
    """Files that processes of earlier epochs began and, being dead or fenced, need not finish. The first group of `pattern` is the epoch."""
    found = ((name, pattern.fullmatch(name)) for name in list_files(folder))
    return [join(folder, name) for name, m in found if m and int(m[1]) < before_epoch]


def unreplaced(folder: str, replaces: Callable[[str], Sequence[str]]) -> list[Named]:
    """The files of a folder that hold each of its rows, without those that a merged file `replaces`.

    Raises FileNotFoundError where a file went while we looked: look again.
    """
    files = named(folder)
    replaced = {join(folder, name) for file in files if file.level for name in replaces(file.path)}
    return [file for file in files if file.path not in replaced]


def again(look: Callable[[], _Found], *, tries: int = 20) -> _Found:
    """What `look` finds once no file goes while it looks: a compactor deletes what it has merged."""
    for _ in range(tries - 1):
        try:
            return look()
        except FileNotFoundError:
            continue
    return look()
