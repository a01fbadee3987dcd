"""Whether a folder takes files, found out by making one; nothing is left there."""

from __future__ import annotations

import os
import threading
import uuid
from contextlib import nullcontext, suppress

from beam_pipelines.errors import RunError, SinkError
from beam_pipelines.places import create_new, delete, is_local, join, local, prune_folders

_by_device: dict[int, threading.Lock] = {}
"""Folders that one has made are in another's way; a mount that hangs is in nobody's but its own."""


def expect_writable(folder: str) -> None:
    """Makes a file in `folder`, tries to make it again, and deletes it, with the folders that were made for it.

    Raises SinkError where one of that is refused, or where the second try was let through: commits and starts of a stream stand on files that only one can make.
    """
    place = os.path.abspath(local(folder)) if is_local(folder) else folder
    path = join(place, f"writable-{uuid.uuid4().hex}")
    with _by_device.setdefault(_device(place), threading.Lock()) if is_local(place) else nullcontext():
        top = nearest_folder(place) if is_local(place) else place
        try:
            alone = _made_once(path, folder)
        finally:
            prune_folders(place, top)
    if not alone:
        raise SinkError(
            f"{folder}: a file that was there could be made a second time; expected a place where only one of two succeeds.",
            hint="Choose another place.",
        )


def nearest_folder(folder: str) -> str:
    """The nearest folder above a plain path that is there, or itself."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def _made_once(path: str, folder: str) -> bool:
    """Whether of two who make the file only the first succeeds; it is gone then. One that cannot be deleted is named by the error."""
    try:
        alone = create_new(path, b"") and not create_new(path, b"")
    except BaseException as error:
        with suppress(RunError, OSError):
            delete(path)
        if isinstance(error, SinkError):
            raise SinkError(error.message.replace(path, folder), hint="Choose another place, or have this one opened.") from error
        raise
    delete(path)
    return alone


def _device(path: str) -> int:
    """Of what is there of the path."""
    try:
        return os.stat(path).st_dev
    except OSError:
        if os.path.dirname(path) == path:
            raise
        return _device(os.path.dirname(path))
