"""Whether a folder takes files, found out by making one; nothing is left there."""

from __future__ import annotations

import os
import threading
import uuid
from contextlib import nullcontext, suppress

from beam_pipelines.errors import SinkError
from beam_pipelines.places import create_new, delete, is_local, join, local, parent, prune_folders

_one_at_a_time = threading.Lock()  # folders that one has made on this machine's disk are in another's way


def expect_writable(folder: str) -> None:
    """Makes a file in `folder`, tries to make it again, and deletes it, with the folders that were made for it.

    Raises SinkError where that is refused, or where the second try was let through: commits and starts of a stream stand on files that only one can make.
    """
    with _one_at_a_time if is_local(folder) else nullcontext():
        path, top = join(folder, f"writable-{uuid.uuid4().hex}"), _nearest(folder)
        try:
            alone = create_new(path, b"") and not create_new(path, b"")
        except SinkError as error:
            raise SinkError(error.message.replace(path, folder), hint="Choose another place, or have this one opened.") from error
        finally:
            with suppress(SinkError, OSError):
                delete(path)
            prune_folders(folder, top)
    if not alone:
        raise SinkError(
            f"{folder}: a file that was there could be made a second time; expected a place where only one of two succeeds.",
            hint="Choose another place.",
        )


def _nearest(folder: str) -> str:
    """The nearest folder above that is there, or `folder` itself."""
    while is_local(folder) and not os.path.isdir(local(folder)) and parent(local(folder)) not in (".", folder):
        folder = parent(local(folder))
    return folder
