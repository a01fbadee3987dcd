"""Laws of ORC: what was written is read at its ordinal; a corrupt stripe costs itself; ranges cover the file."""

from __future__ import annotations

import gzip
import io
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.orc as pa_orc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.errors import RunError
from beam_pipelines.formats import orc_child
from beam_pipelines.formats.compression import decompress
from beam_pipelines.formats.orc import OrcReader
from beam_pipelines.formats.reader import DECODE, FILE, Broken

KEEP = Contract(columns={"id": Column(type="int64")})
DROP = Contract(columns={"id": Column(type="int64")}, unknown_columns="drop")


def rows_of(n: int) -> list[dict[str, Any]]:
    return [
        {"id": i, "user": {"name": f"n{i * i}", "tags": ["a"] * (i % 3)}, "text": None if i % 5 == 0 else f"text {i * 7919}"}
        for i in range(n)
    ]


def written(rows: list[dict[str, Any]] | pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    pa_orc.write_table(table, out, **({"stripe_size": 1024, "batch_size": 500, "compression": "zlib"} | options))
    return out.getvalue()


def read(content: bytes | BinaryIO, names: Contract = KEEP, **options: Any) -> tuple[list[tuple[int, dict[str, Any]]], list[Broken]]:
    rows: list[tuple[int, dict[str, Any]]] = []
    broken: list[Broken] = []
    for item in OrcReader(names).read(io.BytesIO(content) if isinstance(content, bytes) else content, **options):
        if isinstance(item, Broken):
            broken.append(item)
        else:
            item.validate(full=True)
            rows += zip(item["_position"].to_pylist(), item.drop_columns(["_position"]).to_pylist(), strict=True)
    return rows, broken


ROWS = rows_of(60_000)
CONTENT = written(ROWS)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, len(CONTENT)), max_size=4))
def test_every_row_is_read_once_whatever_the_ranges(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), None]
    batches = [b for a, e in zip(edges, edges[1:], strict=False) for b in OrcReader(DROP).read(io.BytesIO(CONTENT), start=a or 0, end=e)]
    assert [p for b in batches if isinstance(b, pa.RecordBatch) for p in b["_position"].to_pylist()] == list(range(60_000))
    assert [p for b in batches if isinstance(b, pa.RecordBatch) for p in b["id"].to_pylist()] == list(range(60_000))


def test_nested_columns_are_read() -> None:
    assert read(written(rows_of(20)))[0] == list(enumerate(rows_of(20)))
    assert read(written(rows_of(2)), DROP)[0] == [(0, {"id": 0}), (1, {"id": 1})]


def test_a_corrupt_stripe_costs_itself_and_no_other() -> None:
    file = pa_orc.ORCFile(io.BytesIO(CONTENT))
    assert file.nstripes >= 2
    sizes = [file.read_stripe(i, columns=["id"]).num_rows for i in range(file.nstripes)]
    content = bytearray(CONTENT)
    at = len(content) // 2
    content[at : at + 60] = b"\xff" * 60
    rows, broken = read(bytes(content))
    assert [b.reason for b in broken] == [FILE]
    number = [sum(sizes[:i]) for i in range(len(sizes))].index(broken[0].position)
    lost = range(broken[0].position, broken[0].position + sizes[number])
    assert f"stripe {number}: rows {lost.start} to {lost.stop - 1} cannot be read" in broken[0].message
    assert rows == [(i, r) for i, r in enumerate(ROWS) if i not in lost]


@pytest.mark.parametrize("content", [b"", b"ORC", b"a,b\n1,2\n", CONTENT[:-20], CONTENT[:2000]])
def test_a_file_without_a_good_footer_is_one_broken(content: bytes) -> None:
    rows, [broken] = read(content)
    assert not rows
    assert (broken.position, broken.reason) == (0, FILE)
    assert "not a readable ORC file" in broken.message
    assert read(content, start=1) == ([], [])


