"""Laws of places, on a local path and on gs:// alike; then what only gs:// promises: one winner, whole objects, bounded memory, few requests."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines import places
from beam_pipelines.errors import SinkError, TransientError
from beam_pipelines.places import gcs as gcs_places
from beam_pipelines.places.gcs_streams import BLOCK_BYTES, CHUNK_BYTES
from tests.cloud.gcs_server import GcsServer
from tests.cloud.real_gcs import check

pytestmark = pytest.mark.cloud


@pytest.fixture(autouse=True)
def _pointed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    server = request.getfixturevalue("own_gcs" if "own_gcs" in request.fixturenames else "gcs")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["local", "gs"])
def top(request: pytest.FixtureRequest, tmp_path: Path, gcs: GcsServer) -> str:
    """A folder that is empty."""
    return str(tmp_path / "top") if request.param == "local" else f"gs://{gcs.bucket()}/top"


@pytest.fixture
def bucket(gcs: GcsServer) -> str:
    return f"gs://{gcs.bucket()}"


def test_what_is_written_is_read(top: str) -> None:
    path = places.join(top, "a", "b=c d%ä.txt")
    assert places.read_bytes(path) is None
    assert not places.exists(path)
    for content in (b"", b"one", b"another"):
        places.write_bytes(path, content)
        assert places.read_bytes(path) == content
        assert places.size([path]) == len(content)
    assert places.exists(path)
    places.delete(path)
    places.delete(path)
    assert places.read_bytes(path) is None
    with pytest.raises(FileNotFoundError):
        places.open_read(path)
    with pytest.raises(FileNotFoundError):
        places.size([path])


def test_a_folder_lists_its_own_files_and_folders_only(top: str) -> None:
    assert places.list_files(top) == places.list_folders(top) == []
    for name in ("b", "a", "f/x", "f/g/y", "h=1/z"):
        places.write_bytes(places.join(top, name), b"1")
    assert places.list_files(top) == ["a", "b"]
    assert places.list_folders(top + "/") == ["f", "h=1"]
    assert places.list_files(places.join(top, "f")) == ["x"]
    assert places.list_folders(places.join(top, "f")) == ["g"]
    assert places.list_files(places.join(top, "fx")) == []


def test_a_tree_is_deleted_whole_and_nothing_beside_it(top: str) -> None:
    for name in ("f/x", "f/g/y", "fx", *(f"f/many/{n}" for n in range(40))):
        places.write_bytes(places.join(top, name), b"1")
    places.delete_tree(places.join(top, "f"))
    places.delete_tree(places.join(top, "f"))
    assert (places.list_files(top), places.list_folders(top)) == (["fx"], [])


def test_a_move_replaces_and_can_be_repeated(top: str) -> None:
    source, target = places.join(top, "s/x"), places.join(top, "t/x")
    places.write_bytes(source, b"new")
    places.write_bytes(target, b"old")
    for _ in range(2):
        places.move(source, target)
        assert (places.read_bytes(source), places.read_bytes(target)) == (None, b"new")
    with pytest.raises(SinkError, match=r"its staged file .* is gone"):
        places.move(source, places.join(top, "t/y"))


def test_a_published_file_has_its_name_and_no_other(top: str) -> None:
    made = places.join(top, ".x.inprogress")
    with places.open_new(made) as out:
        out.write(b"content")
    places.publish(made, places.join(top, "x"))
    assert places.list_files(top) == ["x"]


@pytest.mark.parametrize("bytes_", [0, 10, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
def test_a_stream_writes_and_reads_every_byte(top: str, bytes_: int) -> None:
    content = os.urandom(bytes_)
    path = places.join(top, "big")
    with places.open_new(path) as out:
        for start in range(0, bytes_, 700_001):
            out.write(memoryview(content)[start : start + 700_001])
            assert out.tell() == min(bytes_, start + 700_001)
    with places.open_read(path) as file:
        assert file.read() == content
        assert file.read(5) == b""
    with places.open_read(path) as file:
        pieces = iter(lambda: file.read(333_333), b"")
        assert b"".join(pieces) == content
    with places.open_read(path) as file:
        for start in (0, bytes_ // 2, max(0, bytes_ - 8), bytes_, bytes_ + 10):
            file.seek(start)
            assert file.read(100) == content[start : start + 100]
        assert file.seek(0, io.SEEK_END) == bytes_


def test_of_many_threads_that_create_at_once_one_wins(top: str) -> None:
    for attempt in range(5):
        path = places.join(top, str(attempt), "new")
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: places.create_new(path, str(n).encode()), range(8)))  # noqa: B023
        assert sum(won) == 1
        assert places.read_bytes(path) == str(won.index(True)).encode()
        assert places.list_files(places.join(top, str(attempt))) == ["new"]


def _create(path: str, number: int, begin: Any, won: Any) -> None:
    begin.wait()
    won.put((number, places.create_new(path, str(number).encode())))


def test_of_many_processes_that_create_at_once_one_wins(bucket: str) -> None:
    """Forked with a client of the parent's in place: each makes its own."""
    path = f"{bucket}/race/new"
    assert not places.exists(path)
    fork = multiprocessing.get_context("fork")
    begin, won = fork.Barrier(6), fork.Queue()
    racers = [fork.Process(target=_create, args=(path, n, begin, won)) for n in range(6)]
    for racer in racers:
        racer.start()
    results = [won.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(60)
    winners = [number for number, one in results if one]
    assert len(winners) == 1
    assert places.read_bytes(path) == str(winners[0]).encode()


def uploads(method: str, target: str) -> bool:
    return target.startswith("/upload/")


def test_a_winner_whose_answer_is_lost_knows_that_it_won(own_gcs: GcsServer) -> None:
    """The request was carried out, its answer lost; the library repeats it, and the condition fails on our own object."""
    path = f"gs://{own_gcs.bucket()}/commits/1.json"
    lost = own_gcs.gate.lose(when=uploads)  # type: ignore[union-attr]
    assert places.create_new(path, b"mine")
    assert lost.hits == 1
    assert places.read_bytes(path) == b"mine"
    own_gcs.gate.lose(when=uploads)  # type: ignore[union-attr]
    assert not places.create_new(path, b"mine")  # equal content is not enough: another made it


def test_a_file_is_swapped_only_where_it_is_what_was_read(own_gcs: GcsServer) -> None:
    path = f"gs://{own_gcs.bucket()}/claim.json"
    assert places.read_held(path) is None
    places.write_bytes(path, b"one")
    held = places.read_held(path)
    assert held is not None
    lost = own_gcs.gate.lose(when=uploads)  # type: ignore[union-attr]
    assert places.swap(path, held, b"two")  # though it was told at the second try only that the first is there
    assert lost.hits == 1
    assert not places.swap(path, held, b"three")
    places.write_bytes(path, b"one")  # the same content, written anew
    assert not places.swap(path, held, b"three")
    newest = places.read_held(path)
    assert newest is not None
    assert places.swap(path, newest, None)
    assert not places.exists(path)
    assert not places.swap(path, newest, None)
    assert not places.swap(path, newest, b"three")


def test_a_swap_asks_for_the_generation_that_was_read(own_gcs: GcsServer) -> None:
    """Of deletions the local server would not tell."""
    path, gate = f"gs://{own_gcs.bucket()}/claim.json", own_gcs.gate
    assert gate is not None
    places.write_bytes(path, b"one")
    held = places.read_held(path)
    assert held is not None
    gate.seen.clear()
    places.swap(path, held, None)
    assert [(method, f"ifGenerationMatch={held.generation}" in target) for method, target in gate.seen] == [("DELETE", True)]
    gate.answer(412, when=lambda method, _: method == "DELETE")
    assert not places.swap(path, held, None)


def test_files_that_are_not_there_are_told_by_one_listing(gcs: GcsServer, bucket: str) -> None:
    paths = [f"{bucket}/f/a/b", f"{bucket}/f/c d", f"{bucket}/f/e"]
    places.write_bytes(paths[1], b"")
    with gcs.counted() as requests:
        assert places.missing(paths, f"{bucket}/f") == [paths[0], paths[2]]
    assert requests == {"LIST": 1}


@pytest.mark.parametrize("act", [
    lambda path: places.write_bytes(path, b"2"), places.delete, lambda path: places.move(path, path + ".moved"), places.read_bytes,
    lambda path: places.list_files(places.parent(path)), places.exists, lambda path: places.size([path]),
    lambda path: places.delete_tree(places.parent(path)),
])  # fmt: skip
def test_every_call_is_repeated_when_its_answer_is_lost_or_503(own_gcs: GcsServer, act: Callable[[str], Any]) -> None:
    path = f"gs://{own_gcs.bucket()}/f/x"
    places.write_bytes(path, b"1")
    lost = own_gcs.gate.lose(when=lambda *_: True)  # type: ignore[union-attr]
    busy = own_gcs.gate.answer(503, when=lambda *_: True, times=1)  # type: ignore[union-attr]
    act(path)
    assert (lost.hits, busy.hits) == (1, 1)


def test_a_large_upload_goes_on_where_an_answer_was_lost(own_gcs: GcsServer) -> None:
    path, content = f"gs://{own_gcs.bucket()}/big", os.urandom(2 * CHUNK_BYTES + 5)
    with places.open_new(path) as out:
        out.write(content[:-5])
        own_gcs.gate.answer(503, when=lambda method, _: method == "PUT", times=1)  # type: ignore[union-attr]
        out.write(content[-5:])
    assert places.read_bytes(path) == content


def test_an_outage_of_seconds_is_waited_for(own_gcs: GcsServer) -> None:
    path = f"gs://{own_gcs.bucket()}/x"
    places.write_bytes(path, b"1")
    gate = own_gcs.gate
    assert gate is not None
    ended = threading.Event()

    def back() -> None:
        ended.set()
        gate.back()

    gate.away()
    threading.Timer(3, back).start()
    assert places.read_bytes(path) == b"1"
    assert ended.is_set()


def test_an_outage_without_end_is_an_error_that_says_that_waiting_helps(own_gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_places, "PATIENCE_S", 1.0)
    gcs_places.RETRY.cache_clear()
    path = f"gs://{own_gcs.bucket()}/x"
    own_gcs.gate.away()  # type: ignore[union-attr]
    try:
        with pytest.raises(TransientError, match="cannot be reached") as caught:
            places.write_bytes(path, b"1")
    finally:
        gcs_places.RETRY.cache_clear()
    assert caught.value.retryable


def test_a_stream_left_by_an_exception_or_forgotten_makes_no_object(bucket: str) -> None:
    for bytes_ in (10, 2 * CHUNK_BYTES):
        with pytest.raises(KeyError):
            _broken_off(f"{bucket}/x", bytes_)
        forgotten = places.open_new(f"{bucket}/x")
        forgotten.write(b"1" * bytes_)
        del forgotten
    assert places.list_files(bucket) == []


def _broken_off(path: str, bytes_: int) -> None:
    with places.open_new(path) as out:
        out.write(b"1" * bytes_)
        raise KeyError


def test_a_reader_never_mixes_two_versions(bucket: str) -> None:
    path = f"{bucket}/x"
    places.write_bytes(path, b"1" * (3 * BLOCK_BYTES))
    with places.open_read(path) as file:
        first = file.read(10)
        places.write_bytes(path, b"2" * (3 * BLOCK_BYTES))
        with pytest.raises(FileNotFoundError):
            file.read()
    assert first == b"1" * 10


def test_what_no_bucket_and_no_permission_say(own_gcs: GcsServer) -> None:
    with pytest.raises(SinkError, match=r"gs://no-such-lake/x: cannot write: there is no bucket 'no-such-lake'\. Make it"):
        places.write_bytes("gs://no-such-lake/x", b"1")
    with pytest.raises(SinkError, match="cannot list: there is no bucket"):
        places.list_files("gs://no-such-lake/x")
    with pytest.raises(SinkError, match=r"'a\.\.b' is no name of a bucket|there is no bucket"):
        places.write_bytes("gs://a..b/x", b"1")
    path = f"gs://{own_gcs.bucket()}/x"
    own_gcs.gate.answer(403, when=lambda *_: True)  # type: ignore[union-attr]
    for act in (lambda: places.write_bytes(path, b"1"), lambda: places.read_bytes(path), lambda: places.list_folders(path),
                lambda: places.create_new(path, b"1"), lambda: places.delete(path), lambda: places.move(path, path + "2")):  # fmt: skip
        with pytest.raises(SinkError, match=r"permission denied \(403\): .*from the gate.*roles/storage\.objectUser"):
            act()
    with pytest.raises(OSError, match="permission denied"):
        places.open_read(path)


def test_without_credentials_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(SinkError, match=r"no credentials for Cloud Storage: .*gcloud auth application-default login"):
        places.write_bytes("gs://some-lake/x", b"1")


def test_its_errors_survive_pickling() -> None:
    error = gcs_places.RefusedError("why", "what to do", passing=True)
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.reason, copied.advice, copied.passing, str(copied)) == ("why", "what to do", True, "why")


