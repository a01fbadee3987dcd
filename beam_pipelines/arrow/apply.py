"""A user's own function on a batch: `package.module:function`, RecordBatch -> RecordBatch of as many rows, in the same order.

Where it raises, the batch is halved until the rows that it raises on stand alone: they become dead letters (APPLY) with the exception's
type and text, and all others go on. k bad rows of n cost about k log2 n calls, so what becomes of a row never depends on its batch.

What is no row's fault fails the bundle, which a stream's runner repeats: TransientError of this package, ConnectionError and TimeoutError (as
TransientError); every other error of this package, MemoryError and ImportError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import ClassVar

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.columns import readable
from beam_pipelines.arrow.enrich import with_columns
from beam_pipelines.arrow.layers import KernelResult
from beam_pipelines.arrow.schema import CHANGE, RESERVED_PREFIX, Failure, Rejected
from beam_pipelines.arrow.types import DataType
from beam_pipelines.errors import BeamPipelinesError, RunError, SpecError, TransientError

APPLY = "APPLY"
Function = Callable[[pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True)
class ApplyFunction:
    """Kernel: the function sees the live rows without provenance; it may change its input's columns and must add the declared ones.

    A column it leaves out keeps its values. Another number of rows, an undeclared column or type is the function's fault, not a row's: RunError. So is,
    in rows with `_change`, a time that changes undeclared: a row of -1 has the old one, and would take back nothing.
    A value that does not fit the declared type (300 in an int8) is the row's, and so is a text that is not UTF-8. `given` is the function itself, if it is not to be imported.
    """

    function: str
    columns: tuple[tuple[str, DataType], ...] = ()
    given: Function | None = field(default=None, compare=False)
    stage: ClassVar[str] = "transform"
    sees_rejected: ClassVar[bool] = False

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        own = batch.select([n for n in batch.schema.names if not n.startswith(RESERVED_PREFIX)])
        schema = self.schema(own.schema)
        pieces: list[pa.RecordBatch] = []
        failed: dict[int, Rejected] = {}
        if own.num_rows:
            self.attempt(self.given or load(self.function), own, 0, schema, pieces, failed)
        out = pa.concat_batches(pieces) if pieces else _nulls(schema, 0)
        if CHANGE in batch.schema.names:
            self.keeps_times(own, out, failed)
        return with_columns(batch, dict(zip(out.schema.names, out.columns, strict=True))), failed

    def schema(self, given: pa.Schema) -> pa.Schema:
        """What the function must return: its input, with the declared columns replaced or added."""
        kinds = {f.name: f.type for f in given} | {name: dtype.arrow() for name, dtype in self.columns}
        return pa.schema(list(kinds.items()))

    def keeps_times(self, rows: pa.RecordBatch, out: pa.RecordBatch, failed: Mapping[int, Rejected]) -> None:
        """Raises RunError where a time is another than before in a row that did not fail, and its column is not declared."""
        if failed:
            fine = np.ones(rows.num_rows, bool)
            fine[list(failed)] = False
            rows, out = (batch.filter(pa.array(fine)) for batch in (rows, out))
        declared = dict(self.columns)
        for name, column in zip(rows.schema.names, rows.columns, strict=True):
            if family(column.type) == "instant" and name not in declared and not column.equals(out[name]):
                raise RunError(
                    f"apply {self.function}: changed the time {name!r}, which is not declared, in rows that Deduplicate may take back.",
                    hint="Declare it under columns, or put the step before Deduplicate.",
                )

    def attempt(
        self,
        function: Function,
        rows: pa.RecordBatch,
        start: int,
        schema: pa.Schema,
        pieces: list[pa.RecordBatch],
        failed: dict[int, Rejected],
    ) -> None:
        try:
            pieces.append(self.checked(function(rows), rows, schema))
        except (BeamPipelinesError, MemoryError):
            raise
        except (ConnectionError, TimeoutError) as error:
            raise TransientError(f"apply {self.function}: {type(error).__name__}: {error}") from error
        except ImportError as error:
            hint = "It must be importable on the workers: install its package there."
            raise RunError(f"apply {self.function}: {type(error).__name__}: {error}.", hint=hint) from error
        except Exception as error:  # whatever a user's function raises
            if rows.num_rows == 1:
                message = f"{self.function}: {type(error).__name__}: {error}"
                failed[start] = Rejected(self.stage, APPLY, (Failure(self.function, "", message),))
                pieces.append(_nulls(schema, 1))
                return
            half = rows.num_rows // 2
            self.attempt(function, rows.slice(0, half), start, schema, pieces, failed)
            self.attempt(function, rows.slice(half), start + half, schema, pieces, failed)

    def checked(self, result: object, rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        if isinstance(result, pa.Table):
            result = _one(result)
        if not isinstance(result, pa.RecordBatch):
            raise RunError(f"apply {self.function}: got a {type(result).__name__}; expected a pyarrow.RecordBatch.")
        if result.num_rows != rows.num_rows:
            raise RunError(f"apply {self.function}: got {result.num_rows} rows for {rows.num_rows}; expected as many, in the same order.")
        extra = [n for n in result.schema.names if n not in schema.names]
        if extra:
            raise RunError(f"apply {self.function}: got column {extra[0]!r}, which is not declared.", hint="Declare it under columns.")
        return pa.RecordBatch.from_arrays([self.column(f, result, rows) for f in schema], schema=schema)

    def column(self, field: pa.Field, result: pa.RecordBatch, rows: pa.RecordBatch) -> pa.Array:
        if field.name not in result.schema.names:
            if field.name in dict(self.columns):
                raise RunError(f"apply {self.function}: got no column {field.name!r}; expected it, for it is declared.")
            return rows[field.name]
        found = self.cast(field, result[field.name])
        for said in readable(field.name, found)[1].values():
            raise ValueError(said)  # a row's fault, as if the function raised it
        return found

    def cast(self, field: pa.Field, found: pa.Array) -> pa.Array:
        if found.type == field.type:
            return found
        wrong = f"apply {self.function}: got column {field.name!r} as {found.type}; expected {field.type}."
        if not fits(found.type, field.type):
            raise RunError(wrong, hint="Cast it in the function, or declare the type that it returns under columns.")
        try:
            if pa.types.is_integer(found.type) and pa.types.is_decimal(
                field.type
            ):  # Arrow asks for digits for the largest integer there is
                found = found.cast(pa.decimal128(38, field.type.scale))
            return found.cast(field.type)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise RunError(wrong) from error


def fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast from `found` to `wanted` changes no value's meaning: of one family, and so are their items and fields. NULL fits everything."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return fits(found.value_type, wanted)
    if family(found) != family(wanted):
        return False
    if family(found) == "list":
        return fits(found.value_type, wanted.value_type)
    if pa.types.is_struct(found):
        return all(fits(found.field(f.name).type, f.type) for f in wanted if found.get_field_index(f.name) >= 0)
    return True


def family(kind: pa.DataType) -> str:
    """What kind of value a type holds, whatever its width, unit or layout, and whatever a list or struct has inside."""
    types = pa.types
    if types.is_dictionary(kind):
        return family(kind.value_type)
    if types.is_date(kind) or types.is_timestamp(kind):
        return "instant"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return "bytes"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "list"
    if types.is_time(kind):
        return "time"
    return str(kind).partition("[")[0].partition("<")[0]


@lru_cache(maxsize=256)
def load(function: str) -> Function:
    """The function that `package.module:function` names. Raises SpecError if there is none."""
    module, _, name = function.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        hint = "It must be importable on the workers: install its package there."
        raise SpecError(f"apply {function}: cannot be imported: {error}.", hint=hint) from error
    if not callable(found):
        raise SpecError(f"apply {function}: got a {type(found).__name__}; expected a function.")
    return found  # type: ignore[no-any-return]  # a user's function


def _nulls(schema: pa.Schema, rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(rows, f.type) for f in schema], schema=schema)


def _one(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
