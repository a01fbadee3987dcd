"""Places: the same commit on a local path and on a URL, here one of a file system registered with Beam."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from apache_beam.io.localfilesystem import LocalFileSystem

from beam_pipelines import places
from beam_pipelines.errors import SinkError
from beam_pipelines.sinks.claims import holders
from beam_pipelines.sinks.committing import abandon, commit_steps, prepare
from beam_pipelines.sinks.manifest import snapshots, unfinished
from beam_pipelines.sinks.run import Output
from tests.sinks.lake import Lake, rows

ROOT = Path(tempfile.gettempdir())
SCHEME = "shelf"


class ShelfFileSystem(LocalFileSystem):  # type: ignore[misc]
    """`shelf:///x` is a file below the temporary folder, reached through Beam only."""

    @classmethod
    def scheme(cls) -> str:
        return SCHEME

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def has_dirs(self) -> bool:
        return True

    def _plain(self, path: Any) -> Any:
        return path.removeprefix(f"{SCHEME}://") if isinstance(path, str) else [self._plain(p) for p in path]

    def _list(self, dir_or_prefix: str) -> Iterator[Any]:
        for found in super()._list(self._plain(dir_or_prefix)):
            found.path = f"{SCHEME}://{found.path}"
            yield found

    def _path_open(self, path: str, mode: str, *rest: Any, **more: Any) -> Any:
        if "w" in mode:
            Path(self._plain(path)).parent.mkdir(parents=True, exist_ok=True)
        return super()._path_open(self._plain(path), mode, *rest, **more)

    def create(self, path: str, *rest: Any, **more: Any) -> Any:
        return super().create(self._plain(path), *rest, **more)

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for target in self._plain(destination_file_names):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        super().rename(self._plain(source_file_names), self._plain(destination_file_names))

    def exists(self, path: str) -> bool:
        return bool(super().exists(self._plain(path)))

    def delete(self, paths: list[str]) -> None:
        super().delete(self._plain(paths))


class Shelf(Lake):
    """A lake behind URLs."""

    @property
    def state(self) -> str:
        return f"{SCHEME}://{self.folder}/state"

    def output(self, name: str = "out", **more: Any) -> Output:
        return Output(name, "rows", f"{SCHEME}://{self.folder}/{name}", **{"partitions": ("k",), **more})

    def view(self, output: str = "out") -> list[tuple[int, str | None]]:
        found = snapshots(self.state).get(output)
        paths = [p.removeprefix(f"{SCHEME}://") for p in found.paths] if found else []
        if not paths:
            return []
        return sorted(
            duckdb.connect()
            .execute("SELECT n, k FROM read_parquet(?, hive_partitioning = true, hive_types = {'k': VARCHAR})", [paths])
            .fetchall(),
            key=repr,
        )


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_run_on_a_url_replaces_its_partitions(shelf: Shelf) -> None:
    shelf.go("r1", shelf.output(), rows((1, "a"), (2, "b")))
    shelf.go("r2", shelf.output(), rows((3, "b")))
    assert shelf.view() == shelf.glob() == [(1, "a"), (3, "b")]
    assert len(shelf.files()) == 2


def test_on_a_url_too_a_commit_stopped_after_any_step_can_be_redone(tmp_path: Path) -> None:
    for stop in range(12):
        shelf = Shelf(tmp_path / str(stop))
        shelf.go("r1", shelf.output(), rows((1, "a"), (2, "b")))
        run = shelf.run("r2")
        work = shelf.work(run, [shelf.output()], shelf.stage(run, shelf.output(), rows((3, "b"))))
        steps = commit_steps(work)
        for _ in range(stop):
            next(steps, None)
        assert shelf.view() in ([(1, "a"), (2, "b")], [(1, "a"), (3, "b")])
        list(commit_steps(work))
        assert shelf.view() == shelf.glob() == [(1, "a"), (3, "b")]
        assert not list(unfinished(shelf.state))


def test_on_a_url_too_one_run_at_a_time(shelf: Shelf) -> None:
    prepare([shelf.output()], shelf.run("r1"))
    with pytest.raises(SinkError, match="run 'r1' writes it"):
        prepare([shelf.output()], shelf.run("r2"))
    abandon([shelf.output()], shelf.run("r1"))
    assert not holders(shelf.output())


@pytest.mark.parametrize("prefix", ["", f"{SCHEME}://"])
def test_of_many_who_create_at_once_at_most_one_wins(tmp_path: Path, prefix: str) -> None:
    for attempt in range(10):
        path = f"{prefix}{tmp_path}/{attempt}/new"
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(lambda i: places.create_new(path, str(i).encode()), range(4)))  # noqa: B023
        assert sum(won) <= 1
        assert not prefix or sum(won) == 1 or not places.exists(path)
        if any(won):
            assert places.read_bytes(path) == str(won.index(True)).encode()
            assert not places.create_new(path, b"late")
        assert [n for n in places.list_files(f"{prefix}{tmp_path}/{attempt}") if n != "new"] == []


def test_locally_one_always_wins(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda i: places.create_new(str(tmp_path / "new"), str(i).encode()), range(8))) == 1


@pytest.mark.parametrize("many", [1, 40])
def test_a_folder_that_another_commit_prunes_meanwhile_is_secured_by_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    folders = [tmp_path / "k=1" / f"d={n}" for n in range(many)]
    for folder in folders:
        folder.mkdir(parents=True)
    synced, sync = set(), places._sync

    def pruned_first(path: str) -> None:
        places.prune_folders(path, str(tmp_path))
        sync(path)
        synced.add(path)

    monkeypatch.setattr(places, "_sync", pruned_first)
    places.secure_folders([str(folder) for folder in folders])
    assert str(tmp_path) in synced
    assert not any(folder.exists() for folder in folders)


@contextmanager
def nobody() -> Iterator[None]:
    """Ends root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_local_folder_that_may_not_be_read_is_a_sentence_and_one_that_is_none_is_empty(tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    (shut / "folder").mkdir(parents=True)
    (shut / "file").write_bytes(b"x")
    looks: list[Callable[[], object]] = [
        partial(places.list_files, str(shut)), partial(places.list_folders, f"file://{shut}"), partial(places.holds, str(shut), ""),
        partial(places.read_bytes, str(shut / "file")), partial(places.list_files, str(tmp_path / ("x" * 300))),
    ]  # fmt: skip
    shut.chmod(0)
    try:
        with nobody():
            for look in looks:
                with pytest.raises(SinkError, match=r"cannot (list|read): (permission denied|the name is too long)") as found:
                    look()
                assert "nothing was committed" not in str(found.value)
            with pytest.raises(SinkError, match="Grant permission to read it"):
                looks[0]()
    finally:
        shut.chmod(0o700)
    for none in (tmp_path / "none", shut / "file" / "below"):
        assert places.list_files(str(none)) == places.list_folders(str(none)) == []
        assert not places.holds(str(none), "")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_one_of_many_creates_a_file_and_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    path, contents = str(tmp_path / "made" / "it"), [str(n).encode() * 100_000 for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(partial(places.create_new, path), contents))
    assert won.count(True) == 1
    assert places.read_bytes(path) == contents[won.index(True)]
    assert not places.create_new(path, b"again")
    assert os.listdir(tmp_path / "made") == ["it"]


def test_a_file_system_that_cannot_create_a_file_alone_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(places, "_rename_new", lambda *_: errno.EINVAL)
    with pytest.raises(SinkError, match="it: cannot write: the file system knows neither hard links nor renames"):
        places.create_new(str(tmp_path / "it"), b"")
    monkeypatch.setattr(os, "link", lambda *_: os.open(tmp_path / "none" / "x", os.O_RDONLY))
    with pytest.raises(SinkError, match="it: cannot write"):
        places.create_new(str(tmp_path / "it"), b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("prefix", ["", f"{SCHEME}://"])
def test_a_file_is_swapped_only_where_it_is_what_was_read(tmp_path: Path, prefix: str) -> None:
    path = f"{prefix}{tmp_path}/it"
    assert places.read_held(path) is None
    places.write_bytes(path, b"one")
    held = places.read_held(path)
    assert held is not None
    assert places.swap(path, held, b"two")
    assert not places.swap(path, held, b"three")
    assert not places.swap(path, held, None)
    assert places.read_bytes(path) == b"two"
    assert places.swap(path, held._replace(content=b"two"), None)
    assert not places.exists(path)


@pytest.mark.parametrize("prefix", ["", f"{SCHEME}://"])
def test_files_that_are_not_there_are_told(tmp_path: Path, prefix: str) -> None:
    folder = f"{prefix}{tmp_path}"
    paths = [f"{folder}/a/b", f"{folder}/a/c d", f"{folder}/e"]
    assert places.missing(paths, folder) == paths
    places.write_bytes(paths[1], b"")
    assert places.missing(paths, folder) == [paths[0], paths[2]]


def test_paths_join_with_slashes() -> None:
    assert [places.join("/", "a"), places.join("a/", "", "b"), places.join("gs://b", "c")] == ["/a", "a/b", "gs://b/c"]
