"""Whether `--from` names a database; and which of the files that a path, a glob or a directory names `init` looks at, and which of them its spec will read."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from beam_pipelines.errors import SourceError, SpecError

ENDINGS = {"csv": "csv", "tsv": "csv", "psv": "csv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet", "pq": "parquet",
           "avro": "avro", "orc": "orc"}  # fmt: skip
"""Endings of files of data, and their formats."""
_MOST = 10_000
_SQLITE_FILE = b"SQLite format 3\0"
_ALIKE = {"ndjson": "jsonl", "pq": "parquet"}
_OUR_NAME = re.compile(
    r"part-[0-9a-f]{32}\.(parquet|csv|jsonl)(\.gz)?|\d{6,}-[0-9a-f]{32}(\.\d+)?\.parquet"
)  # of a batch; of a stream and its archive
_OUR_STATE = re.compile(r"(.+)/(?:commits/\d{8}\.json|stream/epochs/\d{6}\.json)")


@dataclass(frozen=True)
class Choice:
    """The file to look at, the patterns that read it and the files of its kind, how many these are, how many there are of other kinds, and how many that
    pipelines wrote: `ours` were left out, or there were no others (`only_ours`)."""

    path: str
    patterns: tuple[str, ...]
    alike: int = 1
    others: Mapping[str, int] = field(default_factory=dict)
    ours: int = 0
    only_ours: bool = False

    def sentences(self) -> list[str]:
        """What a user must know of the files that were not looked at."""
        found = [f"It is the largest of {self.alike:,} files, which are taken to be alike."] if self.alike > 1 else []
        if self.others:
            listed = ", ".join(f"{n:,} {kind}" for kind, n in self.others.items())
            found.append(
                f"Files of other kinds lie there too ({listed}): the proposal fits none of them and reads {', '.join(self.patterns)}."
            )
        if self.only_ours:
            found.append("What lies there was written by pipelines: the proposal reads their output.")
        elif self.ours:
            found.append(
                f"Left out: {self.ours:,} files that pipelines wrote (outputs, state, archive). The proposal reads {', '.join(self.patterns)}."
            )
        return found


def is_database(source: str) -> bool:
    """Whether `--from` names a database: a URL of one, or a file of SQLite."""
    if source.startswith(("postgresql:", "postgres:", "sqlite:")):
        return True
    if not os.path.isfile(source):
        return False
    with open(source, "rb") as stream:
        return stream.read(len(_SQLITE_FILE)) == _SQLITE_FILE


def seen_from(path: str, folder: str) -> str:
    """The path relative to the folder of a spec; a directory keeps its slash."""
    found = path if os.path.isabs(path) else os.path.relpath(path, folder)
    return found + ("/" if path.endswith("/") and not found.endswith("/") else "")


def choose(pattern: str, *, spec_folder: str = ".") -> Choice:
    """The largest file of the kind that most of the bytes are of; a directory that holds several kinds is narrowed to that one. What pipelines wrote there
    is left out, and so is what the proposed one will write: into folders beside its spec, in `spec_folder`.

    Raises SourceError where there is no file, SpecError for a URL.
    """
    if "://" in pattern:
        raise SpecError(
            f"--from {pattern}: init looks at local files.", hint="Copy a file here and look at that; then change `files` in the spec."
        )
    if os.path.isfile(pattern):
        return Choice(pattern, (glob.escape(pattern),))
    every = _files(pattern)
    written = _written(every, pattern, spec_folder)
    files = [path for path in every if path not in written] or every
    left_out = written if len(files) < len(every) else set()
    if not files:
        raise SourceError(f"--from {pattern}: there is no such file.", hint="Give a path, a glob in quotes, or a directory.")
    sizes: Counter[str] = Counter()
    for path in files:
        sizes[_kind(path)] += os.path.getsize(path) + 1
    named = [kind for kind in sizes if kind.partition(".")[0] in ENDINGS] or list(sizes)
    kind = max(named, key=sizes.__getitem__)
    mine = [path for path in files if _kind(path) == kind]
    others = Counter(_shown(_kind(path)) for path in files if _kind(path) != kind)
    directory = os.path.isdir(pattern)
    patterns: tuple[str, ...] = (pattern.rstrip("/") + "/",) if directory else (pattern,)
    if left_out or (directory and _holds(pattern, spec_folder)):
        patterns = _around(pattern if directory else "", mine, left_out)
    elif directory and others:
        patterns = _narrowed(pattern, mine)
    return Choice(max(mine, key=os.path.getsize), patterns, len(mine), dict(others), len(written), only_ours=not left_out and bool(written))


def _files(pattern: str) -> list[str]:
    """The files that a run would read, hidden ones left out."""
    found = glob.glob(os.path.join(glob.escape(pattern), "**"), recursive=True) if os.path.isdir(pattern) else glob.glob(pattern)
    return [p for p in sorted(found)[:_MOST] if os.path.isfile(p) and not os.path.basename(p).startswith((".", "_"))]


def _written(files: Sequence[str], pattern: str, spec_folder: str) -> set[str]:
    """Those of the files that pipelines wrote, as far as their names or the states that lie there show it."""
    found = {
        path for path in files if _OUR_NAME.fullmatch(os.path.basename(path)) or any(part.endswith(".speed") for part in path.split("/"))
    }
    states = {state[1] for path in files if (state := _OUR_STATE.fullmatch(path))}
    tops = {spec_folder, *([pattern] if os.path.isdir(pattern) else ())}
    states |= {folder for top in tops for folder in glob.glob(os.path.join(glob.escape(top), ".beam_pipelines", "*"))}
    found |= {path for path in files if any(path.startswith(f"{state}/") for state in states)}
    outputs = _single_outputs(states)
    return found | {path for path in files if os.path.abspath(path) in outputs}


def _single_outputs(states: Iterable[str]) -> set[str]:
    """The outputs that are one file, by the commits of these states."""
    if not states:
        return set()
    from beam_pipelines.places import local
    from beam_pipelines.sinks.manifest import snapshots

    return {os.path.abspath(local(path)) for state in states for snapshot in snapshots(state).values() for path in snapshot.paths}


def _holds(folder: str, other: str) -> bool:
    above, below = os.path.realpath(folder), os.path.realpath(other)
    return os.path.commonpath([above, below]) == above


def _around(folder: str, files: Sequence[str], left_out: Collection[str]) -> tuple[str, ...]:
    """Patterns of the files that name none of those left out: all of an ending below a folder in `folder`, in a folder, or else each file."""
    top = os.path.join(folder, "") if folder else ""
    above = {path[:at] for path in left_out for at, letter in enumerate(path) if letter == "/"}
    names = [os.path.split(path) for path in left_out]
    beside = {(here, name[at:]) for here, name in names for at, letter in enumerate(name) if letter == "."}
    alike: dict[tuple[str, str, str], list[str]] = {}
    for path in files:
        first = os.path.join(top, path[len(top) :].partition("/")[0])
        alike.setdefault((first, os.path.dirname(path), _ending(path)), []).append(path)
    found: dict[str, None] = {}
    for (first, here, ending), paths in alike.items():
        if ending and folder and here != folder.rstrip("/") and first not in above:
            found[f"{glob.escape(first)}/**{ending}"] = None
        elif ending and (here, ending) not in beside:
            found[os.path.join(glob.escape(here), f"*{ending}")] = None
        else:
            found |= dict.fromkeys(map(glob.escape, paths))
    return tuple(found)


def _ending(path: str) -> str:
    """What files like this one end with, as it is written: `.CSV.gz`; without a word that names a format, what follows the last dot; "" where there is none."""
    name, suffix = os.path.basename(path), _suffix(path)
    return name[-len(suffix) - 1 :] if suffix else os.path.splitext(name)[1]


def _suffix(path: str) -> str:
    """What follows the name, from the word that names a format: `csv.gz`; "" where none does."""
    words = os.path.basename(path).lower().split(".")[1:]
    at = next((i for i in reversed(range(len(words))) if words[i] in ENDINGS), None)
    return "" if at is None else ".".join(words[at:])


def _kind(path: str) -> str:
    word = _suffix(path).partition(".")[0]
    return _ALIKE.get(word, word) or f"other.{os.path.splitext(path)[1].lower()}"


def _shown(kind: str) -> str:
    known, _, ending = kind.partition(".")
    return known if known in ENDINGS else ending or "without an ending"


def _narrowed(folder: str, files: Sequence[str]) -> tuple[str, ...]:
    """Globs of the files' endings below the folder."""
    deep = "**" if any(os.path.dirname(p) != folder.rstrip("/") for p in files) else "*"
    endings = dict.fromkeys(map(_ending, files))
    return (
        tuple(os.path.join(glob.escape(folder), f"{deep}{ending}") for ending in endings)
        if all(endings)
        else tuple(map(glob.escape, files))
    )
