"""Laws of reading compressed files: every good byte, then a clear end; no bomb."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from backports import zstd
from hypothesis import example, given
from hypothesis import strategies as st

from beam_pipelines.errors import SpecError
from beam_pipelines.formats.compression import CHECKED_LATE, FREE_BYTES, DecompressionBomb, codec_of, decompress, sound_bytes
from beam_pipelines.formats.lines import read_lines
from beam_pipelines.formats.reader import FILE, Broken, DamagedStream

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "zstd": zstd.compress}
CODECS = pytest.mark.parametrize("codec", PACK)


def unpack(packed: bytes, codec: str, **options: Any) -> tuple[bytes, str]:
    """The bytes before the end or break, and the break's message."""
    stream, out = decompress(io.BytesIO(packed), codec, **options), b""
    try:
        while chunk := stream.read(1000):
            out += chunk
    except DamagedStream as error:
        return out, str(error)
    return out, ""


@CODECS
@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_all_members_are_read_one_after_the_other(codec: str, parts: list[bytes], padding: int) -> None:
    packed = b"".join(PACK[codec](p) for p in parts) + b"\0" * padding
    assert unpack(packed, codec) == (b"".join(parts), "")


@CODECS
def test_large_output_is_streamed(codec: str) -> None:
    content = b"".join(b"%d," % i for i in range(600_000))
    assert unpack(PACK[codec](content), codec) == (content, "")


@CODECS
def test_bytes_before_a_truncation_are_kept(codec: str) -> None:
    content = b"".join(b"%d\n" % (i * i) for i in range(300_000))
    packed = PACK[codec](content)
    good, why = unpack(packed[: len(packed) // 2], codec)
    assert content.startswith(good)
    assert len(good) > len(content) // 4
    assert f"truncated {codec} file" in why


def test_blocks_of_bzip2_before_a_wrong_one_come_out_however_many_are_read_at_once() -> None:
    content = b"".join(b"%d,%d\n" % (i, i * i % 97) for i in range(90_000))
    packed = bytearray(bz2.compress(content, 1))  # blocks of 100 kB, of 31 kB when packed
    packed[50_000] ^= 1  # of the second
    good, why = unpack(bytes(packed), "bzip2")
    assert content.startswith(good)
    assert len(good) > 99_900
    assert "corrupt bzip2 file near byte" in why


def test_a_truncated_gzip_gives_its_good_lines_and_one_broken() -> None:
    content = b"".join(b"%d\n" % (i * i) for i in range(1000))
    packed = gzip.compress(content)
    items = list(read_lines(decompress(io.BytesIO(packed[:-200]), "gzip")))
    good = b"".join(raw for item in items[:-1] for raw in item["_raw"].to_pylist())
    last = items[-1]
    assert isinstance(last, Broken)
    assert content.startswith(good)
    assert good.endswith(b"\n")
    assert len(good) > 1000
    assert (last.position, last.reason) == (len(good), FILE)
    assert "truncated gzip file" in last.message


@CODECS
def test_what_is_no_such_file_says_so(codec: str) -> None:
    good, why = unpack(b"a,b\n1,2\n", codec)
    assert good == b""
    assert f"no {codec} file at byte 0: got b'a,b\\n'" in why


@CODECS
def test_garbage_behind_the_data_is_told(codec: str) -> None:
    good, why = unpack(PACK[codec](b"abc") + b"garbage", codec)
    assert good == b"abc"
    assert f"bytes behind the last member of a {codec} file" in why


@CODECS
@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_corrupt_bytes_never_raise_anything_else(codec: str, at: int, flip: int) -> None:
    packed = bytearray(PACK[codec](b"".join(b"%d," % (i * i) for i in range(1000))))
    packed[at % len(packed)] ^= flip
    unpack(bytes(packed), codec)


def zstd_with_checksum(content: bytes) -> bytes:
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


@pytest.mark.parametrize(("codec", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress), ("zstd", zstd_with_checksum)])
@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
@example(at=2997, flip=9)
def test_with_wrong_bytes_anywhere_no_wrong_byte_comes_out(codec: str, pack: Callable[[bytes], bytes], at: int, flip: int) -> None:
    first, second = (b"".join(b"%d," % (i * i) for i in range(many)) for many in (300, 1000))
    whole = pack(first)
    packed = bytearray(whole + pack(second))
    at = len(whole) + at % (len(packed) - len(whole))  # wrong in the second member
    packed[at] ^= flip
    out, why = unpack(bytes(packed), codec, sound=sound_bytes(io.BytesIO(packed), codec) if codec in CHECKED_LATE else None)
    assert out.startswith(first)
    assert (first + second).startswith(out) or "truncated" in why  # a wrong bit can hide the end: then no checksum was come to
    assert why or out == first + second  # some bits of a header say nothing of the content


def test_a_corrupt_gzip_says_from_where_nothing_was_read() -> None:
    first, second = b"0123456789\n", b"".join(b"%d\n" % (i * i) for i in range(1000))
    packed = bytearray(gzip.compress(first) + gzip.compress(second))
    packed[-8] ^= 1  # of the checksum
    sound = sound_bytes(io.BytesIO(packed), "gzip")
    assert sound is not None
    assert sound.bytes == len(first)
    out, why = unpack(bytes(packed), "gzip", sound=sound)
    assert out == first
    assert "incorrect data check; of what it unpacks to, nothing from byte 11 on was read" in why


@CODECS
def test_an_empty_file_is_empty(codec: str) -> None:
    assert unpack(b"", codec) == (b"", "")
    assert unpack(PACK[codec](b""), codec) == (b"", "")


@CODECS
def test_a_bomb_is_stopped(codec: str) -> None:
    packed = PACK[codec](bytes(2**20)) * (FREE_BYTES // 2**20 + 2)
    stream = decompress(io.BytesIO(packed), codec, max_expansion=10, compressed_size=len(packed))
    chunks: list[int] = []
    with pytest.raises(DecompressionBomb, match="expected at most 10 times"):
        chunks.extend(iter(lambda: len(stream.read(2**20)), 0))
    assert sum(chunks) <= FREE_BYTES + 2**20


def test_a_small_file_may_expand_as_it_likes() -> None:
    assert unpack(zlib_gzip(bytes(2**20)), "gzip", max_expansion=1) == (bytes(2**20), "")


def zlib_gzip(content: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(content) + packer.flush()


def test_codecs_by_ending_and_by_name() -> None:
    assert [codec_of(p) for p in ("a.CSV.GZ", "a.bz2", "a.json.zst", "a.parquet")] == ["gzip", "bzip2", "zstd", None]
    assert [codec_of("a.gz", c) for c in ("auto", "none", "zstd")] == ["gzip", None, "zstd"]
    plain = io.BytesIO(b"x")
    assert decompress(plain, None) is plain
    with pytest.raises(SpecError, match="compression: got 'rar'"):
        decompress(plain, "rar")
