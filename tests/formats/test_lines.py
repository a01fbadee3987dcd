"""Laws of cutting a stream into lines: no byte is lost, no line is read twice, memory stays bounded."""

from __future__ import annotations

import io
import tracemalloc
from typing import BinaryIO

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import SpecError
from beam_pipelines.formats.lines import read_lines
from beam_pipelines.formats.reader import FILE, TOO_LARGE, Broken, DamagedStream, Limits

CONTENT = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", b"\n\n", b'"', b"\x00", b"\xff", "é😀".encode()]), max_size=40).map(
    b"".join
)
BLOCK = st.integers(1, 40)


def records(content: bytes | BinaryIO, **options: object) -> tuple[list[tuple[int, bytes]], list[Broken]]:
    """(position, record without terminators) of every line, and what is broken."""
    good: list[tuple[int, bytes]] = []
    broken: list[Broken] = []
    for item in read_lines(io.BytesIO(content) if isinstance(content, bytes) else content, **options):  # type: ignore[arg-type]
        if isinstance(item, Broken):
            broken.append(item)
            continue
        item.validate(full=True)
        for position, raw in zip(item["_position"].to_pylist(), item["_raw"].to_pylist(), strict=True):
            good.append((position, raw.rstrip(b"\r\n")))
    return good, broken


def expected(content: bytes) -> list[tuple[int, bytes]]:
    out, at = [], 0
    for line in content.split(b"\n"):
        if line not in (b"", b"\r"):
            out.append((at, line.rstrip(b"\r")))
        at += len(line) + 1
    return out


@given(CONTENT, BLOCK)
def test_every_line_is_read_once_at_its_position(content: bytes, block: int) -> None:
    good, broken = records(content, limits=Limits(block_bytes=block))
    assert good == expected(content)
    assert not broken


@given(CONTENT, BLOCK, st.lists(st.integers(0, 80), max_size=5), st.booleans())
def test_ranges_that_cover_a_file_read_what_the_whole_file_reads(content: bytes, block: int, cuts: list[int], mark: bool) -> None:
    content = b"\xef\xbb\xbf" + content if mark else content
    limits = Limits(block_bytes=block)
    edges = [0, *sorted(cuts), None]
    parts = [records(content, start=a or 0, end=b, limits=limits)[0] for a, b in zip(edges, edges[1:], strict=False)]
    assert sum(parts, []) == records(content, limits=limits)[0]


@given(CONTENT, st.integers(1, 6), BLOCK, st.lists(st.integers(0, 80), max_size=3))
def test_a_line_beyond_the_limit_is_broken_and_no_other_is(content: bytes, most: int, block: int, cuts: list[int]) -> None:
    limits = Limits(max_record_bytes=most, block_bytes=block)
    edges = [0, *sorted(cuts), None]
    good: list[tuple[int, bytes]] = []
    broken: list[Broken] = []
    for a, b in zip(edges, edges[1:], strict=False):
        more = records(content, start=a or 0, end=b, limits=limits)
        good, broken = good + more[0], broken + more[1]
    lines = expected(content)
    assert {at for at, _ in good} | {b.position for b in broken} == {at for at, _ in lines}
    assert len(good) + len(broken) == len(lines)
    assert all(len(text) <= most + 1 for _, text in good)
    assert all(b.reason == TOO_LARGE for b in broken)
    assert {b.position for b in broken} >= {at for at, text in lines if len(text) > most + 1}


class Endless(io.RawIOBase):
    """`size` bytes of `a` and then `tail`, made as they are read."""

    def __init__(self, size: int, tail: bytes) -> None:
        self.left, self.tail = size, tail

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        n = min(len(view), self.left)
        if n:
            view[:n] = b"a" * n
            self.left -= n
            return n
        n = min(len(view), len(self.tail))
        view[:n] = self.tail[:n]
        self.tail = self.tail[n:]
        return n


def test_a_line_of_100_megabytes_is_one_broken_record_and_is_never_held() -> None:
    tracemalloc.start()
    good, broken = records(Endless(100 * 2**20, b"\nnext\n"), limits=Limits(max_record_bytes=2**20, block_bytes=2**20))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert good == [(100 * 2**20 + 1, b"next")]
    assert [(b.position, b.reason, b.raw) for b in broken] == [(0, TOO_LARGE, b"a" * 2**16)]
    assert "got 104857600 bytes; expected at most 1048576" in broken[0].message
    assert peak < 8 * 2**20