def _requests() -> Iterator[tuple[str, Callable[[str], Any], dict[str, int]]]:
    yield "write", lambda b: places.write_bytes(f"{b}/new", b"1"), {"UPLOAD": 1}
    yield "create", lambda b: places.create_new(f"{b}/new", b"1"), {"UPLOAD": 1}
    yield "create what is there", lambda b: places.create_new(f"{b}/f/x", b"1"), {"UPLOAD": 1, "GET metadata": 1}
    yield "read", lambda b: places.read_bytes(f"{b}/f/x"), {"GET media": 1}
    yield "read nothing", lambda b: places.read_bytes(f"{b}/none"), {"GET media": 1}
    yield "exists", lambda b: places.exists(f"{b}/f/x"), {"GET metadata": 1}
    yield "list", lambda b: places.list_files(f"{b}/f"), {"LIST": 1}
    yield "move", lambda b: places.move(f"{b}/f/x", f"{b}/y"), {"REWRITE": 1, "DELETE": 1}
    yield "delete", lambda b: places.delete(f"{b}/f/x"), {"DELETE": 1}
    yield "stream out", lambda b: _written(f"{b}/new"), {"UPLOAD": 1}
    yield "stream in", lambda b: _read(f"{b}/f/x"), {"GET media": 1}


def _written(path: str) -> None:
    with places.open_new(path) as out:
        out.write(b"1" * 1000)


def _read(path: str) -> None:
    with places.open_read(path) as file:
        assert file.seek(0, io.SEEK_END) == 1000
        file.seek(0)
        assert len(file.read()) == 1000


@pytest.mark.parametrize(("name", "act", "expected"), list(_requests()), ids=lambda v: v if isinstance(v, str) else "")
def test_requests_of(gcs: GcsServer, bucket: str, name: str, act: Callable[[str], Any], expected: dict[str, int]) -> None:
    """The table of docs/cloud-storage.md."""
    places.write_bytes(f"{bucket}/f/x", b"1" * 1000)
    with gcs.counted() as requests:
        act(bucket)
    assert requests == expected


def test_the_check_of_the_real_service_holds_here(gcs: GcsServer) -> None:
    bucket = gcs.bucket()
    assert [promise for promise, held, _ in check(bucket) if not held] == []
    assert gcs.names(bucket) == []
