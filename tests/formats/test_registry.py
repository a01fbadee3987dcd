"""Every format has a reader and decodes what it reads."""

from __future__ import annotations

import io
import subprocess
import sys

import fastavro
import pyarrow as pa
import pyarrow.orc as pa_orc
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.program import Program
from beam_pipelines.formats.options import Format
from beam_pipelines.formats.registry import decode_steps, reader

NAMES = Contract(columns={"a": Column(type="int64"), "b": Column(type="string")}, unknown_columns="drop")
TABLE = pa.table({"a": [1, 2], "b": ["x", "y"]})


def avro() -> bytes:
    out = io.BytesIO()
    fastavro.writer(
        out, {"type": "record", "name": "r", "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "string"}]}, TABLE.to_pylist()
    )
    return out.getvalue()


def columnar(module: object) -> bytes:
    out = io.BytesIO()
    module.write_table(TABLE, out)  # type: ignore[attr-defined]
    return out.getvalue()


@pytest.mark.parametrize(
    ("fmt", "content"),
    [
        ("csv", b"a,b\n1,x\n2,y\n"),
        ("json", b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'),
        ({"type": "text", "pattern": r"(?P<a>\d)(?P<b>\w)"}, b"1x\n2y\n"),
        ("avro", avro()),
        ("parquet", columnar(pq)),
        ("orc", columnar(pa_orc)),
    ],
)
def test_what_is_read_is_decoded(fmt: object, content: bytes) -> None:
    chosen: Format = TypeAdapter(Format).validate_python(fmt)
    [batch] = reader(chosen, NAMES).read(io.BytesIO(content))
    assert isinstance(batch, pa.RecordBatch)
    split = Program(decode_steps(chosen, NAMES))(batch)
    assert [str(v) for v in split.rows["a"].to_pylist()] == ["1", "2"]
    assert split.rows["b"].to_pylist() == ["x", "y"]
    assert split.dead.num_rows == 0


def test_models_of_formats_load_no_pyarrow() -> None:
    program = "import sys, beam_pipelines.formats.options; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
