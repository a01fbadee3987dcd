"""Files of a sink wherever they lie: a local path by plain calls of the system, gs:// through google-cloud-storage, any other URL through Beam's
filesystems.

Neither library is imported before its first URL comes, so that `query` and `validate` stay quick.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import repeat
from typing import Any, BinaryIO, TypeVar

from beam_pipelines.places.held import Held
from beam_pipelines.places.refusing import RefusedError, StagedFileGoneError, refused

T = TypeVar("T")
_TOGETHER = 16
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # exFAT, some SMB and FUSE
_HERE, _NOREPLACE = -100, 1  # AT_FDCWD, RENAME_NOREPLACE

__all__ = ["Held", "StagedFileGoneError", "create_new", "delete", "delete_tree", "each", "exists", "holds", "is_local", "join", "list_files", "list_folders", "local", "locked", "missing",
           "modified", "move", "open_new", "open_read", "parent", "prune_folders", "publish", "read_bytes", "read_held", "refused", "secure", "secure_folders", "size",
           "stamp", "swap", "write_bytes"]  # fmt: skip


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
        return _at(path).open_new(path)  # type: ignore[no-any-return]
    except OSError as error:
        raise refused(path, error) from error


def open_read(path: str) -> BinaryIO:
    """An existing file for reading. Raises FileNotFoundError or OSError."""
    if is_local(path):
        return open(local(path), "rb")
    return _at(path).open_read(path)  # type: ignore[no-any-return]


def read_bytes(path: str) -> bytes | None:
    """The content of `path`, or None if there is no such file."""
    if not is_local(path):
        with _telling(path, "read"):
            return _at(path).read_bytes(path)  # type: ignore[no-any-return]
    try:
        with _telling(path, "read"), open(local(path), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_bytes(path: str, content: bytes) -> None:
    """Writes or replaces `path` at once: a reader sees the old content or the new, never a part."""
    if not is_local(path):
        with _telling(path, "write"):
            return _at(path).write_bytes(path, content)  # type: ignore[no-any-return]
    made = _beside(path, content)
    try:
        os.replace(made, local(path))
    except OSError as error:
        raise refused(path, error) from error


def create_new(path: str, content: bytes) -> bool:
    """Writes `path` if nobody has; True for exactly one of all who try at once, and then content and name survive a power failure.

    At a URL of Beam's filesystems, which know no condition, two who try at once may both lose, never both win.
    """
    if not is_local(path):
        with _telling(path, "write"):
            return _at(path).create_new(path, content)  # type: ignore[no-any-return]
    made = _beside(path, content)
    try:
        _name_new(made, local(path))
        _sync_name(path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(made)


def _name_new(made: str, path: str) -> None:
    """Gives `made` the name `path`, which nobody has. Raises FileExistsError; OSError where the file system has no way to do it at once."""
    try:
        os.link(made, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        failed = _rename_new(made, path)
        if failed == errno.EEXIST:
            raise FileExistsError(path) from None
        if failed:
            raise RefusedError(
                "the file system knows neither hard links nor renames that replace nothing", "Choose another path"
            ) from error


def _rename_new(made: str, path: str) -> int:
    """renameat2(2), which replaces nothing; 0, or what is wrong."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # no Linux
        return errno.ENOSYS
    return ctypes.get_errno() if rename(_HERE, os.fsencode(made), _HERE, os.fsencode(path), _NOREPLACE) else 0


def read_held(path: str) -> Held | None:
    """The file as it is, for `swap`; None if there is none."""
    if path.startswith("gs://"):
        with _telling(path, "read"):
            return _at(path).read_held(path)  # type: ignore[no-any-return]
    content = read_bytes(path)
    return None if content is None else Held(content)


def swap(path: str, held: Held, content: bytes | None) -> bool:
    """Replaces `path` (None: deletes it) where it still is what was read, and says whether it was.

    At once on gs://; elsewhere it looks first, so who swaps holds the folder (`locked`).
    """
    if path.startswith("gs://"):
        with _telling(path, "write"):
            return bool(_at(path).swap(path, held, content))
    if read_bytes(path) != held.content:
        return False
    delete(path) if content is None else write_bytes(path, content)
    return True


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
    if is_local(path):
        return os.path.exists(local(path))
    with _telling(path, "look for it"):
        return bool(_at(path).exists(path))


def missing(paths: Sequence[str], folder: str) -> list[str]:
    """Those of the files, which lie below `folder`, that are not there: at URLs by one listing."""
    if is_local(folder):
        return [path for path in paths if not os.path.exists(local(path))]
    with _telling(folder, "list"):
        return sorted({*paths} - {*_at(folder).paths_below(folder)})


def modified(folder: str) -> int | None:
    """When files in `folder` last came or went, in nanoseconds; None where that is not known: on a URL, whose service
    has another clock than the files' names, or where there is no such folder."""
    if not is_local(folder):
        return None
    try:
        return os.stat(local(folder)).st_mtime_ns
    except OSError:
        return None


def stamp(folder: str) -> int | None:
    """What differs from before when a file has come to `folder` since; None where that is not known. Some seconds old for gs://."""
    if is_local(folder):
        return modified(folder)
    with _telling(folder, "list"):
        return _at(folder).stamp(folder)  # type: ignore[no-any-return]


def move(source: str, target: str) -> None:
    """Moves a file, replacing `target`. Done before: nothing happens. Raises StagedFileGoneError if neither is there."""
    try:
        if is_local(target):
            _rename(local(source), local(target))
        else:
            _at(target).move(source, target)
    except FileNotFoundError as error:
        if not exists(target):
            raise StagedFileGoneError(target, source) from error
    except OSError as error:
        raise refused(target, error, doing="move a file to it") from error


