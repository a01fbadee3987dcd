"""The archive as a source of the batch path: the same rows as live, each once, and what cannot be read as dead letters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.schema import source_number
from beam_pipelines.errors import SourceError, SpecError
from beam_pipelines.formats.archive import raw_batch, source_folder, write_messages
from beam_pipelines.formats.reader import Broken
from beam_pipelines.sinks.archive import Archive
from beam_pipelines.sources.archive import ReadArchive, hour_folders
from beam_pipelines.sources.batch import read_batch, read_pieces
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import ArchiveSource, BatchSource, FileSource
from beam_pipelines.transforms.prepare import Prepare
from tests.formats.archived import HOUR, NOON, SOURCE, Clock, compact, messages

CONTRACT = Contract(columns={"id": {"type": "int64"}})
Counts = list[tuple[str, str, str, str, int]]


def archive(folder: Path | str) -> ArchiveSource:
    return ArchiveSource.model_validate({"archive": str(folder), "format": "json"})


def key() -> bytes:
    return b"k" * 32


def test_rows_are_those_that_the_stream_gave_on(tmp_path: Path) -> None:
    batches = [messages([(n, NOON + n), (n + 100, NOON + HOUR)]) for n in range(40)]
    for batch in [*batches, batches[0]]:  # the last came twice
        write_messages(batch, str(tmp_path), epoch=1, key=key(), now=Clock())
    compact(str(tmp_path), epoch=1, now=Clock())
    live = sorted((row for batch in batches for row in raw_batch(batch).to_pylist()), key=lambda row: row["_position"])

    def rows(found: list[pa.RecordBatch]) -> None:
        assert sorted((row for b in found for row in b.to_pylist()), key=lambda row: row["_position"]) == live
        assert {source_number(b) for b in found} == {0}
        assert {str(b.schema) for b in found} == {str(raw_batch(batches[0]).schema.with_metadata({b"source": b"0"}))}

    def counts(found: Counts) -> None:
        folders = hour_folders(archive(tmp_path))
        assert sorted(found) == [(f"0:{folder}", SOURCE, "read", "", 40) for folder in folders]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        read = pipeline | ReadArchive([archive(tmp_path)], key=key)
        assert_that(read.rows, rows, label="Rows")
        assert_that(read.counts, counts, label="Counts")


def test_the_batch_path_over_the_archive_gives_the_rows_of_the_live_path(tmp_path: Path) -> None:
    spec = PipelineSpec.model_validate(
        {
            "spec": 1, "pipeline": "p", "contract": {"columns": {"id": {"type": "int64", "max": 90}}},
            "sources": {"batch": ({"archive": str(tmp_path / "archive"), "format": {"type": "json"}},)},
            "transform": ({"set": {"double": "id * 2"}},), "sinks": ({"from": "rows", "parquet": {"path": "unused"}},),
        }
    )  # fmt: skip
    batches = [messages([(n, NOON + n), (n + 50, NOON + HOUR + n)]) for n in range(50)]
    archived, unread = tmp_path / "archive", list(spec.sources.batch)

    def outcome(read: Callable[[beam.Pipeline], beam.PCollection]) -> list[str]:
        told = tmp_path / "told"
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            prepared = read(pipeline) | Prepare(spec, unread, {})
            assert_that((prepared.rows, prepared.dead) | beam.Flatten(), partial(_note, told))
        return told.read_text().splitlines()

    def live(pipeline: beam.Pipeline) -> beam.PCollection:
        return pipeline | beam.Create(batches) | Archive(str(archived), epoch=1, fence=_nobody_follows)

    def archive_again(pipeline: beam.Pipeline) -> beam.PCollection:
        return (pipeline | ReadArchive(unread)).rows

    first = outcome(live)
    assert len(first) == 100
    assert sum("'double'" in row for row in first) == 91
    assert all(f"'{SOURCE}'" in row for row in first)
    assert outcome(archive_again) == first
    assert compact(str(archived)).merged == 2
    assert outcome(archive_again) == first


def _note(path: Path, batches: list[pa.RecordBatch]) -> None:
    path.write_text("\n".join(sorted(str(row) for batch in batches for row in batch.to_pylist())))


def _nobody_follows() -> None:
    pass


def test_files_and_archives_share_one_collection_and_batches_know_their_source(tmp_path: Path) -> None:
    write_messages(messages([(1, NOON), (2, NOON)]), str(tmp_path / "archive"), epoch=1)
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n')
    files = FileSource.model_validate({"files": str(tmp_path / "a.jsonl"), "format": "json"})

    def rows(found: list[pa.RecordBatch]) -> None:
        assert sorted((source_number(b), b.num_rows) for b in found) == [(0, 1), (1, 2), (2, 1)]

    def counts(found: Counts) -> None:
        assert sorted(c[1:] for c in found) == sorted([(str(tmp_path / "a.jsonl"), "read", "", 1)] * 2 + [(SOURCE, "read", "", 2)])

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        read = read_batch(pipeline, [files, archive(tmp_path / "archive"), files], CONTRACT)
        assert_that(read.rows, rows, label="Rows")
        assert_that(read.counts, counts, label="Counts")


@pytest.mark.parametrize("kind", ["files", "archive"])
def test_a_single_kind_of_source_is_read_without_another_stage(tmp_path: Path, kind: str) -> None:
    write_messages(messages([(1, NOON)]), str(tmp_path), epoch=1)
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n')
    files = FileSource.model_validate({"files": str(tmp_path / "a.jsonl"), "format": "json"})
    sources: list[BatchSource] = [files if kind == "files" else archive(tmp_path)]
    pipeline = beam.Pipeline(runner="FnApiRunner")
    read_batch(pipeline, sources, CONTRACT)
    labels = {part.full_label.split("/")[0] for part in pipeline.transforms_stack[0].parts}
    assert labels == {"ReadFiles" if kind == "files" else "ReadArchive"}


def test_a_damaged_file_is_dead_letters_and_costs_no_other(tmp_path: Path) -> None:
    bad, _ = (write_messages(messages([(n, NOON), (n + 1, NOON)]), str(tmp_path), epoch=n)[0] for n in (1, 5))
    content = bytearray(Path(bad).read_bytes())
    content[40] ^= 0xFF
    Path(bad).write_bytes(content)
    torn = Path(bad).with_name("000009-" + "0" * 32 + ".parquet")
    torn.write_bytes(b"PAR1 torn")

    def rows(found: list[pa.RecordBatch]) -> None:
        assert [p for b in found for p in b["_position"].to_pylist()] == [5, 6]

    def dead(letters: list[pa.RecordBatch]) -> None:
        found = sorted((row["source"], row["position"], row["stage"], row["reason"]) for b in letters for row in b.to_pylist())
        assert found == [(bad, 0, "read", "FILE"), (bad, 1, "read", "FILE"), (str(torn), 0, "read", "FILE")]

    def counts(found: Counts) -> None:
        assert sorted(c[1:] for c in found) == sorted(
            [
                (SOURCE, "read", "", 2), (bad, "read", "", 2), (bad, "dead", "read:FILE", 2),
                (str(torn), "read", "", 1), (str(torn), "dead", "read:FILE", 1),
            ]
        )  # fmt: skip

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        read = pipeline | ReadArchive([archive(tmp_path)])
        assert_that(read.rows, rows, label="Rows")
        assert_that(read.dead, dead, label="Dead")
        assert_that(read.counts, counts, label="Counts")


def test_the_folder_of_one_source_is_an_archive_too(tmp_path: Path) -> None:
    for source in (SOURCE, "projects/p/subscriptions/s"):
        write_messages(messages([(1, NOON)], source=source), str(tmp_path), epoch=1)
    (piece,) = read_pieces(archive(source_folder(str(tmp_path), SOURCE)), CONTRACT)
    assert isinstance(piece[1], pa.RecordBatch)
    assert piece[1]["_source"].to_pylist() == [SOURCE]
    assert len(list(read_pieces(archive(tmp_path), CONTRACT))) == 2


def test_pieces_of_files_come_from_the_same_function(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n')
    files = FileSource.model_validate({"files": [str(tmp_path / "a.jsonl")], "format": "json"})
    ((path, piece),) = read_pieces(files, CONTRACT)
    assert not isinstance(piece, Broken)
    assert (path, piece.num_rows) == (str(tmp_path / "a.jsonl"), 1)


def test_sealed_messages_without_their_key_are_one_clear_error(tmp_path: Path) -> None:
    write_messages(messages([(1, NOON)]), str(tmp_path), epoch=1, key=key())
    with pytest.raises(SpecError, match=r"the messages are sealed, and there is no key.*dead_letters.raw_key"):
        list(read_pieces(archive(tmp_path), CONTRACT))


def test_a_folder_that_is_no_archive_is_refused_when_the_graph_is_built(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no archive of a stream"):
        beam.Pipeline(runner="FnApiRunner") | ReadArchive([archive(tmp_path)])