def test_a_compressed_file_is_read_and_a_truncated_one_is_one_broken() -> None:
    packed = gzip.compress(written(rows_of(10)))
    assert read(decompress(io.BytesIO(packed), "gzip"))[0] == list(enumerate(rows_of(10)))
    [broken] = read(decompress(io.BytesIO(packed[:-50]), "gzip"))[1]
    assert "truncated gzip" in broken.message


def test_invalid_utf8_costs_its_own_row() -> None:
    bad = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"b", b"\xff", b"d"], pa.binary()).buffers())
    rows, broken = read(written(pa.table({"id": [0, 1, 2, 3], "s": bad})))
    assert [p for p, _ in rows] == [0, 1, 3]
    assert [(b.position, b.reason) for b in broken] == [(2, DECODE)]


def test_a_damaged_name_of_a_member_is_one_broken() -> None:
    content = bytearray(written(rows_of(60), compression="uncompressed"))
    content[-199] = 128  # in the footer, within the name of a struct's member
    [broken] = read(bytes(content))[1]
    assert "not a readable ORC file: 'utf-8' codec can't decode byte 0x80" in broken.message


@given(
    st.lists(st.tuples(st.integers(0, 10**6) | st.integers(-200, -1), st.integers(0, 255)), min_size=1, max_size=4),  # the footer is last
    st.sampled_from(["zlib", "uncompressed", "zstd"]),
)
def test_no_bytes_raise(flips: list[tuple[int, int]], compression: str) -> None:
    content = bytearray(written(rows_of(60), compression=compression))
    for at, value in flips:
        content[at % len(content)] = value
    rows, broken = read(bytes(content))
    positions = [p for p, _ in rows] + [b.position for b in broken]
    assert len(set(positions)) == len(positions)


PLAIN = [{"id": i, "text": None if i % 5 == 0 else f"text {i * 7919}"} for i in range(400)]
FOUR_STRIPES = written(PLAIN, batch_size=100, compression="uncompressed")
CRASHES = FOUR_STRIPES[:105] + b"\x7f" + FOUR_STRIPES[106:]  # one of 18 of some 25,000 changes of one byte that end pyarrow 25.0.1 so
IN_PROCESS = "import io, sys; from pyarrow import orc; orc.ORCFile(io.BytesIO(sys.stdin.buffer.read())).read_stripe(0)"


def test_bytes_that_crash_the_reader_cost_their_stripe_and_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    crashed = subprocess.run([sys.executable, "-c", IN_PROCESS], input=CRASHES, capture_output=True, check=False)
    assert crashed.returncode == -signal.SIGSEGV, "if this pyarrow does not crash on them, find others"
    for _ in range(2):
        rows, broken = read(CRASHES)
        assert rows == list(enumerate(PLAIN))[100:]
        assert [(b.position, b.reason, b.rows) for b in broken] == [(0, FILE, 100)]
        assert "rows 0 to 99 cannot be read: these bytes bring the ORC reader down (SIGSEGV)" in broken[0].message
    assert capfd.readouterr() == ("", "")


def test_a_footer_whose_stripes_are_not_all_rows_is_one_broken() -> None:
    at = FOUR_STRIPES.rindex(b"\x30\x90\x03")  # numberOfRows = 400
    rows, [broken] = read(FOUR_STRIPES[:at] + b"\x30\x91\x03" + FOUR_STRIPES[at + 3 :])
    assert not rows
    assert (broken.position, broken.rows) == (0, 1)
    assert "its footer lists stripes of 400 rows; expected the 401 of the whole file" in broken.message


@pytest.fixture
def child_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Children that run a line of Python before `read_stripe(self, number, columns)`, and may work a second on a request."""
    script = """
import os, signal, sys
from pathlib import Path
from beam_pipelines.formats import orc_child
read_stripe = orc_child.pa_orc.ORCFile.read_stripe
def first(self, number, columns):
    exec(sys.argv[1])
    return read_stripe(self, number, columns)
