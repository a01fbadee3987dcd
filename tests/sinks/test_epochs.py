"""Epochs: each start takes a number of its own, and only the latest may store."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest

from beam_pipelines.errors import SinkError
from beam_pipelines.sinks.epochs import Fence, latest_epoch, take_epoch
from tests.sinks.test_places import SCHEME


def test_starts_take_the_next_number(tmp_path: Path) -> None:
    assert latest_epoch(str(tmp_path)) == 0
    assert [take_epoch(str(tmp_path), f"r{n}") for n in range(3)] == [1, 2, 3]
    assert latest_epoch(str(tmp_path)) == 3


def test_takers_at_once_get_different_numbers(tmp_path: Path) -> None:
    together, taken = threading.Barrier(8), list[int]()

    def take(number: int) -> None:
        together.wait(timeout=30)
        taken.append(take_epoch(str(tmp_path), f"r{number}"))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(taken) == list(range(1, 9))


def test_an_epoch_on_a_url_is_taken_once(tmp_path: Path) -> None:
    """On a file system registered with Beam."""
    state = f"{SCHEME}://{tmp_path}"
    assert [take_epoch(state, "r1"), take_epoch(state, "r2")] == [1, 2]
    with pytest.raises(SinkError, match="taken over"):
        Fence(state, 1)()
    Fence(state, 2)()


def test_the_older_is_fenced_with_a_sentence_that_says_by_whom(tmp_path: Path) -> None:
    older = Fence(str(tmp_path), take_epoch(str(tmp_path), "first"))
    older()
    newer = Fence(str(tmp_path), take_epoch(str(tmp_path), "second"))
    newer()
    pickle.loads(pickle.dumps(newer))()
    with pytest.raises(
        SinkError, match=r"taken over by a later start \(run second, process \d+ on .*\); this process is epoch 1 and stores nothing more"
    ) as caught:
        pickle.loads(pickle.dumps(older))()
    assert "Nothing is lost" in str(caught.value)
    take_epoch(str(tmp_path), "third")
    with pytest.raises(SinkError, match="run second"):
        older()


def test_files_of_others_are_no_epochs(tmp_path: Path) -> None:
    take_epoch(str(tmp_path), "r1")
    (tmp_path / "stream" / "epochs" / "notes.json").write_text("{}")
    (tmp_path / "stream" / "epochs" / "000009.json.tmp").write_text("{}")
    assert latest_epoch(str(tmp_path)) == 1


def test_a_state_folder_that_refuses_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(SinkError, match="state"):
        take_epoch(str(tmp_path / "state"), "r1")
