"""Avro messages to columns: one record each, of whatever schema it was written as (see `avro_message_schemas`).

    _raw, _attributes ─▶ by writer's schema ─▶ fastavro, record by record ─▶ Arrow columns ─▶ the contract's columns picked

fastavro reads one record a call, and that is the quickest way it has: wrapping messages into one container and reading that was measured slower
(256,000 against 288,000 messages/s with eight fields), and one call per message costs nobody but itself when its bytes are wrong.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import KernelResult, Step
from beam_pipelines.arrow.schema import ATTRIBUTES, PROVENANCE_NAMES, RAW, SOURCE, Rejected
from beam_pipelines.formats.avro_message_schemas import HEADER_BYTES, MARK, Codec, KnownSchemas, codec, described, fetched, known_schemas
from beam_pipelines.formats.columnar import PickColumns, escaped
from beam_pipelines.formats.options import AvroFormat
from beam_pipelines.formats.placing import Failures, verdicts
from beam_pipelines.formats.reader import DECODE
from beam_pipelines.pubsub_service import where

_SCHEMA_NAME, _REVISION, _ENCODING = (f"googclient_schema{what}" for what in ("name", "revisionid", "encoding"))
_CHUNK_ROWS = 4096  # records that are Python objects at once
_MISFITS = (pa.ArrowException, ValueError, TypeError, ArithmeticError)  # a value that no column can hold
_NO_SCHEMA = (
    "nothing says which schema it was written as: no attributes of a Pub/Sub schema, no single-object header, and the spec names none"
)
Rows = npt.NDArray[np.int64]


def decode_steps(contract: Contract, fmt: AvroFormat, *, endpoint: str | None = None) -> tuple[Step, ...]:
    """The step from a raw batch of messages, or of a container file's own columns, to a decoded batch.

    `endpoint` is where the schemas of Pub/Sub are fetched. Raises SpecError for a schema of the spec that is none.
    """
    return (DecodeAvro(contract, known_schemas(fmt), where(endpoint)),)


@dataclass(frozen=True)
class DecodeAvro:
    """Kernel: provenance, `_raw` and `_attributes` -> decoded batch, typed as a file's would be. A bad message costs itself."""

    contract: Contract
    known: KnownSchemas
    endpoint: str
    stage: str = "decode"
    sees_rejected: bool = True
    pick: PickColumns = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pick", PickColumns(self.contract))

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        if RAW not in batch.schema.names:  # a file's
            return self.pick(batch)
        failures: Failures = {}
        rejected: dict[int, Rejected] = {}
        parts: list[pa.Table] = []
        taken: list[Rows] = []
        for group in self._groups(batch):
            good, wrong = self._decoded(batch, group, failures)
            rejected |= wrong
            parts.append(good[0])
            taken.append(good[1])
        columns = _aligned(parts, taken, batch.num_rows)
        kept = [n for n in batch.schema.names if n in PROVENANCE_NAMES or n == RAW]
        out = pa.RecordBatch.from_arrays([*(batch.column(n) for n in kept), *columns.columns], names=[*kept, *columns.schema.names])
        return out, verdicts(failures) | rejected

    def _decoded(self, batch: pa.RecordBatch, group: _Group, failures: Failures) -> tuple[tuple[pa.Table, Rows], dict[int, Rejected]]:
        """The contract's columns of the group's good records, with their rows; failures of the others; verdicts of what cannot be picked."""
        if group.codec is None:
            failures.update(dict.fromkeys(group.rows.tolist(), (DECODE, group.fault)))
            records, good = pa.record_batch([], names=[]), group.rows[:0]
        else:
            records, bad = _read(group.codec, [content[group.header :] for content in group.raw.to_pylist()], json=group.json)
            failures.update((int(group.rows[at]), (DECODE, why)) for at, why in bad.items())
            good = np.delete(group.rows, list(bad)) if bad else group.rows
        names = [SOURCE, *(escaped(n) for n in records.schema.names)]
        inside = pa.RecordBatch.from_arrays([batch.column(SOURCE).take(pa.array(good)), *records.columns], names=names)
        picked, wrong = self.pick(inside)
        table = pa.Table.from_batches([picked]).drop_columns([SOURCE])
        return (table, good), {int(good[at]): verdict for at, verdict in wrong.items()}

    def _groups(self, batch: pa.RecordBatch) -> Iterator[_Group]:
        """The rows by the schema they were written as, each row once."""
        raw = batch.column(RAW)
        rest = raw.is_valid().to_numpy(zero_copy_only=False)
        yield _Group.broken(np.flatnonzero(~rest), "no bytes")
        if ATTRIBUTES in batch.schema.names:
            names, revisions, encodings = (
                pc.map_lookup(batch.column(ATTRIBUTES), n, "first") for n in (_SCHEMA_NAME, _REVISION, _ENCODING)
            )
            published = rest & names.is_valid().to_numpy(zero_copy_only=False)
            if published.any():
                yield from self._of_revisions(raw, np.flatnonzero(published), names, revisions, encodings)
                rest &= ~published
        framed = rest & pc.equal(pc.binary_slice(raw, 0, len(MARK)), MARK).fill_null(False).to_numpy(zero_copy_only=False)
        if framed.any():
            yield from self._framed(raw, framed)
            rest &= ~framed
        yield self._bare(raw, np.flatnonzero(rest))

    def _of_revisions(self, raw: pa.Array, rows: Rows, names: pa.Array, revisions: pa.Array, encodings: pa.Array) -> Iterator[_Group]:
        texts = pc.binary_join_element_wise(names, revisions, encodings, " ", null_handling="replace", null_replacement="").take(
            pa.array(rows)
        )
        coded = texts.dictionary_encode()
        codes = np.asarray(coded.indices)
        for number, text in enumerate(coded.dictionary.to_pylist()):
            own = rows[codes == number]
            name, revision, encoding = text.split(" ")
            if encoding not in ("BINARY", "JSON"):
                yield _Group.broken(own, f"{_ENCODING}: got {encoding!r}; expected BINARY or JSON")
                continue
            found = fetched(self.endpoint, name, revision)
            if found.definition is None:
                yield _Group.broken(own, found.fault)
            else:
                yield _Group(own, raw.take(pa.array(own)), codec(found.definition, self.known.reader), json=encoding == "JSON")

    def _framed(self, raw: pa.Array, framed: npt.NDArray[np.bool_]) -> Iterator[_Group]:
        """Messages that begin as those of the single-object encoding do; takes out of `framed` what is none after all."""
        rows = np.flatnonzero(framed)
        coded = pc.binary_slice(raw.take(pa.array(rows)), len(MARK), HEADER_BYTES).dictionary_encode()
        codes = np.asarray(coded.indices)
        for number, found in enumerate(coded.dictionary.to_pylist()):
            own = rows[codes == number]
            writer = self.known.by_print.get(found)
            if writer is not None:
                yield _Group(own, raw.take(pa.array(own)), codec(writer, self.known.reader), header=HEADER_BYTES)
            elif self.known.bare is not None:  # two bytes of a record that has no header
                framed[own] = False
            else:
                yield _Group.broken(own, f"its single-object header has the fingerprint {found.hex()}, that of none of the spec's schemas")

    def _bare(self, raw: pa.Array, rows: Rows) -> _Group:
        if self.known.bare is not None:
            return _Group(rows, raw.take(pa.array(rows)), codec(self.known.bare, self.known.reader))
        return _Group.broken(rows, "no single-object header (C3 01)" if self.known.only_framed else _NO_SCHEMA)