def test_memory_does_not_grow_with_the_file() -> None:
    def peak(lines: int) -> int:
        tracemalloc.start()
        batches = read_lines(Lines(lines), limits=Limits(block_bytes=2**18))  # type: ignore[arg-type]
        rows = sum(b.num_rows for b in batches if isinstance(b, pa.RecordBatch))
        assert rows == lines
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(400_000) < 1.2 * peak(50_000)


class Lines(io.RawIOBase):
    """`lines` lines of 10 bytes."""

    def __init__(self, lines: int) -> None:
        self.at, self.size = 0, lines * 10
        self.text = b"123456789\n" * 2**15

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        begin = self.at % 10
        n = min(len(view), self.size - self.at, len(self.text) - begin)
        view[:n] = self.text[begin : begin + n]
        self.at += n
        return n


def test_raw_is_the_block_itself() -> None:
    [batch] = list(read_lines(io.BytesIO(b"{}\n\n{}\r\n\r\n[]")))
    assert isinstance(batch, pa.RecordBatch)
    assert batch["_raw"].buffers()[2].to_pybytes() == b"{}\n\n{}\r\n\r\n[]"
    assert batch["_raw"].to_pylist() == [b"{}\n\n", b"{}\r\n\r\n", b"[]"]
    assert batch["_position"].to_pylist() == [0, 4, 10]


def test_an_empty_file_has_no_lines() -> None:
    assert list(read_lines(io.BytesIO(b""))) == []
    assert list(read_lines(io.BytesIO(b"\n\r\n\n"))) == []
    assert list(read_lines(io.BytesIO(b"\xef\xbb\xbf"))) == []


def test_blank_lines_are_records_on_request() -> None:
    assert records(b"a\n\nb", skip_empty=False)[0] == [(0, b"a"), (2, b""), (3, b"b")]


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@given(text=st.text(st.sampled_from("aé😀\n"), max_size=30), block=BLOCK)
def test_a_byte_order_mark_wins(codec: str, text: str, block: int) -> None:
    mark = b"" if codec in ("utf-16", "utf-32", "utf-8-sig") else "\ufeff".encode(codec)
    content = mark + text.encode(codec)
    good, broken = records(content, limits=Limits(block_bytes=block), encoding="latin-1")
    assert [raw.decode() for _, raw in good] == [line for line in text.split("\n") if line]
    assert not broken
    assert records(content, start=1, encoding="utf-8")[0] == ([g for g in good if g[0] > 3] if codec == "utf-8-sig" else [])


def test_undecodable_bytes_cost_their_own_line() -> None:
    content = "a\nb".encode("utf-16") + b"\x00\xd8" + "\nc".encode("utf-16-le") + b"x"
    assert [raw for _, raw in records(content)[0]] == [b"a", b"b\xff", b"c\xff"]
    assert [raw for _, raw in records(b"a\n\x81\n\x80", encoding="cp1252")[0]] == [b"a", b"\xff", "€".encode()]


def test_an_unknown_encoding_is_the_users_error() -> None:
    for name in ("utf-9", "hex"):
        with pytest.raises(SpecError, match="unknown text encoding"):
            list(read_lines(io.BytesIO(b"a"), encoding=name))


class Damaged(io.BytesIO):
    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        n = super().readinto(view)
        if n == 0:
            raise DamagedStream("it ends too early")
        return n


def test_lines_before_a_break_are_kept_and_the_rest_is_one_broken() -> None:
    good, broken = records(Damaged(b"a\nb\nhalf"))
    assert good == [(0, b"a"), (2, b"b")]
    assert broken == [Broken(4, FILE, "it ends too early", b"half")]
    assert records(Damaged(b"a\n"))[1] == [Broken(2, FILE, "it ends too early", b"")]


def test_limits_are_bounded() -> None:
    with pytest.raises(SpecError, match="max_record_bytes"):
        Limits(max_record_bytes=2**31)
