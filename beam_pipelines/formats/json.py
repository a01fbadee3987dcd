"""JSON records to columns, strictly: what `json_strict.decode_record` says of each record, for whole batches.

    _raw ─▶ syntax ──▶ shapes ───────────────▶ columns        most records of a batch have one of a few shapes
       (msgspec, Arrow)   │ no known shape: strict decoder
              │           │
              │           └─ most have none ─▶ SELECT from_json(...) ──▶ columns
              │                members, strings counted  │ suspect: not proven
              │ not JSON                                 ├─ members proven in bulk ─▶ the same SELECT
              ▼                                          └─ strict decoder, record by record
           DECODE                                               └─▶ TYPE, UNKNOWN_COLUMN, DECODE

A record that has the brackets and names of one already judged needs no parser: its tokens say where every value lies (`json_shapes`), and
Arrow's views point there (`json_views`). Batches without regular shapes are read by DuckDB, and a record is proven good by counting: when
a valid object has as many members as declared ones are present, then none is unknown and none occurs twice; when its strings are as many
as its names and present string columns, then every string column is a string. Its objects are counted alike. Records with nulls, unknown
members or nested values are proven member by member (`json_members`); what is left, mostly bad records, is decided by the strict decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.engine import local_engine
from beam_pipelines.arrow.layers import KernelResult, Layer, Query
from beam_pipelines.arrow.program import Program, Split, Step
from beam_pipelines.arrow.schema import PROVENANCE_NAMES, RAW, UNKNOWN, Rejected
from beam_pipelines.arrow.types import DataType
from beam_pipelines.formats.encoding import canonical
from beam_pipelines.formats.json_array import read_array
from beam_pipelines.formats.json_bits import Indexes, chunks, count_per_row, pack, structure
from beam_pipelines.formats.json_members import Members, inexact, needs_exact_numbers
from beam_pipelines.formats.json_plan import Plan, plan
from beam_pipelines.formats.json_sql import COUNT, COUNTS, LINE, extraction
from beam_pipelines.formats.json_strict import STAGE, decode_record
from beam_pipelines.formats.json_syntax import Checked, Text, check_syntax, text_of
from beam_pipelines.formats.lines import read_lines
from beam_pipelines.formats.options import JsonFormat
from beam_pipelines.formats.reader import Broken, Limits

_PROVEN, _DOUBT, _REFUTED = -1, -2, -3  # in the place of a record's count of members
_EXTRA, _EXTRACTED = "_extra", "_extracted"
_COLON, _OPEN, _BRACKET, _BACKSLASH = 58, 123, 91, 92
Counts = npt.NDArray[np.int32]
_MOSTLY = 0.25  # of the records uncounted: prove members at once
_RETRY = 64  # batches after which shapes, or counting, are tried again
_FEW = 256  # rows for which shapes cost more than they save


def decode_steps(contract: Contract, fmt: JsonFormat) -> tuple[Step, ...]:
    """Raw batch (`_raw`: one JSON object per row) to decoded batch: a text column per column that is read, and `_unknown`.

    Rejects: DECODE (not a JSON object), TYPE (the wrong JSON kind, with every failing column), UNKNOWN_COLUMN. Raises RunError for an
    unknown member where the contract says `unknown_columns: fail`, and SpecError for a contract whose paths cross.
    """
    decoder = _Decoder(contract)
    return decoder, decoder.layer()


def decode_batch(batch: pa.RecordBatch, contract: Contract, fmt: JsonFormat | None = None) -> Split:
    """`decode_steps` on one batch. `rows` keep provenance and `_raw`; records that took longer to judge come last.

    >>> contract = Contract(columns={'id': {'type': 'int64'}})
    >>> batch = pa.record_batch({'_raw': pa.array([b'{"id": 7}', b'{"id": "7"}'], pa.binary())})
    >>> split = decode_batch(batch, contract)
    >>> split.rows['id'].to_pylist(), split.dead['message'].to_pylist()
    (['7'], ['id: got string "7"; expected int64'])
    """
    return Program(decode_steps(contract, fmt or JsonFormat()), raw_format="json", keep_raw=True)(batch)


@dataclass(frozen=True)
class JsonReader:
    """Reads JSON lines, or the elements of one array of objects."""

    fmt: JsonFormat

    def splittable(self) -> bool:
        return self.fmt.layout == "lines" and canonical(self.fmt.encoding) == "utf-8"

    def read(
        self, stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits()
    ) -> Iterator[pa.RecordBatch | Broken]:
        if self.fmt.layout == "lines":
            return read_lines(stream, start=start, end=end, limits=limits, encoding=self.fmt.encoding)
        return read_array(stream, start=start, end=end, limits=limits, encoding=self.fmt.encoding)


@dataclass
class _Decoder:
    """The kernel in front of the SELECT, and the judge of what the SELECT does not prove."""

    contract: Contract
    stage: str = STAGE
    sees_rejected: bool = True
    _tools: _Tools | None = field(default=None, repr=False, compare=False)
    _direct: int = field(default=0, repr=False, compare=False)  # batches still to be proven by members at once
    _irregular: int = field(default=0, repr=False, compare=False)  # batches whose shapes are not looked at

    def __post_init__(self) -> None:
        plan(self.contract)  # a wrong contract fails where it is written, not on a worker

    def __getstate__(self) -> dict[str, object]:
        return {
            "contract": self.contract,
            "stage": self.stage,
            "sees_rejected": self.sees_rejected,
            "_tools": None,
            "_direct": 0,
            "_irregular": 0,
        }

    @property
    def tools(self) -> _Tools:
        if self._tools is None:
            self._tools = _Tools(self.contract)
        return self._tools

    def layer(self) -> Layer:
        """The SELECT, whose suspects this object resolves."""
        names = (*self.contract.read, *((UNKNOWN,) if self._keep else ()))
        sql = extraction(plan(self.contract))
        return Layer(
            STAGE,
            let=sql.let,
            define=(*sql.defines, *sql.unknown(_EXTRA if self._keep else None)),
            columns=names,
            suspect=sql.suspect,
            resolve=self.resolve,
            unless=_EXTRACTED,
        )

    @property
    def _keep(self) -> bool:
        return self.contract.unknown_columns == "keep"

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        checked = check_syntax(batch.column(RAW))
        self.tools.batch_rows = batch.num_rows
        extracted = self._extracted(batch, checked)
        if extracted is not None:
            return extracted
        counts, extra = self._judge(checked)
        columns = {LINE: checked.text.lines} | dict(zip(COUNTS, map(pa.array, counts), strict=True))
        if self._keep:
            columns[_EXTRA] = extra
        names = [*batch.schema.names, *columns]
        return pa.RecordBatch.from_arrays([*batch.columns, *columns.values()], names=names), checked.verdicts

    def _extracted(self, batch: pa.RecordBatch, checked: Checked) -> KernelResult | None:
        """The decoded batch, where most records are of a few shapes."""
        if not self.tools.shapely or batch.num_rows < _FEW or self._irregular:
            self._irregular = max(self._irregular - 1, 0)
            return None
        found = self.tools.members.extract(checked.text, checked.valid)
        rest = np.flatnonzero(checked.valid & ~found.good)
        if len(rest) > _MOSTLY * batch.num_rows:
            self._irregular = _RETRY
            return None
        kept = [n for n in batch.schema.names if n in PROVENANCE_NAMES or n == RAW]
        verdicts, unknown = checked.verdicts, found.unknown
        if len(rest):
            decoded, wrong = self._one_by_one(batch.select(kept), checked.text.lines, rest, refuted=found.wrong[rest])
            verdicts = verdicts | {int(rest[row]): verdict for row, verdict in wrong.items()}
            for column, name in enumerate(self.contract.read):
                found.columns.put(column, rest, decoded.column(name))
            if self._keep:
                unknown = _replaced(unknown, rest, decoded.column(UNKNOWN))
        columns = dict(zip(self.contract.read, found.columns.arrays(), strict=True)) | ({UNKNOWN: unknown} if self._keep else {})
        columns |= {n: batch.column(n) for n in kept} | {_EXTRACTED: pa.nulls(batch.num_rows, pa.int8())}
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), verdicts

    def _one_by_one(self, batch: pa.RecordBatch, lines: pa.Array, rows: Indexes, *, refuted: npt.NDArray[np.bool_]) -> KernelResult:
        """The records at `rows`, which have no known shape, or (`refuted`) one that their values do not fit."""
        index, counts = pa.array(rows), _Counts.zeros(len(rows))
        counts.members[refuted] = _REFUTED
        part = batch.take(index).append_column(LINE, lines.take(index))
        for name, count in zip(COUNTS, counts, strict=True):
            part = part.append_column(name, pa.array(count))
        return self.resolve(part)

    def _judge(self, checked: Checked) -> tuple[_Counts, pa.Array]:
        rows = len(checked.valid)
        nothing = pa.nulls(rows, pa.string())
        if not checked.valid.any():
            return _Counts.zeros(rows), nothing
        if self.tools.countable and not self._direct:
            return _count(checked, exact=self.tools.exact), nothing
        self._direct = max(self._direct - 1, 0)
        good, extra = self._prove(checked.text, checked.valid)
        return _Counts.zeros(rows)._replace(members=np.where(good, _PROVEN, _REFUTED).astype(np.int32)), extra

    def _prove(self, text: Text, valid: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], pa.Array]:
        if valid.all():
            return self.tools.members.prove(text.data, text.offsets)
        rows = np.flatnonzero(valid)
        part = text_of(text.lines.take(pa.array(rows)))
        good = np.zeros(len(valid), bool)
        good[rows], found = self.tools.members.prove(part.data, part.offsets)
        back = np.full(len(valid), len(rows), np.int64)
        back[rows] = np.arange(len(rows))
        return good, pa.concat_arrays([found, pa.nulls(1, pa.string())]).take(pa.array(back))

    def resolve(self, batch: pa.RecordBatch) -> KernelResult:
        """Decides suspects: by members where counting did not do, else by the strict decoder."""
        state = batch.column(COUNT).to_numpy()
        good = np.zeros(len(state), bool)
        extra = pa.nulls(len(state), pa.string())
        doubtful = state != _REFUTED
        if doubtful.any():
            text = text_of(batch.column(LINE))
            good, extra = self._prove(text, doubtful)
            if self.tools.countable and len(state) > _MOSTLY * self.tools.batch_rows:
                self._direct = _RETRY
        return self._decoded(batch, good, extra)

    def _decoded(self, batch: pa.RecordBatch, good: npt.NDArray[np.bool_], extra: pa.Array) -> KernelResult:
        names = [*self.contract.read, *((UNKNOWN,) if self._keep else ())]
        proven = batch.filter(pa.array(good))
        parts = [self._select(proven, extra.filter(pa.array(good)))] if proven.num_rows else []
        rest = np.flatnonzero(~good)
        strict, verdicts = self._strictly(batch.column(RAW).take(pa.array(rest)), rest)
        parts.append(strict)
        back = np.empty(len(good), np.int64)
        back[np.concatenate((np.flatnonzero(good), rest))] = np.arange(len(good))
        decoded = pa.concat_batches(parts).take(pa.array(back))
        kept = [n for n in batch.schema.names if n in PROVENANCE_NAMES or n == RAW]
        return pa.RecordBatch.from_arrays([*decoded.columns, *(batch.column(n) for n in kept)], names=[*names, *kept]), verdicts

    def _select(self, batch: pa.RecordBatch, extra: pa.Array) -> pa.RecordBatch:
        names = [*self.contract.read, *((UNKNOWN,) if self._keep else ())]
        inputs = {n: batch.column(n) for n in (LINE, *COUNTS)} | ({_EXTRA: extra} if self._keep else {})
        inside = pa.RecordBatch.from_arrays(list(inputs.values()), names=list(inputs))
        query = Query((self.tools.select,), tuple(inputs))
        return local_engine().select(query.sql(), inside.schema)(inside).select(names)

    def _strictly(self, raw: pa.Array, rows: Indexes) -> tuple[pa.RecordBatch, dict[int, Rejected]]:
        """Record by record: what is bad, and the few good ones that bulk proof cannot see through."""
        names = [*self.contract.read, *((UNKNOWN,) if self._keep else ())]
        verdicts: dict[int, Rejected] = {}
        good: list[dict[str, str | None]] = []
        where: list[int | None] = []
        for row, record in zip(rows.tolist(), raw.to_pylist(), strict=True):
            decoded = decode_record(record or b"", self.tools.plan)
            if isinstance(decoded, Rejected):
                verdicts[row] = decoded
                where.append(None)
            else:
                where.append(len(good))
                good.append(decoded.values | {UNKNOWN: decoded.unknown})
        arrays = [pa.array([values[name] for values in good], pa.string()) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=names).take(pa.array(where, pa.int64())), verdicts


class _Tools:
    """What a worker derives from the contract once."""

    def __init__(self, contract: Contract) -> None:
        self.plan: Plan = plan(contract)
        self.members = Members(self.plan)
        self.exact = needs_exact_numbers(self.plan)
        sql = extraction(self.plan)
        keep = self.plan.unknown == "keep"
        self.countable = sql.countable
        self.shapely = not any(_holds_json(column.dtype) for column in contract.read.values())
        self.select = Layer(
            STAGE,
            let=sql.let,
            define=(*sql.defines, *sql.unknown(_EXTRA if keep else None)),
            columns=(*contract.read, *((UNKNOWN,) if keep else ())),
        )
        self.batch_rows = 0


class _Counts(NamedTuple):
    """Per record: members, strings that are no names, objects inside it."""

    members: Counts
    strings: Counts
    objects: Counts

    @classmethod
    def zeros(cls, rows: int) -> _Counts:
        return cls(*(np.zeros(rows, np.int32) for _ in cls._fields))


def _holds_json(dtype: DataType) -> bool:
    """Whether a text of the type is shown as it is written: then it is to be without white space, as the strict decoder gives it."""
    inner = (dtype.item,) if dtype.item is not None else tuple(t for _, t in dtype.fields)
    return dtype.kind == "json" or any(map(_holds_json, inner))


def _replaced(column: pa.Array, rows: Indexes, values: pa.Array) -> pa.Array:
    where = np.arange(len(column))
    where[rows] = len(column) + np.arange(len(rows))
    return pa.concat_arrays([column, values]).take(pa.array(where))


def _count(checked: Checked, *, exact: bool) -> _Counts:
    """Counts of each record; members are _DOUBT where arrays or delicate numbers make counts say nothing."""
    data, offsets, _ = checked.text
    counts = _Counts.zeros(len(checked.valid))
    for start, end in chunks(offsets):
        base = int(offsets[start])
        text, local = data[base : int(offsets[end])], offsets[start : end + 1] - base
        broken = [(int(local[r]), int(local[r + 1])) for r in np.flatnonzero(~checked.valid[start:end]).tolist()]
        marks = structure(text, bool((text == _BACKSLASH).any()), broken)
        members = count_per_row(pack(text == _COLON) & ~marks.inside, local)
        counts.strings[start:end] = count_per_row(marks.quotes, local) // 2 - members
        counts.objects[start:end] = count_per_row(pack(text == _OPEN) & ~marks.inside, local) - 1
        brackets = pack(text == _BRACKET) & ~marks.inside
        if brackets.any():
            members[count_per_row(brackets, local) > 0] = _DOUBT
        if exact:
            members[np.searchsorted(local, inexact(text, marks), side="right") - 1] = _DOUBT
        counts.members[start:end] = members
    return counts
