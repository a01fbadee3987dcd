"""A step of a user that brings its process down where a record says so, as a fault in a library would."""

from __future__ import annotations

import faulthandler
import os
import signal

import pyarrow as pa
import pyarrow.compute as pc


def fatal(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows as they are; a signal of the kernel where one is called `crash`, an exception where one is called `raise`, no end where `hang`."""
    words = set(batch.column("word").to_pylist())
    if "crash" in words:
        faulthandler.disable()  # its report would look like a failure of the tests
        os.kill(os.getpid(), signal.SIGSEGV)
    if "exit" in words:
        os._exit(3)
    if "hang" in words:
        signal.pause()
    if "raise" in words:
        raise ValueError("an exception, no crash")
    return batch.append_column("seen", pc.is_valid(batch.column("word")))
