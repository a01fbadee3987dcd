"""Compaction: many small files of a folder become few large ones while one process writes and others read.

    files of bundles ─▶ enough of them: one .1 ─▶ enough of those: one .2 ─▶ …          whatever is left in a quiet folder ─▶ one .2

How many are enough, by level, bounds the files of a folder whatever the rate: `fan_in` (32, 16) leaves at most 31 + 15 after a pass.

Safe at every moment, because of the order of three steps. A merged file is made durable under a hidden name; then it gets its name, which is one act,
and names the files it replaces; a minute later, in another pass, those are deleted. So whoever lists a folder sees each row in the old files, the new
one, or both, and readers take a row once. After a crash between two steps the next pass goes on: a merged file still says what it replaces. Only
files that a durable file replaces are ever deleted.

Where readers see fewer rows than lie in the files, a quiet folder is *settled* instead (`Settles`): written anew with what they see in files of its own.

One process at a time merges in a folder: an advisory lock on it. Without it (other machines, URLs) two would merge the same files: each result names the
same files as replaced, nothing is lost, and a row that is stored twice is read once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol

import pyarrow as pa

from beam_pipelines.arrow.concat import coalesce
from beam_pipelines.formats.named_files import Named, again, named, unfinished, unreplaced
from beam_pipelines.formats.reader import Broken
from beam_pipelines.places import delete, join, list_files, locked, size, stamp

GRACE_S = 60.0
QUIET_S = 3600.0
_QUIET_LEVEL = 2
SETTLED_LEVEL = 9
"""Of the files of settled folders: they are not merged, only settled anew."""
_MOST = 512
GROUP_ROWS, _GROUP_BYTES = 131_072, 32 << 20
_damaged: set[str] = set()  # files of this process's passes that could not be read: merging leaves them to readers, who report them


class Step(NamedTuple):
    """One durable act of a compaction. `merged`: a file that got its name; `settled`: the last one of a settled folder; `deleted`: one that was replaced;
    `swept`: one never finished."""

    act: Literal["merged", "settled", "deleted", "swept"]
    path: str


class Merge(NamedTuple):
    """A file to write: `batches` of the files of `like`'s kind. `replaces`, and `more` notes by key, are complete after the last batch."""

    folder: str
    like: str
    batches: Iterator[pa.RecordBatch]
    replaces: Sequence[str]
    epoch: int
    level: int
    now: Callable[[], float]
    more: Mapping[bytes, bytes] = {}  # nobody writes into it


class Settle(NamedTuple):
    """A folder to settle: none of its `live` files is younger than `quiet_s` seconds; 0: whoever calls wants it now."""

    folder: str
    live: Sequence[Named]
    epoch: int
    now: Callable[[], float]
    quiet_s: float


class Settles(Protocol):
    """Writes the live files of quiet folders anew: rows that readers see apart from others."""

    def __call__(self, folder: Settle) -> str | None:
        """The path that says so; None where it does not."""

    def unsettled(self, live: Sequence[Named]) -> bool:
        """Whether it may yet do so with these files of a quiet folder, in another pass."""


