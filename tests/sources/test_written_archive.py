"""The archive that a Cloud Storage subscription writes, as a source of the batch path: the rows of the live stream, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from google.pubsub_v1.types import PubsubMessage, ReceivedMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.errors import SourceError
from beam_pipelines.formats.archive import raw_batch, write_messages
from beam_pipelines.sources.archive import ReadArchive, file_pieces, written_files
from beam_pipelines.sources.pubsub_messages import identity, pulled
from beam_pipelines.spec.sources import ArchiveSource
from tests.formats.pubsub_files import Message, write_file

LIVE = "projects/p/subscriptions/flights"
AT = 1_714_557_600_000_000  # 2024-05-01 10:00
HOUR = 3_600_000_000


def archive(folder: Path, attribute: str | None = None, subscription: str | None = LIVE, form: str = "json") -> ArchiveSource:
    said: dict[str, Any] = {"archive": str(folder), "format": form, "subscription": subscription}
    return ArchiveSource.model_validate(said | ({"arrival": {"attribute": attribute}} if attribute else {}))


def live(messages: list[Message], attribute: str | None = None) -> pa.RecordBatch:
    """The messages as the stream has them that reads `LIVE`."""
    received = [
        ReceivedMessage.pb(ReceivedMessage(message=PubsubMessage(data=m.data, message_id=m.message_id, attributes=dict(m.attributes), publish_time={"seconds": m.published // 10**6, "nanos": m.published % 10**6 * 1000})))
        for m in messages
    ]  # fmt: skip
    return pulled(received, source=LIVE, attribute=attribute).rows


def rows(batches: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    return sorted((row for b in batches for row in b.to_pylist()), key=lambda row: (row["_position"], row["_raw"] or b""))


def read(source: ArchiveSource, expected: list[dict[str, Any]], *, since: int | None = None, letters: int = 0) -> None:
    def same(found: list[pa.RecordBatch]) -> None:
        assert rows(found) == expected

    def counted(found: list[tuple[str, str, str, str, int]]) -> None:
        assert sum(n for _, _, outcome, _, n in found if outcome == "read") == len(expected) + letters
        assert sum(n for _, _, outcome, _, n in found if outcome == "dead") == letters
        assert len({(unit, of, outcome, detail) for unit, of, outcome, detail, _ in found}) == len(found)

    def dead(found: list[pa.RecordBatch]) -> None:
        assert sum(b.num_rows for b in found) == letters

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        out = pipeline | ReadArchive([source], since=since)
        assert_that(out.rows, same, label="Rows")
        assert_that(out.counts, counted, label="Counts")
        assert_that(out.dead, dead, label="Dead")


_TIMES = st.sampled_from(["2024-05-01T09:59:00Z", "1714557000", "never", ""])
_MESSAGES = st.lists(
    st.builds(
        Message,
        st.one_of(st.integers(2**50, 2**50 + 30).map(str), st.integers(1, 9).map(str), st.just("odd-id")),
        st.integers(AT, AT + 5),
        st.binary(max_size=5),
        st.one_of(st.just({}), _TIMES.map(lambda text: {"departed": text}), st.integers(0, 9).map(lambda n: dict(identity(LIVE, n, AT - 5)))),
    ),
    min_size=1, max_size=20, unique_by=lambda m: (m.message_id, m.published),
)  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(_MESSAGES, st.booleans())
def test_rows_are_those_of_the_live_stream(tmp_path_factory: pytest.TempPathFactory, messages: list[Message], timed: bool) -> None:
    folder, attribute = tmp_path_factory.mktemp("archive"), "departed" if timed else None
    path = write_file(folder / "2024-05-01T10:00:00+00:00_a.avro", messages)
    found = [piece for _, piece in file_pieces(str(path), archive(folder, attribute)) if isinstance(piece, pa.RecordBatch)]
    assert rows(found) == rows([raw_batch(live(messages, attribute))])


def test_the_graph_gives_them_too(tmp_path: Path) -> None:
    messages = [Message(str(2**50 + n), AT + n, b"%d" % n) for n in range(100)]
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", messages, sync_interval=300)
    read(archive(tmp_path), rows([raw_batch(live(messages))]))


def test_a_message_that_was_written_twice_is_one_row(tmp_path: Path) -> None:
    messages = [Message(str(2**50 + n), AT + n, b"%d" % n) for n in range(200)]
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", messages[:150])
    write_file(tmp_path / "later" / "2024-05-02T10:00:00+00:00_b.avro", messages[100:])
    read(archive(tmp_path), rows([raw_batch(live(messages))]))


def test_an_archive_that_the_stream_itself_began_is_read_whole_and_once(tmp_path: Path) -> None:
    messages = [Message(str(2**50 + n), AT + n, b"%d" % n) for n in range(90)]
    write_messages(live(messages[:50]), str(tmp_path), epoch=1)
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", messages[40:])
    read(archive(tmp_path), rows([raw_batch(live(messages))]))


def test_a_file_that_cannot_be_read_is_a_dead_letter_and_costs_no_other(tmp_path: Path) -> None:
    messages = [Message(str(2**50 + n), AT + n, b"%d" % n) for n in range(10)]
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", messages)
    (tmp_path / "2024-05-01T10:05:00+00:00_b.avro").write_bytes(b"Obj\x01 and no more")
    read(archive(tmp_path), rows([raw_batch(live(messages))]), letters=1)


def test_files_closed_before_the_range_are_not_read(tmp_path: Path) -> None:
    early, late = [Message("1125899906842624", AT, b"1")], [Message("1125899906842625", AT + 5 * HOUR, b"2")]
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", early)
    write_file(tmp_path / "2024-05-01T15:00:00+00:00_b.avro", late)
    read(archive(tmp_path), rows([raw_batch(live(late))]), since=AT + 5 * HOUR)


def test_a_file_closed_before_the_range_is_read_where_an_arrival_may_lie_ahead_of_its_publishing(tmp_path: Path) -> None:
    ahead = [Message("1125899906842624", AT, b"1", {"at": "2024-05-02T09:00:00Z"})]
    long_before = [Message("1125899906842625", AT - 48 * HOUR, b"2", {"at": "2024-04-29T10:00:00Z"})]
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", ahead)
    write_file(tmp_path / "2024-04-29T10:00:00+00:00_b.avro", long_before)
    read(archive(tmp_path, "at"), rows([raw_batch(live(ahead, "at"))]), since=AT + 20 * HOUR)


def test_attributes_go_along_where_the_format_needs_them(tmp_path: Path) -> None:
    messages = [Message("1125899906842624", AT, b"x", {"googclient_schemaencoding": "BINARY"})]
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", messages)
    read(archive(tmp_path, form="avro"), rows([raw_batch(live(messages), keep_attributes=True)]))


def test_an_archive_whose_subscription_is_not_named_says_so(tmp_path: Path) -> None:
    write_file(tmp_path / "2024-05-01T10:00:00+00:00_a.avro", [Message("1", AT, b"x")])
    with pytest.raises(SourceError, match=r"subscription: projects/P/subscriptions/S"):
        written_files(archive(tmp_path, subscription=None))