class _Group(NamedTuple):
    """Rows of one schema and encoding with their bytes, of which `header` are no record; without `codec`, all of them are broken by `fault`."""

    rows: Rows
    raw: pa.Array
    codec: Codec | None
    fault: str = ""
    json: bool = False
    header: int = 0

    @classmethod
    def broken(cls, rows: Rows, fault: str) -> _Group:
        return cls(rows, pa.nulls(0, pa.binary()), None, fault)


def _read(how: Codec, raw: Sequence[bytes], *, json: bool) -> tuple[pa.RecordBatch, dict[int, str]]:
    """The records that are good, as columns, and why the others are not."""
    bad: dict[int, str] = {}
    batches = [how.rows.batch([])]
    read = _one_json if json else _one
    for first in range(0, len(raw), _CHUNK_ROWS):
        values: list[Any] = []
        where_from: list[int] = []
        for number, content in enumerate(raw[first : first + _CHUNK_ROWS], first):
            try:
                values.append(read(how, content))
                where_from.append(number)
            except Exception as error:  # wrong bytes surface as any exception of fastavro
                bad[number] = f"no such Avro record: {described(error)}"
        batches += _columns(how, values, where_from, bad)
    return pa.concat_batches(batches), bad


def _one(how: Codec, content: bytes) -> Any:
    source = io.BytesIO(content)
    value = how.read(source, how.writer, how.reader, False, False, "surrogateescape")
    if source.tell() != len(content):
        raise _MisfitError(f"{len(content) - source.tell()} of its {len(content)} bytes follow the record")
    return value


def _one_json(how: Codec, content: bytes) -> Any:
    text = content.decode("utf-8").strip()
    if not text:
        raise _MisfitError("an empty message")
    values = list(fastavro.json_reader(io.StringIO(text), how.writer, how.reader))
    if len(values) != 1:
        raise _MisfitError(f"got {len(values)} values; expected one")
    return values[0]


class _MisfitError(ValueError):
    """Bytes that are more, or less, than one record."""

    def __str__(self) -> str:
        return str(self.args[0])


def _columns(how: Codec, values: list[Any], where_from: list[int], bad: dict[int, str]) -> list[pa.RecordBatch]:
    """The values as columns; one by one only where some do not fit."""
    try:
        return [how.rows.batch(values)]
    except _MISFITS:
        good = []
        for number, value in zip(where_from, values, strict=True):
            try:
                good.append(how.rows.batch([value]))
            except _MISFITS as error:
                bad[number] = f"a value does not fit its column: {described(error) if isinstance(error, ValueError) else error}"
        return good


def _aligned(parts: list[pa.Table], taken: list[Rows], rows: int) -> pa.RecordBatch:
    """The parts one under the other in the order of their rows; NULLs where no part has a row."""
    filled = [part for part, own in zip(parts, taken, strict=True) if len(own)] or parts[:1]
    whole = pa.concat_tables(filled, promote_options="permissive").combine_chunks()
    order = np.concatenate(taken)
    if len(order) != rows or (np.diff(order) != 1).any():
        back = np.full(rows, -1, np.int64)
        back[order] = np.arange(len(order))
        whole = whole.take(pa.array(back, mask=back < 0)).combine_chunks()
    return (
        whole.to_batches()[0]
        if whole.num_rows
        else pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in whole.schema], schema=whole.schema)
    )
