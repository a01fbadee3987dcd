"""Reading a speed layer that is being compacted: a statement whose file vanished is asked again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import duckdb

from beam_pipelines.errors import RunError
from beam_pipelines.places.sql import gone, said

T = TypeVar("T")
_TRIES = 5


def again(read: Callable[[], T]) -> T:
    """What `read` gives, again where a file vanished: readers list files when they begin, and what was merged is deleted a minute later.

    Raises RunError where files cannot be read, or memory or the temporary folder is too small.
    """
    for left in reversed(range(_TRIES)):
        try:
            return read()
        except duckdb.OutOfMemoryException as error:
            raise RunError(
                f"verify: {said(error)}", hint="Give it more: --memory 2GB; TMPDIR says where it lays aside what does not fit."
            ) from error
        except duckdb.Error as error:
            if not gone(error):
                raise
            if not left:
                raise RunError(
                    f"verify: {said(error)}", hint="A file is gone or broken; a new run over its range writes it again."
                ) from error
    raise AssertionError("unreachable")
