r"""Lines matched, whole, by a regular expression with named groups; the groups are the columns.

A pattern that RE2 understands runs in Arrow; one that needs Python (look-around, back-references, unnamed groups) runs line by
line. In both, `\d`, `\w` and `\s` mean ASCII, and a group that matched nothing is NULL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import KernelResult, Step
from beam_pipelines.arrow.schema import RAW
from beam_pipelines.formats.encoding import canonical
from beam_pipelines.formats.lines import read_lines
from beam_pipelines.formats.options import TextFormat
from beam_pipelines.formats.placing import Failures, field_name, place
from beam_pipelines.formats.reader import DECODE, Broken, Limits


def decode_steps(contract: Contract, fmt: TextFormat) -> tuple[Step, ...]:
    """The step that turns `_raw` into one string column per `contract.read` column, and `_unknown` where the contract keeps it."""
    return (DecodeText(contract, fmt),)


@dataclass(frozen=True)
class TextReader:
    """Reads lines."""

    fmt: TextFormat

    def splittable(self) -> bool:
        return canonical(self.fmt.encoding) == "utf-8"

    def read(
        self, stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits()
    ) -> Iterator[pa.RecordBatch | Broken]:
        return read_lines(stream, start=start, end=end, limits=limits, encoding=self.fmt.encoding)


@dataclass(frozen=True)
class DecodeText:
    """Kernel: raw batch of lines -> decoded batch."""

    contract: Contract
    fmt: TextFormat
    stage: str = "decode"
    sees_rejected: bool = True
    groups: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(re.compile(self.fmt.pattern, re.ASCII).groupindex))

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        lines, failures = _lines(batch.column(RAW))
        found = self._match(lines)
        unmatched = np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))
        failures = dict.fromkeys(unmatched.tolist(), (DECODE, f"the line does not match the pattern {self.fmt.pattern!r}")) | failures
        by_name = {g: _null_if_empty(pc.struct_field(found, g)) for g in self.groups}
        known = {field_name(n, c): n for n, c in self.contract.read.items()}
        placed = {n: by_name.get(field_name(n, c)) for n, c in self.contract.read.items()}
        return place(batch, self.contract, placed, {g: a for g, a in by_name.items() if g not in known}, failures)

    def _match(self, lines: pa.Array) -> pa.Array:
        """A struct of the groups per line; NULL where the line does not match."""
        try:
            return pc.extract_regex(lines, rf"\A(?:{self.fmt.pattern})\z")
        except pa.ArrowInvalid:  # what RE2 cannot do needs Python's `re`, which knows one text at a time
            match = re.compile(self.fmt.pattern, re.ASCII).fullmatch
            found = (None if line is None else match(line) for line in lines.to_pylist())
            return pa.array([m and m.groupdict() for m in found], pa.struct([(g, pa.string()) for g in self.groups]))


def _lines(raw: pa.Array) -> tuple[pa.Array, Failures]:
    """The records as texts without terminators; NULL and a failure where one is not UTF-8."""
    failures: Failures = {}
    try:
        texts = raw.cast(pa.string())
    except pa.ArrowInvalid:
        decoded: list[str | None] = []
        for row, record in enumerate(raw.to_pylist()):  # only in a block that holds such a record
            try:
                decoded.append(record if record is None else record.decode("utf-8"))
            except UnicodeDecodeError as error:
                failures[row] = (DECODE, str(error))
                decoded.append(None)
        texts = pa.array(decoded, pa.string())
    return pc.utf8_rtrim(texts, characters="\r\n"), failures


def _null_if_empty(texts: pa.Array) -> pa.Array:
    empty = pc.equal(pc.binary_length(texts), 0)
    return pc.if_else(empty, pa.scalar(None, pa.string()), texts) if pc.any(empty).as_py() else texts
