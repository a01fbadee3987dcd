"""Functions as users write them for `apply`."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.errors import RunError

CALLS: list[int] = []


def double(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Changes a column it was given."""
    return batch.set_column(0, "x", pc.multiply(batch["x"], 2))


def invert(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Adds 100 // x; raises on the whole batch where an x is 0."""
    CALLS.append(batch.num_rows)
    return pa.record_batch({"inverse": pa.array([100 // x for x in batch["x"].to_pylist()], pa.int64())})


def copies_email(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Adds what it sees under another name."""
    return batch.append_column("copy", batch["email"])


def too_short(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(1)


def undeclared(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.append_column("surprise", batch["x"])


def nothing(batch: pa.RecordBatch) -> None:
    return None


def sees(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"seen": [",".join(batch.schema.names)] * batch.num_rows})


def narrow(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"y": pc.multiply(batch["x"], 100)})


def text_of(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Numbers as texts, all of which would convert."""
    return pa.record_batch({"y": [str(x) for x in batch["x"].to_pylist()]})


def list_of_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A number as the only text of a list."""
    return pa.record_batch({"y": [[str(x)] for x in batch["x"].to_pylist()]})


def as_it_is(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def text_as_it_is(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Bytes called a text, whatever they are."""
    return pa.record_batch({"y": pa.array(batch["x"].to_pylist(), pa.binary()).view(pa.string())})


def texts_as_they_are(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"y": pa.ListArray.from_arrays(list(range(batch.num_rows + 1)), text_as_it_is(batch)["y"])})


def list_of_nothing(batch: pa.RecordBatch) -> pa.RecordBatch:
    """An empty list, of no type."""
    return pa.record_batch({"y": [[]] * batch.num_rows})


def of_another_kind(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.set_column(0, "x", pa.array([True] * batch.num_rows))


def offline(batch: pa.RecordBatch) -> pa.RecordBatch:
    CALLS.append(batch.num_rows)
    raise ConnectionRefusedError("port 80")


def not_installed(batch: pa.RecordBatch) -> pa.RecordBatch:
    import no_such_package  # type: ignore[import-not-found]  # noqa: F401

    return batch


def stops(batch: pa.RecordBatch) -> pa.RecordBatch:
    raise RunError("the table of rates is empty.")


NOT_A_FUNCTION = 1
