"""Files of a Cloud Storage subscription: messages as the topic had them, and what cannot be read as Broken."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.formats.pubsub_avro import _COLUMNS, LATEST_MICROS, Written, _written, begun_micros, count_messages, may_hold, read_file
from beam_pipelines.formats.reader import FILE, Broken
from tests.formats.pubsub_files import Message, write_file

AT = 1_714_557_600_000_000  # 2024-05-01 10:00


def messages(count: int) -> list[Message]:
    return [Message(str(2**50 + n), AT + n, b"\xff%d" % n, {"k": str(n)} if n % 2 else {}) for n in range(count)]


def test_every_message_comes_with_what_its_topic_knew_of_it(tmp_path: Path) -> None:
    given = messages(300)
    path = write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", given, sync_interval=1_000, codec="deflate")
    found = list(read_file(str(path)))
    assert all(isinstance(piece, Written) for piece in found)
    columns = {"id": [], "at": [], "data": [], "attributes": []}  # type: dict[str, list[object]]
    for piece in found:
        assert isinstance(piece, Written)
        columns["id"] += piece.ids.to_pylist()
        columns["at"] += piece.published.cast("int64").to_pylist()
        columns["data"] += piece.data.to_pylist()
        columns["attributes"] += piece.attributes.to_pylist()
    assert list(zip(*columns.values(), strict=True)) == [(m.message_id, m.published, m.data, list(m.attributes.items())) for m in given]


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_cut_file_gives_its_whole_blocks_and_one_broken(tmp_path: Path, cut: float) -> None:
    path = write_file(tmp_path / "a.avro", messages(2_000), sync_interval=1_000)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    found = list(read_file(str(path)))
    *good, last = found
    assert isinstance(last, Broken)
    assert last.reason == FILE
    assert str(path) in last.message
    kept = sum(len(piece.ids) for piece in good if isinstance(piece, Written))
    assert 0 < kept < 2_000
    assert last.position == kept


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_blocks_say_how_many_messages_there_are(tmp_path: Path, codec: str) -> None:
    path = write_file(tmp_path / "a.avro", messages(2_000), sync_interval=1_000, codec=codec)
    assert count_messages(str(path)) == 2_000
    path.write_bytes(path.read_bytes()[:-30])
    assert count_messages(str(path)) == sum(len(piece.ids) for piece in read_file(str(path)) if isinstance(piece, Written)) < 2_000
    assert count_messages(str(write_file(tmp_path / "none.avro", []))) == 0


@pytest.mark.parametrize("content", [b"not avro", b"Obj\x01", b"\x00" * 100])
def test_what_is_no_avro_is_broken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(content)
    (broken,) = read_file(str(path))
    assert isinstance(broken, Broken)
    assert broken.reason == FILE
    assert count_messages(str(path)) == 0


def test_a_file_without_metadata_says_what_the_subscription_needs(tmp_path: Path) -> None:
    schema = {"type": "record", "name": "PubsubMessage", "fields": [{"name": "data", "type": "bytes"}]}
    path = write_file(tmp_path / "a.avro", messages(3), schema=schema)
    (broken,) = read_file(str(path))
    assert isinstance(broken, Broken)
    assert (broken.rows, "write_metadata" in broken.message) == (3, True)


def test_a_file_that_is_gone_is_broken(tmp_path: Path) -> None:
    (broken,) = read_file(str(tmp_path / "gone.avro"))
    assert isinstance(broken, Broken)


@pytest.mark.parametrize(
    "name",
    [
        "f2024-05-01T10:00:00+00:00_6c3a1b2e-1234-4567-8901-123456789012.avro",
        "f/2024/05/01/10_00_00_6c3a1b2e-1234-4567-8901-123456789012.avro",
        "f2024-05-01_10-00-00.avro",
        "raw/2024-05-01/10_00_00Z_6c3a1b2e-1234-4567-8901-123456789012.avro",
    ],
)  # fmt: skip
def test_the_moment_of_a_name_is_found_in_any_usual_form(name: str) -> None:
    assert begun_micros(name) == AT


@pytest.mark.parametrize("name", ["20240501-1000-4567-8901-123456789012.avro", "2024-13-45T99:99:99_x.avro", "part-0007.avro"])
def test_a_name_without_a_moment_prunes_nothing(name: str) -> None:
    assert begun_micros(name) is None
    assert may_hold(name, 2**60)


def test_a_file_is_left_out_only_when_it_was_closed_long_before() -> None:
    name = "gs://b/2024-05-01T10:00:00+00:00_a.avro"
    assert may_hold(name, AT)
    assert may_hold(name, AT + LATEST_MICROS)
    assert not may_hold(name, AT + LATEST_MICROS + 1)


def test_what_is_kept_of_a_block_has_its_own_attributes_and_no_others(tmp_path: Path) -> None:
    """A slice of Arrow's maps keeps the entries of the rows beside it, which whoever flattens them would count."""
    whole = pa.array([[("a", "1")], [("b", "2"), ("c", "3")], []], pa.map_(pa.string(), pa.string()))
    given = pa.RecordBatch.from_arrays(
        [pa.array([b"x", b"y", b"z"]), pa.array(["1", "2", "3"]), pa.array([1, 2, 3], pa.timestamp("us", "UTC")), whole], list(_COLUMNS)
    )
    for piece, entries in ((given.slice(0, 1), 1), (given.slice(1, 1), 2), (given.slice(1), 2)):
        found = _written("f", piece, 0)
        assert isinstance(found, Written), found
        assert (len(found.attributes.keys), found.attributes.offset) == (entries, 0)
