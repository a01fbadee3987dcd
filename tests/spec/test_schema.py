"""The JSON Schema accepts every spec that loads, short forms included, and refuses what editors should underline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from beam_pipelines.spec.document import read_document
from beam_pipelines.spec.schema import json_schema
from beam_pipelines.spec.tests import SpecTests

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted({Path(__file__).parent / "flights.yaml", *(p for p in ROOT.glob("examples/**/*.yaml") if "pipeline:" in p.read_text())})
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def wrong(text: str) -> list[str]:
    value: Any = json.loads(json.dumps(read_document(text, file="x.yaml").value))
    return [error.message for error in VALIDATOR.iter_errors(value)]


def test_it_is_a_valid_schema() -> None:
    for schema in (json_schema(), json_schema(SpecTests)):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"].endswith("2020-12/schema")
        assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("path", SPECS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_example_fits_it(path: Path) -> None:
    assert wrong(path.read_text()) == []


def spec(**sections: str) -> str:
    base = {
        "contract": "{columns: {n: {type: int8}}}",
        "sources": "{batch: [{files: a, format: csv}]}",
        "sinks": "[{from: rows, csv: {path: a}}]",
    }
    return "spec: 1\npipeline: p\n" + "".join(f"{k}: {v}\n" for k, v in {**base, **sections}.items())


@pytest.mark.parametrize(
    "sections",
    [
        {"contract": "{file: c.yaml}"},
        {"transform": "[{apply: 'a.b:c'}, {apply: {function: 'a.b:c', columns: {x: int8}}}]"},
        {
            "sources": "{batch: [{files: [a, b], format: {type: csv, delimiter: ';'}}, {files: a, format: {type: text, pattern: '(?P<n>.)'}}]}"
        },
        {"deduplicate": "{within: 1h30m}"},
        {"deduplicate": '{within: "${horizon}"}'},
        {"thresholds": '{dead_letters: "${share}"}'},
        {"sinks": '[{from: rows, parquet: {path: a, compression: "${codec}", max_open_files: "${n}"}}]'},
    ],
)
def test_short_forms_and_parameters_fit_it(sections: dict[str, str]) -> None:
    assert wrong(spec(**sections)) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"pipelin": "p"},
        {"contract": "{columns: {n: {type: int8, requird: true}}}"},
        {"contract": "{columns: {n: {type: int8, required: yes}}}"},
        {"contract": "{file: c.yaml, key: [a]}"},
        {"sources": "{batch: [{files: a, format: cvs}]}"},
        {"sources": "{batch: [{files: a, format: text}]}"},
        {"deduplicate": "{within: 2 days}"},
        {"deduplicate": "{keep: newst}"},
        {"sinks": "[{from: rows, parquet: {pth: a}}]"},
        {"sinks": "[]"},
    ],
)
def test_what_editors_should_underline_does_not(sections: dict[str, str]) -> None:
    assert wrong(spec(**sections))
