"""Which of the files that a path, a glob or a directory names `init` looks at, and which of them its spec will read."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from beam_pipelines.errors import SourceError, SpecError

ENDINGS = {"csv": "csv", "tsv": "csv", "psv": "csv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet", "pq": "parquet",
           "avro": "avro", "orc": "orc"}  # fmt: skip
"""Endings of files of data, and their formats."""
_MOST = 10_000
_ALIKE = {"ndjson": "jsonl", "pq": "parquet"}


@dataclass(frozen=True)
class Choice:
    """The file to look at, the patterns that read it and the files of its kind, how many these are, and how many there are of other kinds."""

    path: str
    patterns: tuple[str, ...]
    alike: int = 1
    others: Mapping[str, int] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What a user must know of the files that were not looked at."""
        found = [f"It is the largest of {self.alike:,} files, which are taken to be alike."] if self.alike > 1 else []
        if self.others:
            listed = ", ".join(f"{n:,} {kind}" for kind, n in self.others.items())
            found.append(
                f"Files of other kinds lie there too ({listed}): the proposal fits none of them and reads {', '.join(self.patterns)}."
            )
        return found


def choose(pattern: str) -> Choice:
    """The largest file of the kind that most of the bytes are of; a directory that holds several kinds is narrowed to that one.

    Raises SourceError where there is no file, SpecError for a URL.
    """
    if "://" in pattern:
        raise SpecError(
            f"--from {pattern}: init looks at local files.", hint="Copy a file here and look at that; then change `files` in the spec."
        )
    if os.path.isfile(pattern):
        return Choice(pattern, (glob.escape(pattern),))
    files = _files(pattern)
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
    patterns = _narrowed(pattern, mine) if directory and others else (pattern.rstrip("/") + "/",) if directory else (pattern,)
    return Choice(max(mine, key=os.path.getsize), patterns, len(mine), dict(others))


def _files(pattern: str) -> list[str]:
    """The files that a run would read, hidden ones left out."""
    found = glob.glob(os.path.join(glob.escape(pattern), "**"), recursive=True) if os.path.isdir(pattern) else glob.glob(pattern)
    return [p for p in sorted(found)[:_MOST] if os.path.isfile(p) and not os.path.basename(p).startswith((".", "_"))]


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
    endings = dict.fromkeys(os.path.basename(p)[len(os.path.basename(p)) - len(_suffix(p)) :] for p in files)
    return tuple(os.path.join(glob.escape(folder), f"{deep}.{ending}") for ending in endings)
