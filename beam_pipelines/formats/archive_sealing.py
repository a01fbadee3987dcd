"""What people wrote in a message, sealed for the archive and opened again: `_raw`, the ordering key, the values of attributes.

Columns keep their types: a sealed text is base64. Names of attributes, ids and times stay readable, or nothing could be found again.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import pyarrow as pa

from beam_pipelines.arrow.masking import open_sealed, seal
from beam_pipelines.arrow.schema import ATTRIBUTES, ORDERING_KEY, RAW

_Change = Callable[[pa.Array], pa.Array]


def sealed(messages: pa.RecordBatch, key: bytes) -> pa.RecordBatch:
    """`messages` with their content encrypted under `key`, value by value."""
    return _changed(messages, lambda raw: seal(raw, key), lambda texts: _base64(seal(texts.cast(pa.binary()), key)))


def opened(messages: pa.RecordBatch, key: bytes) -> pa.RecordBatch:
    """What `sealed` was given. Raises SpecError where the key is another one or the bytes were changed."""
    return _changed(messages, lambda raw: open_sealed(raw, key), lambda texts: open_sealed(_bytes(texts), key).cast(pa.string()))


def _changed(messages: pa.RecordBatch, raw: _Change, texts: _Change) -> pa.RecordBatch:
    change: dict[str, _Change] = {RAW: raw, ORDERING_KEY: texts, ATTRIBUTES: lambda column: _with_items(column, texts)}
    columns = [change[n](c) if n in change else c for n, c in zip(messages.schema.names, messages.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=messages.schema)


def _with_items(attributes: pa.MapArray, texts: _Change) -> pa.MapArray:
    own = attributes.take(pa.array(range(len(attributes)), pa.int64()))  # a slice still has the items of its parent
    return pa.MapArray.from_arrays(own.offsets, own.keys, texts(own.items), own.type, mask=own.is_null())


def _base64(values: pa.Array) -> pa.Array:
    return pa.array([None if v is None else base64.b64encode(v).decode() for v in values.to_pylist()], pa.string())  # no kernel does it


def _bytes(texts: pa.Array) -> pa.Array:
    return pa.array([None if v is None else base64.b64decode(v) for v in texts.to_pylist()], pa.binary())
