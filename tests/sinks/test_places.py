"""Places: the same commit on a local path and on a URL, here one of a file system registered with Beam."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def test_paths_join_with_slashes() -> None:
    assert [places.join("/", "a"), places.join("a/", "", "b"), places.join("gs://b", "c")] == ["/a", "a/b", "gs://b/c"]
