"""How `verify` reads layers that are being compacted, within the memory it was given."""

from __future__ import annotations

from collections.abc import Callable

import duckdb

from beam_pipelines.errors import RunError
from beam_pipelines.places.sql import said
from beam_pipelines.serving import retrying
from beam_pipelines.serving.retrying import T


def retry(read: Callable[[], T]) -> T:
    """What `read` gives, again where a file vanished. Raises RunError where files cannot be read, or memory or the temporary folder is too small."""
    try:
        return retrying.retry(read, whose="verify")
    except duckdb.OutOfMemoryException as error:
        raise RunError(
            f"verify: {said(error)}", hint="Give it more: --memory 2GB; TMPDIR says where it lays aside what does not fit."
        ) from error
