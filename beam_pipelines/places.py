"""Files of a sink wherever they lie: a local path by plain calls of the system, any URL through Beam's filesystems.

Beam is imported for a URL only, so that `query` and `validate` stay quick.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, BinaryIO

from beam_pipelines.errors import SinkError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free space, or choose another path"),
    errno.EDQUOT: ("the disk quota is used up", "Free space, or choose another path"),
    errno.EFBIG: ("a file would grow past the limit of this process or file system", "Lower `target_file_bytes`, or raise the limit (ulimit -f)"),
    errno.EACCES: ("permission denied", "Grant write permission, or choose another path"),
    errno.EPERM: ("operation not permitted", "Grant write permission, or choose another path"),
    errno.EROFS: ("the file system is read-only", "Choose another path"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "Choose another path"),
    errno.EEXIST: ("a file is in the way of a directory", "Choose another path"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Choose a shorter path"),
    errno.EMFILE: ("too many open files", "Lower `max_open_files`, or raise the limit (ulimit -n)"),
}  # fmt: skip


def refused(path: str, error: OSError, *, doing: str = "write") -> SinkError:
    """The error a user sees when the world refuses a write: what was refused, why, and what to do."""
    reason, advice = _REASONS.get(error.errno or 0, (str(error) or type(error).__name__, "Check the path and its permissions"))
    return SinkError(f"{path}: cannot {doing}: {reason}.", hint=f"{advice}, then run again: nothing was committed.")


def is_local(path: str) -> bool:
    """Whether `path` is on this machine's file system."""
    return "://" not in path or path.startswith("file://")


def local(path: str) -> str:
    """The plain path of a local path or file:// URL."""
    return path.removeprefix("file://")


def join(folder: str, *parts: str) -> str:
    """A path below `folder`, with slashes, for paths and URLs alike."""
    return "/".join([folder.rstrip("/"), *filter(None, parts)])


def parent(path: str) -> str:
    """The folder of `path`."""
    return path.rpartition("/")[0] or "."


def open_new(path: str) -> BinaryIO:
    """A new file for writing; its folders are made."""
    try:
        if is_local(path):
            os.makedirs(parent(local(path)), exist_ok=True)
            return open(local(path), "wb")
        return _beam().create(path, "application/octet-stream", _plain())  # type: ignore[no-any-return]
    except OSError as error:
        raise refused(path, error) from error


def open_read(path: str) -> BinaryIO:
    """An existing file for reading. Raises FileNotFoundError or OSError."""
    if is_local(path):
        return open(local(path), "rb")
    return _beam().open(path, "application/octet-stream", _plain())  # type: ignore[no-any-return]


def read_bytes(path: str) -> bytes | None:
    """The content of `path`, or None if there is no such file."""
    try:
        if is_local(path):
            with open(local(path), "rb") as file:
                return file.read()
        if not exists(path):
            return None
        with open_read(path) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_bytes(path: str, content: bytes) -> None:
    """Writes or replaces `path` at once: a reader sees the old content or the new, never a part."""
    if not is_local(path):
        with open_new(path) as file:
            file.write(content)
        return
    made = _beside(path, content)
    try:
        os.replace(made, local(path))
    except OSError as error:
        raise refused(path, error) from error


def create_new(path: str, content: bytes) -> bool:
    """Writes `path` if nobody has; True for exactly one of all who try at once.

    On a URL: each writes a claim, then lists the claims, and withdraws if it sees another's. So two may both lose, never both win
    (listings of object stores are consistent).
    """
    if is_local(path):
        made = _beside(path, content)
        try:
            os.link(made, local(path))
            return True
        except FileExistsError:
            return False
        finally:
            os.unlink(made)
    mine = f"{path}.claim-{uuid.uuid4().hex}"
    write_bytes(mine, b"")
    try:
        rivals = [n for n in list_files(parent(path)) if n.startswith(path.rpartition("/")[2] + ".claim-") and not mine.endswith(n)]
        if rivals or exists(path):
            return False
        write_bytes(path, content)
        return True
    finally:
        delete(mine)