def _all(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


@dataclass(frozen=True)
class Files:
    """What a compaction must know of a kind of files.

    `replaces` gives the names of those a merged file replaces, `alike` a word that files share if they may be merged (None: cannot be read),
    `read` a file's rows, `write` writes a merged file and gives its path; all but the last raise FileNotFoundError. `fan_in` says by level how many live
    files are merged at least (all there are, up to `_MOST`), the last entry also for all higher levels; `top` is the highest level. Files of
    `full_bytes` are not merged again. `fresh` gives, for each merge, what drops rows that came before. `swept` lists what earlier epochs left unfinished.
    `settling`: where rows that readers see are to lie apart from others in quiet folders.
    """

    replaces: Callable[[str], Sequence[str]]
    alike: Callable[[str], str | None]
    read: Callable[[str], Iterator[pa.RecordBatch | Broken]]
    write: Callable[[Merge], str]
    fan_in: Sequence[int]
    top: int | None = None
    full_bytes: int | None = None
    fresh: Callable[[], Callable[[pa.RecordBatch], pa.RecordBatch]] = lambda: _all
    swept: Callable[[str, int], list[str]] = unfinished
    settling: Settles | None = None

    def least(self, level: int) -> int:
        """How many live files of a level are merged at least."""
        return self.fan_in[min(level, len(self.fan_in) - 1)]


def compact_steps(
    folders: Iterable[str], files: Files, *, epoch: int = 0, now: Callable[[], float] = time.time, at_rest: MutableMapping[str, int] | None = None,
    quiet_s: float = QUIET_S,
) -> Generator[Step, None, None]:  # fmt: skip
    """One pass over the folders, step by step: after each one the process may die.

    `now` gives seconds since 1970. A folder that got no file for `quiet_s` seconds is quiet: what is left there is merged, however little it is. `at_rest`, kept by the caller between calls, spares folders in which nothing has changed since there was nothing
    left to do. `epoch` is the caller's, by default the latest in each folder: what earlier epochs left unfinished is deleted.
    """
    known = {} if at_rest is None else at_rest
    for folder in folders:
        before = stamp(folder)
        if before is not None and known.get(folder) == before:
            continue
        with locked(folder, wait=False) as held, suppress(FileNotFoundError):  # where locks do not reach, another may be quicker
            if held:
                yield from _folder(folder, files, epoch, now, quiet_s)
                if before is not None and _rests(folder, files, now(), quiet_s):
                    known[folder] = before


class Lying(NamedTuple):
    """A live file, or one that a merge would make: its level, bytes, and the word that files share if they may be merged."""

    level: int
    bytes: int
    word: str


def merged_all(live: Sequence[Lying], files: Files) -> list[Lying]:
    """What passes over a quiet folder of these `live` files leave. Sizes are sums: that files compress better together is not known before."""
    lying, before = list(live), -1
    while before != len(lying):
        before, level = len(lying), 0
        while any(file.level >= level for file in lying):
            while group := _first(lying, files, files.least(level), range(level, level + 1)):
                lying = _instead(lying, group, level + 1 if files.top is None else min(level + 1, files.top))
            level += 1
        if group := _first(lying, files, 2, range(_QUIET_LEVEL)):
            lying = _instead(lying, group, _QUIET_LEVEL)
    return lying


def _first(lying: Sequence[Lying], files: Files, least: int, levels: range) -> list[Lying]:
    """The first `least` files or more of these levels that a pass would merge, as many as fit; [] where there are not so many."""
    small = [f for f in lying if f.level in levels and f.level < SETTLED_LEVEL and (files.full_bytes is None or f.bytes < files.full_bytes)]
    for word in sorted({f.word for f in small}):
        group = [f for f in small if f.word == word]
        if len(group) >= least:
            sums = accumulate(f.bytes for f in group[:_MOST])
            full = next((i for i, total in enumerate(sums) if i and files.full_bytes is not None and total >= files.full_bytes), _MOST)
            return group[: min(full + 1, _MOST)]
    return []


def _instead(lying: Sequence[Lying], group: Sequence[Lying], level: int) -> list[Lying]:
    left = Counter(lying) - Counter(group)
    return [*left.elements(), Lying(level, sum(f.bytes for f in group), group[0].word)]


def _folder(folder: str, files: Files, epoch: int, now: Callable[[], float], quiet_s: float) -> Iterator[Step]:
    epoch = max([epoch, *(file.epoch for file in named(folder))])
    for path in files.swept(folder, epoch):
        delete(path)
        yield Step("swept", path)
    for path in _deletable(folder, files, now()):
        delete(path)
        yield Step("deleted", path)
    level = 0
    while any(file.level >= level for file in named(folder)):
        while group := _due(folder, files, level):
            up = level + 1 if files.top is None else min(level + 1, files.top)
            yield Step("merged", _merge(folder, files, group, up, epoch, now))
        level += 1
    if files.settling is not None:
        live = again(lambda: unreplaced(folder, files.replaces))
        settled = _settled(folder, live, files.settling, epoch, now, quiet_s)
        if settled is not None:
            yield Step("settled", settled)
        if settled is not None or files.settling.unsettled(live):  # in another pass: merged now, it would be written twice
            return
    for group in _quiet(folder, files, now(), quiet_s):
        yield Step("merged", _merge(folder, files, group, _QUIET_LEVEL, epoch, now))


def _settled(folder: str, live: Sequence[Named], settle: Settles, epoch: int, now: Callable[[], float], quiet_s: float) -> str | None:
    if not live or (quiet_s and any(now() - file.made_at < quiet_s for file in live)):
        return None
    return settle(Settle(folder, live, epoch, now, quiet_s))


def _deletable(folder: str, files: Files, now: float) -> list[str]:
    """Files that were replaced long enough ago, oldest merge first."""
    there = named(folder)
    paths = {file.path for file in there}
    old = sorted((file for file in there if file.level and now - file.made_at >= GRACE_S), key=lambda file: file.made_at)
    return [path for path in dict.fromkeys(join(folder, name) for file in old for name in files.replaces(file.path)) if path in paths]


def _due(folder: str, files: Files, level: int) -> list[Named]:
    """Live files of a level to merge, if there are enough; [] else."""
    found, least = _mergeable(folder, files, level, level), files.least(level)
    return next((_fitting(group, files) for group in _alike(found, files) if len(group) >= least), []) if len(found) >= least else []


def _quiet(folder: str, files: Files, now: float, quiet_s: float) -> list[list[Named]]:
    """What is left of small files in a folder that gets none any more."""
    small = _mergeable(folder, files, 0, _QUIET_LEVEL - 1)
    quiet = all(now - file.made_at >= quiet_s for file in small)
    return [_fitting(group, files) for group in _alike(small, files) if len(group) > 1] if quiet else []


def _mergeable(folder: str, files: Files, lowest: int, highest: int) -> list[Named]:
    live = again(lambda: unreplaced(folder, files.replaces))
    highest = min(highest, SETTLED_LEVEL - 1)
    return [file for file in live if lowest <= file.level <= highest and file.path not in _damaged and not _full(file, files)]


def _full(file: Named, files: Files) -> bool:
    return files.full_bytes is not None and _size(file.path) >= files.full_bytes


@lru_cache(16_384)  # a name is never used for another content
def _size(path: str) -> int:
    return size([path])


def _fitting(group: list[Named], files: Files) -> list[Named]:
    """The first files of a group, at least two, that together are not much more than a full one."""
    taken, total = group[:_MOST], 0
    for number, file in enumerate(taken):
        total += _size(file.path) if files.full_bytes is not None else 0
        if number and files.full_bytes is not None and total >= files.full_bytes:
            return taken[: number + 1]
    return taken


def _alike(found: Sequence[Named], files: Files) -> list[list[Named]]:
    """Files that may be merged, by kind."""
    words = ((files.alike(file.path), file) for file in found)
    readable = sorted(((word, file) for word, file in words if word is not None), key=itemgetter(0))
    return [[file for _, file in group] for _, group in groupby(readable, key=itemgetter(0))]


def _rests(folder: str, files: Files, now: float, quiet_s: float) -> bool:
    """Whether nothing is left to do, nor will be before another file comes."""
    there = named(folder)
    live = unreplaced(folder, files.replaces)
    old = all(now - file.made_at >= quiet_s for file in there)
    return (
        old
        and len(live) == len(there)
        and not (files.settling is not None and files.settling.unsettled(live))
        and not _quiet(folder, files, now, quiet_s)
    )


def _merge(folder: str, files: Files, group: Sequence[Named], level: int, epoch: int, now: Callable[[], float]) -> str:
    there = frozenset(list_files(folder))
    replaces: list[str] = []
    batches = grouped(_rows(files, group, replaces, there))
    return files.write(Merge(folder, group[0].path, batches, replaces, epoch, level, now))


def grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that become row groups of a merged file."""
    return coalesce(batches, target_rows=GROUP_ROWS, target_bytes=_GROUP_BYTES)


def _rows(files: Files, group: Sequence[Named], replaces: list[str], there: frozenset[str]) -> Iterator[pa.RecordBatch]:
    """The rows of all files. The names of files read whole go to `replaces`, with those they replace that are still `there`: so it does not
    matter in which order files are deleted."""
    fresh = files.fresh()
    for file in group:
        whole = True
        with suppress(FileNotFoundError):  # where locks do not reach: merged and deleted by another
            for piece in files.read(file.path):
                if isinstance(piece, Broken):
                    whole = False
                    _damaged.add(file.path)
                    continue
                rows = fresh(piece)
                if rows.num_rows:
                    yield rows
            if whole:
                replaces.append(file.path.rpartition("/")[2])
                replaces += [name for name in files.replaces(file.path) if name in there]
