"""Columnar files (Parquet, Avro, ORC): the file's own typed columns, picked by the contract's paths and renamed to its names.

A path leads through structs, and through maps by their keys. A path that leads to nothing gives NULL; one that leads through a value
that has no members is a dead letter (TYPE) in the rows that have such a value. What no path names, top-level, goes to `_unknown`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.columns import readable
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.layouts import by_halves
from beam_pipelines.arrow.program import KernelResult, Step
from beam_pipelines.arrow.schema import POSITION, PROVENANCE_NAMES, RAW, UNKNOWN
from beam_pipelines.formats.options import AvroFormat, OrcFormat, ParquetFormat
from beam_pipelines.formats.placing import Failures, place
from beam_pipelines.formats.reader import DECODE, FILE, TYPE, Broken

_OURS = PROVENANCE_NAMES | {RAW, UNKNOWN}
_ESCAPE = "$"  # no contract column has it in its name
BATCH_ROWS = 65_536


def names_of(schema: pa.Schema) -> list[str]:
    """The names of a file's columns. Raises UnicodeDecodeError where a damaged name is no text, also one of a member, which Arrow would tell only later."""
    kinds: list[Any] = [f.type for f in schema]
    while kinds:
        kind = kinds.pop()
        for member in (kind.field(i) for i in range(kind.num_fields)):
            str(member.name)
            kinds.append(member.type)
    return list(schema.names)


def decode_steps(contract: Contract, fmt: AvroFormat | OrcFormat | ParquetFormat) -> tuple[Step, ...]:  # one signature for all formats
    """The step that picks and renames the contract's columns, keeps their types, and gives `_unknown` where the contract keeps it."""
    return (PickColumns(contract),)


@dataclass(frozen=True)
class PickColumns:
    """Kernel: provenance and a file's own columns -> decoded batch."""

    contract: Contract
    stage: str = "decode"
    sees_rejected: bool = True
    roots: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roots", roots(self.contract))

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        failures: Failures = {}
        if RAW in batch.schema.names and self.roots and self.roots.isdisjoint(batch.schema.names):
            text = "raw records (_raw) and none of the contract's columns; expected columns. Decode them by their own format, such as json"
            failures = dict.fromkeys(range(batch.num_rows), (DECODE, text))
        placed = {n: self._pick(batch, n, c.keys(n), failures) for n, c in self.contract.read.items()}
        others = {n.removeprefix(_ESCAPE): n for n in batch.schema.names if n not in _OURS and n.removeprefix(_ESCAPE) not in self.roots}
        unknown = {name: plain(batch.column(n)) for name, n in others.items()}
        if self.contract.unknown_columns == "keep":
            unknown = {name: self._readable(name, array, failures) for name, array in unknown.items()}
        return place(batch, self.contract, placed, unknown, failures, absent=pa.null())

    def _readable(self, name: str, array: pa.Array, failures: Failures) -> pa.Array:
        """As what readers give is; what others make need not be."""
        found, wrong = readable(name, array)
        failures.update({row: (DECODE, text) for row, text in wrong.items()})
        return found

    def _pick(self, batch: pa.RecordBatch, name: str, keys: tuple[str, ...], failures: Failures) -> pa.Array | None:
        root = escaped(keys[0])
        if root not in batch.schema.names:
            return None
        array = plain(batch.column(root))
        for key in keys[1:]:
            found = _member(array, key)
            if found is None:
                return None
            if found is _NO_MEMBERS:
                text = f"column {name!r}: path {'.'.join(keys)} leads through a value of type {array.type}; expected a struct or a map"
                rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False)).tolist()
                failures.update(dict.fromkeys(rows, (TYPE, text)))
                return None
            array = plain(found)
        return array


_NO_MEMBERS = object()


def _member(array: pa.Array, key: str) -> pa.Array | object | None:
    """The member `key` of each value; None where the type has no such member; `_NO_MEMBERS` where it has none at all."""
    kind = array.type
    if pa.types.is_struct(kind):
        index = kind.get_field_index(key)
        return pc.struct_field(array, [index]) if index >= 0 else None
    if pa.types.is_map(kind) and pa.types.is_string(kind.key_type):
        return pc.map_lookup(array, pa.scalar(key, pa.string()), "last")
    return None if pa.types.is_null(kind) else _NO_MEMBERS


def roots(contract: Contract) -> frozenset[str]:
    """The top-level columns that the contract's paths begin with."""
    return frozenset(c.keys(n)[0] for n, c in contract.read.items())


def escaped(name: str) -> str:
    """A file's own column under a name that is not one of ours: files we wrote are read again."""
    return _ESCAPE + name if name in _OURS else name


def positioned(batch: pa.RecordBatch, first: int) -> Iterator[pa.RecordBatch | Broken]:
    """A file's columns behind the ordinals of their rows, the first being `first`; rows with values that are none (invalid UTF-8) as Broken."""
    positions = pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))
    named = pa.RecordBatch.from_arrays([positions, *batch.columns], names=[POSITION, *(escaped(n) for n in batch.schema.names)])
    try:
        named.validate()
    except pa.ArrowInvalid as error:  # not a value is wrong but the lengths of a column
        yield Broken(first, FILE, f"rows {first} to {first + batch.num_rows - 1} cannot be read: {error}", rows=max(1, batch.num_rows))
        return
    broken = [Broken(first + row, DECODE, f"a value is not valid: {why}") for row, why in by_halves(named, _invalid)]
    yield from broken
    if broken:
        named = named.filter(pc.invert(pc.is_in(positions, pa.array([b.position for b in broken]))))
    if named.num_rows:
        yield named


def _invalid(batch: pa.RecordBatch) -> str | None:
    try:
        batch.validate(full=True)
        return None
    except pa.ArrowInvalid as error:
        return str(error)


def plain(array: pa.Array) -> pa.Array:
    """`array` without dictionary, run-end or extension encoding at its top."""
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if isinstance(array, pa.DictionaryArray):
        return array.dictionary_decode()
    return pc.run_end_decode(array) if pa.types.is_run_end_encoded(array.type) else array


class WatchedStream:
    """A stream for readers written in C++, which tells an OSError of the stream itself from one about the file's bytes."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._error: OSError | None = None

    def raise_own(self) -> None:
        """Raises the OSError that the stream raised, if it did."""
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return bytes(self._watch(self._stream.read, size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._watch(self._stream.seek, offset, whence))

    def tell(self) -> int:
        return int(self._watch(self._stream.tell))

    def close(self) -> None:
        self.closed = True  # the stream belongs to whoever opened it

    def _watch(self, call: Any, *args: int) -> Any:
        try:
            return call(*args)
        except OSError as error:
            self._error = error
            raise


def seekable(stream: BinaryIO) -> BinaryIO:
    """`stream`, or where it cannot be sought in (a compressed file), its bytes in a temporary file that ends with it.

    Raises DamagedStream where the compressed file is damaged.
    """
    if stream.seekable():
        return stream
    spooled = tempfile.TemporaryFile()  # noqa: SIM115  # closed, and so deleted, when the reader drops it
    shutil.copyfileobj(stream, spooled, 2**20)
    spooled.seek(0)
    return spooled
