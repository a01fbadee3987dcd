"""Reading files that are merged and deleted meanwhile: a statement whose file vanished is asked again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import duckdb

from beam_pipelines.errors import RunError
from beam_pipelines.places.sql import gone, said

T = TypeVar("T")
_TRIES = 5


def retry(read: Callable[[], T], *, whose: str) -> T:
    """What `read` gives, again where a file vanished: readers list files when they begin, and what was merged is deleted a minute later.

    Raises RunError, which begins with `whose` it is, where a file is gone for good.
    """
    for _ in range(_TRIES - 1):
        try:
            return read()
        except duckdb.Error as error:
            if not gone(error):
                raise
    try:
        return read()
    except duckdb.Error as error:
        if not gone(error):
            raise
        raise RunError(f"{whose}: {said(error)}", hint="A file is gone or broken; a new run over its range writes it again.") from error
