"""Files at any URL of Beam's filesystems (s3://, hdfs://, ...): the least that all of them can."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")


def open_new(path: str) -> BinaryIO:
    """A new file for writing."""
    return _beam().create(path, "application/octet-stream", _plain())  # type: ignore[no-any-return]


def open_read(path: str) -> BinaryIO:
    """An existing file for reading."""
    return _beam().open(path, "application/octet-stream", _plain())  # type: ignore[no-any-return]


def read_bytes(path: str) -> bytes | None:
    """The content of `path`, or None if there is no such file."""
    if not exists(path):
        return None
    with open_read(path) as file:
        return file.read()


def write_bytes(path: str, content: bytes) -> None:
    """Writes or replaces `path`."""
    with open_new(path) as file:
        file.write(content)


def create_new(path: str, content: bytes) -> bool:
    """Each writes a claim, then lists the claims, and withdraws if it sees another's. So two may both lose, never both win
    (listings of object stores are consistent)."""
    folder, _, name = path.rpartition("/")
    mine = f"{path}.claim-{uuid.uuid4().hex}"
    write_bytes(mine, b"")
    try:
        rivals = [n for n in list_files(folder) if n.startswith(f"{name}.claim-") and not mine.endswith(n)]
        if rivals or exists(path):
            return False
        write_bytes(path, content)
        return True
    finally:
        delete(mine)


def exists(path: str) -> bool:
    """Whether the file is there."""
    return bool(_beam().exists(path))


def move(source: str, target: str) -> None:
    """Moves a file, replacing `target`. Raises FileNotFoundError if neither is there."""
    if exists(source):
        if exists(target):
            _beam().delete([target])  # a copy whose source could not be deleted before the process died
        _beam().rename([source], [target])
    elif not exists(target):
        raise FileNotFoundError(source)


def delete(path: str) -> None:
    """Deletes a file if it is there."""
    if exists(path):
        _beam().delete([path])


def delete_tree(folder: str) -> None:
    """Deletes all files below a folder."""
    found = paths_below(folder)
    if found:
        _beam().delete(found)


def paths_below(folder: str) -> list[str]:
    """The paths of all files below a folder."""
    return [m.path for result in _beam().match([f"{folder.rstrip('/')}/**"]) for m in result.metadata_list]


def each(do: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """What `do` gives for each of the arguments, in order. What one raises ends it."""
    yield from (do(*call) for call in calls)


def list_files(folder: str) -> list[str]:
    """Names of the files in `folder`."""
    return sorted(name for name in _names(folder, "*") if "/" not in name)


def list_folders(folder: str) -> list[str]:
    """Names of the folders in `folder`."""
    return sorted({name.split("/", 1)[0] for name in _names(folder, "**") if "/" in name})


def stamp(folder: str) -> int | None:
    """Not known."""
    return None


def holds(folder: str, ending: str) -> bool:
    """Whether there is a file with this ending below a folder: said without looking, for that takes long."""
    return True


def size(path: str) -> int:
    """Not known: Beam tells it by a listing only."""
    return 0


def _names(folder: str, pattern: str) -> Iterator[str]:
    start = folder.rstrip("/") + "/"
    for result in _beam().match([start + pattern]):
        for metadata in result.metadata_list:
            yield metadata.path.removeprefix(start)


def _beam() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _plain() -> Any:
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED  # never by the file's ending: what is written here is compressed already
