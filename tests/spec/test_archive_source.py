"""The archive of a stream as a source of the batch path: what a spec may say about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.sources import ArchiveSource, FileSource

SPEC = """
spec: 1
pipeline: p
contract: {{columns: {{id: {{type: int64}}, at: {{type: timestamp}}}}}}
sources: {{batch: [{sources}]}}
sinks: [{{from: rows, parquet: {{path: lake/rows}}}}]
"""


def load(folder: Path, sources: str) -> list[object]:
    path = folder / "p.yaml"
    path.write_text(SPEC.format(sources=sources))
    return list(load_spec(path).spec.sources.batch)


def test_its_path_starts_at_the_spec_and_it_stands_beside_files(tmp_path: Path) -> None:
    found = load(tmp_path, "{archive: lake/archive, format: json, arrival: {attribute: departed_at}}, {files: a.csv, format: csv}")
    archive, files = found
    assert isinstance(archive, ArchiveSource)
    assert archive.archive == str(tmp_path / "lake" / "archive")
    assert isinstance(files, FileSource)


def test_arrival_may_be_a_column_that_is_read_again(tmp_path: Path) -> None:
    (archive,) = load(tmp_path, "{archive: a, format: {type: csv, header: false, columns: [id, at]}, arrival: {column: at}}")
    assert isinstance(archive, ArchiveSource)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "{archive: a, fromat: json}",
            r"unknown field 'fromat'; did you mean 'format'\? Fields of an archive source: archive, format, arrival",
        ),
        ("{archve: a, format: json}", r"unknown field 'archve'; did you mean 'archive'\? Fields of an archive source"),
        ("{archive: a}", "needs 'format'. Fields of an archive source"),
        ("{archive: 3, format: json}", "archive: got the number 3; expected a text"),
        ("{archive: '', format: json}", r"sources.batch\[0\].archive: the path is empty"),
        ("{archive: a, format: parquet}", r"sources.batch\[0\].format: a message holds one record; parquet is a format of files"),
        ("{archive: a, format: json, arrival: {column: id}}", "column 'id' has type BIGINT; expected timestamp"),
        ("{archive: a, files: b, format: json}", "unknown field 'archive'.*Fields of a file source"),
        ("{archive: lake, format: json}", r"sinks\[0\].parquet.path: sources.batch\[0\] would read what this sink writes"),
        ("{archive: lake/rows, format: json}", r"sinks\[0\].parquet.path: sources.batch\[0\] would read what this sink writes"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(tmp_path: Path, source: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        load(tmp_path, source)


def test_an_archive_inside_a_sink_is_refused_like_a_sink_inside_an_archive(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"the archive of sources.batch\[0\] lies in this sink's folder"):
        load(tmp_path, "{archive: lake/rows/archive, format: json}")
