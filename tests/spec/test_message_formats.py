"""Formats of messages in a spec: what only files have is told where it stands; schemas are read and judged by `validate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.formats.options import AvroFormat
from beam_pipelines.spec.load import LoadedSpec, load_spec

SPEC = """spec: 1
pipeline: events
contract: {{columns: {{id: {{type: int64}}, name: {{type: string}}}}}}
sources:
  {sources}
sinks:
  - {{from: rows, parquet: {{path: lake/rows}}}}
  - {{from: dead_letters, parquet: {{path: lake/dead}}}}
"""
STREAM = "stream: [{{pubsub: projects/p-1/subscriptions/s-1, format: {0}}}]"
ARCHIVE = "batch: [{{archive: lake/archive, format: {0}}}]"
SCHEMA = {"type": "record", "name": "e", "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": ["null", "string"]}]}


def load(folder: Path, sources: str) -> LoadedSpec:
    path = folder / "p.yaml"
    path.write_text(SPEC.format(sources=sources))
    return load_spec(path)


@pytest.mark.parametrize("source", [STREAM, ARCHIVE])
@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        ("parquet", "a message holds one record; parquet is a format of files"),
        ("orc", "a message holds one record; orc is a format of files"),
        ("{type: json, layout: array}", "layout: a message holds one record, an object"),
        ("{type: csv, header: true}", "header: a message has no header"),
        ("{type: csv, skip_rows: 1}", "skip_rows: a message holds one record"),
        ('{type: csv, comment: "#"}', "comment: a message holds one record"),
        ("{type: avro, schema_file: nowhere.avsc}", "nowhere.avsc: cannot be read"),
        ("{type: avro, schema: {type: record}}", "schema: no Avro schema"),
        ("{type: avro, schema: long, schema_file: a.avsc}", "'schema' and 'schema_file'"),
    ],
)
def test_what_no_message_can_be_is_told(tmp_path: Path, source: str, fmt: str, expected: str) -> None:
    with pytest.raises(SpecError) as raised:
        load(tmp_path, source.format(fmt))
    assert expected in str(raised.value)


@pytest.mark.parametrize("source", [STREAM, ARCHIVE])
@pytest.mark.parametrize("fmt", ["json", "csv", "{type: csv, columns: [name, id]}", "{type: csv, header: false}", "avro"])
def test_what_a_message_can_be_is_right(tmp_path: Path, source: str, fmt: str) -> None:
    load(tmp_path, source.format(fmt))


def test_schemas_are_files_beside_the_spec_or_written_in_it(tmp_path: Path) -> None:
    (tmp_path / "old.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "new.avsc").write_text(json.dumps(SCHEMA))
    found = load(tmp_path, STREAM.format("{type: avro, schemas: [old.avsc, new.avsc]}")).spec.sources.stream[0].format
    assert isinstance(found, AvroFormat)
    assert found.schemas == (str(tmp_path / "old.avsc"), str(tmp_path / "new.avsc"))
    found = load(tmp_path, STREAM.format("{type: avro, schema_file: new.avsc}")).spec.sources.stream[0].format
    assert isinstance(found, AvroFormat)
    assert found.schema_file == str(tmp_path / "new.avsc")
    load(tmp_path, STREAM.format(f"{{type: avro, schema: {json.dumps(SCHEMA)}}}"))


def test_files_hold_their_schema(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="an Avro file holds its schema; 'schema' is for messages"):
        load(tmp_path, "batch: [{files: a.avro, format: {type: avro, schema: long}}]")