def _beside(path: str, content: bytes) -> str:
    made = f"{local(path)}.{uuid.uuid4().hex}.tmp"
    try:
        os.makedirs(parent(local(path)), exist_ok=True)
        with open(made, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            os.unlink(made)
        raise refused(path, error) from error
    return made


def exists(path: str) -> bool:
    """Whether the file is there."""
    return os.path.exists(local(path)) if is_local(path) else bool(_beam().exists(path))


def modified(folder: str) -> int | None:
    """When files in `folder` last came or went, in nanoseconds; None where that is not known: on a URL, or where there is no such folder."""
    if not is_local(folder):
        return None
    try:
        return os.stat(local(folder)).st_mtime_ns
    except OSError:
        return None


def move(source: str, target: str) -> None:
    """Moves a file, replacing `target`. Done before: nothing happens. Raises SinkError if neither is there."""
    try:
        if is_local(target):
            os.makedirs(parent(local(target)), exist_ok=True)
            os.replace(local(source), local(target))
        elif exists(source):
            if exists(target):
                _beam().delete([target])  # a copy whose source could not be deleted before the process died
            _beam().rename([source], [target])
        elif not exists(target):
            raise FileNotFoundError(source)
    except FileNotFoundError as error:
        if not exists(target):
            raise SinkError(
                f"{target}: its staged file {source} is gone.", hint="Somebody deleted it while the run committed; run again."
            ) from error
    except OSError as error:
        raise refused(target, error, doing="move a file to it") from error


def publish(made: str, path: str) -> None:
    """Gives the closed file `made` its name `path`, in the same folder; when this returns, content and name survive a power failure."""
    if not is_local(path):
        return move(made, path)
    try:
        _sync(local(made))
        os.replace(local(made), local(path))
        _sync(parent(local(path)))
        _sync_parents(parent(local(path)))
    except OSError as error:
        raise refused(path, error) from error


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@lru_cache(4096)
def _sync_parents(folder: str) -> None:
    """A folder's own name is durable when the folder above it is; once per folder and process."""
    folder = os.path.abspath(folder)
    while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        with suppress(OSError):  # folders above ours need not be ours to read
            _sync(folder)


@contextmanager
def locked(folder: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds `folder` against all who ask for it on this machine, by an advisory lock that ends with the process; it is made if missing.

    Gives False, without `wait`, while another holds it. A folder on a URL, or on a system without such locks, is given to everyone.
    """
    if not is_local(folder):
        yield True
        return
    try:
        os.makedirs(local(folder), exist_ok=True)
        handle = os.open(local(folder), os.O_RDONLY)
    except OSError as error:
        raise refused(folder, error) from error
    try:
        yield _flock(handle, wait)
    finally:
        os.close(handle)


def _flock(handle: int, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def delete(path: str) -> None:
    """Deletes a file if it is there."""
    if is_local(path):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(local(path))
    elif exists(path):
        _beam().delete([path])


def delete_tree(folder: str) -> None:
    """Deletes a folder and all in it, if it is there."""
    if is_local(folder):
        shutil.rmtree(local(folder), ignore_errors=True)
    else:
        found = [m.path for result in _beam().match([join(folder, "**")]) for m in result.metadata_list]
        if found:
            _beam().delete(found)


def prune_folders(folder: str, top: str) -> None:
    """Removes `folder` and its parents below `top` while they are empty (object stores have no folders)."""
    while is_local(folder) and len(folder) > len(top.rstrip("/")):
        try:
            os.rmdir(local(folder))
        except OSError:
            return
        folder = parent(folder)


def list_files(folder: str) -> list[str]:
    """Names of the files in `folder`, sorted; [] if there is no such folder."""
    if is_local(folder):
        try:
            with os.scandir(local(folder)) as entries:
                return sorted(e.name for e in entries if e.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted(name for name in _remote_names(folder, "*") if "/" not in name)


def list_folders(folder: str) -> list[str]:
    """Names of the folders in `folder`, sorted."""
    if is_local(folder):
        try:
            with os.scandir(local(folder)) as entries:
                return sorted(e.name for e in entries if e.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted({name.split("/", 1)[0] for name in _remote_names(folder, "**") if "/" in name})


def _remote_names(folder: str, pattern: str) -> Iterator[str]:
    base = folder.rstrip("/") + "/"
    for result in _beam().match([base + pattern]):
        for metadata in result.metadata_list:
            yield metadata.path.removeprefix(base)


def size(paths: Sequence[str]) -> int:
    """Bytes of the files together (local only; 0 for URLs)."""
    return sum(os.path.getsize(local(p)) for p in paths if is_local(p))


def _beam() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _plain() -> Any:
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED  # never by the file's ending: what is written here is compressed already
