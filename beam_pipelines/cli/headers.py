"""Headers of CSV files against the contract: a column that a file does not have is NULL in all its rows, which nobody should learn from
the results. Looks at the first local files only, and loads neither Arrow nor Beam."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import IO, cast

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.formats.encoding import MARK_BYTES, detect
from beam_pipelines.formats.options import CsvFormat
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import FileSource

_FILES = 20  # of each source
_LOOKED_AT = 10_000  # names of a folder
_HEAD_BYTES = 1 << 16
_LISTED = 12
_DELIMITERS = ",;\t|"


def header_notes(spec: PipelineSpec) -> list[str]:
    """One sentence for each header that lacks columns of the contract, at the first file that has it. Files that are not there or
    cannot be read are left to the run."""
    found: dict[tuple[str, ...], list[str]] = {}
    for source in spec.sources.batch:
        if not isinstance(source, FileSource) or not isinstance(source.format, CsvFormat) or not source.format.header:
            continue
        for path in islice(_local_files(source), _FILES):
            names = _names(path, source.format)
            if names and absent_columns(names, spec.contract):
                found.setdefault(names, []).append(path)
    return [header_note(names, spec.contract, where=_where(paths)) for names, paths in found.items()]


def absent_columns(names: Sequence[str], contract: Contract) -> dict[str, str]:
    """Columns of the contract that a file with these names does not have (those with a default may be left out), each with the nearest name that nothing else is read from."""
    wanted = {name: column.keys(name)[0] for name, column in contract.read.items() if column.default is None}
    free = {n.strip().lower(): n for n in names if n not in wanted.values()}
    found = {}
    for name, key in wanted.items():
        if key not in names:
            close = get_close_matches(key.strip().lower(), free, n=1, cutoff=0.6)
            found[name] = free[close[0]] if close else ""
    return found


def header_note(names: Sequence[str], contract: Contract, *, where: str) -> str:
    """A sentence about a header that lacks columns of the contract."""
    absent = absent_columns(names, contract)
    required = [n for n in absent if contract.columns[n].required]
    text = f"{where}: the header lacks {_listed(absent)} of the contract: NULL in every row"
    text += f"; {_listed(required)} {'are' if len(required) > 1 else 'is'} required, so every row is a dead letter." if required else "."
    near = [f"{close!r} for {name}" for name, close in absent.items() if close]
    text += f" Did you mean {', '.join(near[:_LISTED])}?" if near else ""
    other = next((c for c in _DELIMITERS if len(names) == 1 and c in names[0]), "")
    text += f" The header is one name with {other!r} in it: is that the delimiter?" if other else f" It has {_listed(names)}."
    return text


def _listed(names: Sequence[str] | dict[str, str]) -> str:
    shown = [n if re.fullmatch(r"\w[\w .'-]*", n) and n.isprintable() else repr(n) for n in islice(names, _LISTED)]
    return ", ".join(shown) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _where(paths: Sequence[str]) -> str:
    shown = os.path.relpath(paths[0])
    return shown if len(paths) == 1 else f"{shown} and {len(paths) - 1} more"


def _local_files(source: FileSource) -> Iterator[str]:
    for pattern in source.patterns:
        if "://" in pattern:
            continue
        found = _below(pattern) if os.path.isdir(pattern) else sorted(islice(glob.iglob(pattern), _LOOKED_AT))
        yield from (path for path in found if os.path.isfile(path))


def _below(folder: str) -> Iterator[str]:
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (os.path.join(top, f) for f in sorted(files) if not f.startswith("."))


def _names(path: str, fmt: CsvFormat) -> tuple[str, ...]:
    """The names in a file's header; () where it cannot be read in short."""
    try:
        with _open(path) as file:
            head = file.read(_HEAD_BYTES)
        encoding, mark = detect(head[:MARK_BYTES], fmt.encoding)
        text = head[mark:].decode(encoding, "ignore")
        lines = text.split("\n")[fmt.skip_rows :]
        start = next(i for i, line in enumerate(lines) if line.strip("\r") and not (fmt.comment and line.startswith(fmt.comment)))
        reader = csv.reader(
            io.StringIO("\n".join(lines[start:]), newline=""), delimiter=fmt.delimiter, quotechar=fmt.quote or None,
            escapechar=fmt.escape or None, doublequote=not fmt.escape, quoting=csv.QUOTE_MINIMAL if fmt.quote else csv.QUOTE_NONE,
        )  # fmt: skip
        return tuple(next(reader))
    except (OSError, EOFError, ValueError, StopIteration, csv.Error, zlib.error):
        return ()


def _open(path: str) -> IO[bytes]:
    if path.endswith((".gz", ".gzip")):
        import gzip

        return cast("IO[bytes]", gzip.open(path))
    if path.endswith((".bz2", ".bz")):
        import bz2

        return bz2.open(path)
    return open(path, "rb")
