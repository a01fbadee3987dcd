"""A user's own function on a batch: `package.module:function`, RecordBatch -> RecordBatch of as many rows.

Where it raises, the batch is halved until the rows that it raises on stand alone: they become dead letters (APPLY) with the exception's
type and text, and all others go on. k bad rows of n cost about k log2 n calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import ClassVar

import pyarrow as pa

from beam_pipelines.arrow.enrich import with_columns
from beam_pipelines.arrow.layers import KernelResult
from beam_pipelines.arrow.schema import RESERVED_PREFIX, Failure, Rejected
from beam_pipelines.arrow.types import DataType
from beam_pipelines.errors import BeamPipelinesError, RunError, SpecError

APPLY = "APPLY"
Function = Callable[[pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True)
class ApplyFunction:
    """Kernel: the function sees the live rows without provenance; it may change its input's columns and must add the declared ones.

    A column it leaves out keeps its values. Another number of rows, an undeclared column or type is the function's fault, not a row's: RunError.
    """

    function: str
    columns: tuple[tuple[str, DataType], ...] = ()
    stage: ClassVar[str] = "transform"
    sees_rejected: ClassVar[bool] = False

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        own = batch.select([n for n in batch.schema.names if not n.startswith(RESERVED_PREFIX)])
        schema = self.schema(own.schema)
        pieces: list[pa.RecordBatch] = []
        failed: dict[int, Rejected] = {}
        if own.num_rows:
            self.attempt(load(self.function), own, 0, schema, pieces, failed)
        out = pa.concat_batches(pieces) if pieces else _nulls(schema, 0)
        return with_columns(batch, dict(zip(out.schema.names, out.columns, strict=True))), failed

    def schema(self, given: pa.Schema) -> pa.Schema:
        """What the function must return: its input, with the declared columns replaced or added."""
        kinds = {f.name: f.type for f in given} | {name: dtype.arrow() for name, dtype in self.columns}
        return pa.schema(list(kinds.items()))

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
        except BeamPipelinesError:
            raise
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
        found = result[field.name]
        if found.type == field.type:
            return found
        try:
            return found.cast(field.type)
        except pa.ArrowNotImplementedError as error:
            raise RunError(f"apply {self.function}: got column {field.name!r} as {found.type}; expected {field.type}.") from error


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
