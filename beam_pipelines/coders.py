"""The coder of the element: one RecordBatch as one Arrow IPC stream.

Without it Beam pickles the parent buffers of a slice: 718 KB instead of 4 KB for 100 rows of a large batch. The stream form costs
15 microseconds a batch and, unlike a bare IPC message, carries dictionaries.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import coder_impl


class _RecordBatchCoderImpl(coder_impl.StreamCoderImpl):  # type: ignore[misc]  # Beam ships no types
    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return bytes(sink.getvalue())

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return pa.ipc.open_stream(pa.py_buffer(encoded)).read_next_batch()

    def encode_to_stream(self, value: pa.RecordBatch, out: Any, nested: bool) -> None:
        out.write(self.encode(value), nested)

    def decode_from_stream(self, in_stream: Any, nested: bool) -> pa.RecordBatch:
        return self.decode(in_stream.read_all(nested))

    def estimate_size(self, value: pa.RecordBatch, nested: bool = False) -> int:
        return int(value.nbytes)

    def get_estimated_size_and_observables(self, value: pa.RecordBatch, nested: bool = False) -> tuple[int, list[Any]]:
        return int(value.nbytes), []


class RecordBatchCoder(beam.coders.Coder):  # type: ignore[misc]
    """Beam's coder for `pyarrow.RecordBatch`, registered for that type when this module is imported."""

    def _create_impl(self) -> _RecordBatchCoderImpl:
        return _RecordBatchCoderImpl()

    def encode(self, value: pa.RecordBatch) -> bytes:
        return _RecordBatchCoderImpl().encode(value)

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return _RecordBatchCoderImpl().decode(encoded)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> Any:
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