def _rename(source: str, target: str) -> None:
    """Again where the folder went meanwhile: another commit deletes folders that it leaves empty."""
    for attempt in range(3):
        os.makedirs(parent(target), exist_ok=True)
        try:
            os.replace(source, target)
            return
        except FileNotFoundError:
            if attempt == 2 or not os.path.exists(source):
                raise


def publish(made: str, path: str) -> None:
    """Gives the closed file `made` its name `path`, in the same folder; when this returns, content and name survive a power failure."""
    if not is_local(path):
        return move(made, path)
    try:
        _sync(local(made))
        os.replace(local(made), local(path))
        _sync_name(path)
    except OSError as error:
        raise refused(path, error) from error


def secure(paths: Sequence[str]) -> None:
    """When this returns, content and names of these closed files survive a power failure. Nothing to do on URLs, whose services promise it."""
    _each_synced([path for path in paths if is_local(path)], _sync)
    secure_folders({parent(path) for path in paths})


def secure_folders(folders: Collection[str]) -> None:
    """When this returns, what came to these folders and went from them did so for good; they may be gone themselves."""
    mine = {_there(local(folder)) for folder in folders if is_local(folder)}
    _each_synced(sorted(mine), _sync_there)
    for above in {above for folder in mine for above in _above(folder)} - mine:
        with suppress(OSError):  # folders above ours need not be ours to read
            _sync(above)


def _there(folder: str) -> str:
    """The folder, or the first above it that is there."""
    folder = os.path.abspath(folder)
    return folder if os.path.isdir(folder) or folder == os.path.dirname(folder) else _there(os.path.dirname(folder))


def _sync_there(folder: str) -> None:
    """Again where the folder went meanwhile: another commit deletes folders that it leaves empty."""
    try:
        _sync(folder)
    except FileNotFoundError:
        _sync_there(_there(folder))


def _each_synced(paths: Sequence[str], sync: Callable[[str], None]) -> None:
    """Several at a time: a disk writes them together then, in a third of the time."""
    if len(paths) < _TOGETHER:
        for path in paths:
            _synced(path, sync)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_TOGETHER) as threads:
        for _ in threads.map(_synced, paths, repeat(sync)):
            pass


def _synced(path: str, sync: Callable[[str], None]) -> None:
    try:
        sync(local(path))
    except OSError as error:
        raise refused(path, error) from error


def _sync_name(path: str) -> None:
    _sync(parent(local(path)))
    _sync_parents(parent(local(path)))


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@lru_cache(4096)
def _sync_parents(folder: str) -> None:
    """A folder's own name is durable when the folder above it is; once per folder and process."""
    for above in _above(folder):
        with suppress(OSError):  # folders above ours need not be ours to read
            _sync(above)


def _above(folder: str) -> Iterator[str]:
    folder = os.path.abspath(folder)
    while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        yield folder


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
    else:
        with _telling(path, "delete"):
            _at(path).delete(path)


def delete_tree(folder: str) -> None:
    """Deletes a folder and all in it, if it is there."""
    if is_local(folder):
        shutil.rmtree(local(folder), ignore_errors=True)
    else:
        with _telling(folder, "delete"):
            _at(folder).delete_tree(folder)


def each(path: str, do: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """What `do` gives for each of the arguments, which are about files near `path`: in order, on Cloud Storage as it comes, several at a time. What one raises ends it."""
    if is_local(path):
        yield from (do(*call) for call in calls)
    else:
        yield from _at(path).each(do, calls)


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
        return _listed(folder, lambda entry: entry.is_file())
    with _telling(folder, "list"):
        return _at(folder).list_files(folder)  # type: ignore[no-any-return]


def list_folders(folder: str) -> list[str]:
    """Names of the folders in `folder`, sorted."""
    if is_local(folder):
        return _listed(folder, lambda entry: entry.is_dir())
    with _telling(folder, "list"):
        return _at(folder).list_folders(folder)  # type: ignore[no-any-return]


def _listed(folder: str, kept: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    try:
        with _telling(folder, "list"), os.scandir(local(folder)) as entries:
            return sorted(entry.name for entry in entries if kept(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []


def holds(folder: str, ending: str) -> bool:
    """Whether there is a file with this ending below `folder`, at any depth."""
    with _telling(folder, "list"):
        if not is_local(folder):
            return bool(_at(folder).holds(folder, ending))
        return any(name.endswith(ending) for _, _, names in os.walk(local(folder), onerror=_raise_unless_gone) for name in names)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def size(paths: Sequence[str]) -> int:
    """Bytes of the files together (0 for those at URLs of Beam's filesystems). Raises FileNotFoundError."""
    return sum(os.path.getsize(local(p)) if is_local(p) else _size(p) for p in paths)


def _size(path: str) -> int:
    with _telling(path, "look for it"):
        return int(_at(path).size(path))


def _at(path: str) -> Any:
    """What reaches the files of a URL: a module with the functions of this one."""
    if path.startswith("gs://"):
        from beam_pipelines.places import gcs

        return gcs
    from beam_pipelines.places import beam_urls

    return beam_urls


@contextmanager
def _telling(path: str, doing: str) -> Iterator[None]:
    """What a place refuses, as a sentence for the user. That there is no file, or no folder, is for the caller."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise refused(path, error, doing=doing) from error