orc_child.pa_orc.ORCFile.read_stripe = first
orc_child.serve(longest_s=1)
"""
    orc_child.end_idle()
    yield lambda line: monkeypatch.setattr(orc_child, "COMMAND", (sys.executable, "-c", script, line))
    orc_child.end_idle()


def test_a_child_that_comes_to_no_end_is_ended(child_with: Callable[[str], None]) -> None:
    child_with("while number == 1: pass")
    rows, [broken] = read(FOUR_STRIPES)
    assert rows == list(enumerate(PLAIN))[:100] + list(enumerate(PLAIN))[200:]
    assert (broken.position, broken.rows) == (100, 100)
    assert "keep the ORC reader busy" in broken.message


def test_a_child_that_takes_too_much_memory_is_refused_it(child_with: Callable[[str], None]) -> None:
    child_with("taken = bytearray(orc_child.MOST_BYTES) if number == 1 else None")
    rows, [broken] = read(FOUR_STRIPES)
    assert len(rows) == 300
    assert (broken.position, broken.rows) == (100, 100)
    assert "MemoryError" in broken.message


def test_a_child_that_is_killed_from_outside_costs_no_row(child_with: Callable[[str], None], tmp_path: Path) -> None:
    once = tmp_path / "once"
    child_with(f"if number == 2 and not os.path.exists({str(once)!r}): Path({str(once)!r}).touch(); os.kill(os.getpid(), signal.SIGKILL)")
    assert read(FOUR_STRIPES) == (list(enumerate(PLAIN)), [])
    assert once.exists()


def test_a_child_is_used_again_and_threads_have_one_each(child_with: Callable[[str], None]) -> None:
    def children() -> set[int]:
        return {child.pid for child in orc_child.idle}

    assert read(FOUR_STRIPES)[0] == list(enumerate(PLAIN))
    first = children()
    assert len(first) == 1
    next(OrcReader(KEEP).read(io.BytesIO(b"no ORC")))
    assert read(FOUR_STRIPES)[0] == list(enumerate(PLAIN))
    assert children() == first
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(read, [FOUR_STRIPES, CRASHES, FOUR_STRIPES, FOUR_STRIPES]))
    assert [(len(rows), sum(b.rows for b in broken)) for rows, broken in found] == [(400, 0), (300, 100), (400, 0), (400, 0)]
    assert len(children()) <= 3


def test_who_stops_in_the_middle_of_a_stripe_disturbs_no_later_file(child_with: Callable[[str], None]) -> None:
    whole = written([{"id": i} for i in range(200_000)], stripe_size=2**26, batch_size=65_536)
    reading = OrcReader(KEEP).read(io.BytesIO(whole))
    assert next(reading).num_rows == 65_536
    reading.close()
    assert read(FOUR_STRIPES)[0] == list(enumerate(PLAIN))


def test_an_error_of_the_stream_itself_passes_through() -> None:
    class Gone(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError("the store is gone")

    with pytest.raises(ConnectionResetError, match="the store is gone"):
        read(Gone(FOUR_STRIPES))


def test_a_child_that_does_not_start_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    orc_child.end_idle()
    monkeypatch.setattr(orc_child, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(RunError, match="did not start: it ended with 3"):
        read(FOUR_STRIPES)


def test_the_child_ends_with_its_parent_however_that_ends() -> None:
    script = """
import io, sys, time
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.formats import orc_child
from beam_pipelines.formats.orc import OrcReader
list(OrcReader(Contract(columns={"id": Column(type="int64")})).read(io.BytesIO(bytes.fromhex(sys.stdin.readline()))))
print(orc_child.idle[0].pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(FOUR_STRIPES.hex().encode() + b"\n")
    parent.stdin.flush()
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    ended, _, _ = select.select([child], [], [], 30)
    os.close(child)
    assert ended
