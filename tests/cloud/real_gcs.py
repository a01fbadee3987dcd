"""The promises of docs/cloud-storage.md on the real Cloud Storage: `BUCKET=my-scratch-bucket python -m tests.cloud.real_gcs`.

It uses the account that you are logged in with, writes below gs://BUCKET/beam-pipelines-check-XXXXXX and deletes that at the end. A line for each promise: held or
broken, and how long it took; it exits with 1 where one is broken. With STORAGE_EMULATOR_HOST it checks that server, which is how it is tested itself.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import duckdb

from beam_pipelines import places
from beam_pipelines.errors import SinkError
from beam_pipelines.places.gcs_streams import BLOCK_BYTES, CHUNK_BYTES
from beam_pipelines.places.sql import reading

Check = Callable[[str], bool]


def one_winner(top: str) -> bool:
    """of twenty who create one name at once, one wins"""
    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(lambda n: places.create_new(f"{top}/race", str(n).encode()), range(20)))
    return sum(won) == 1 and places.read_bytes(f"{top}/race") == str(won.index(True)).encode()


def own_mark(top: str) -> bool:
    """who created a name knows it again, another does not"""
    return places.create_new(f"{top}/mark", b"1") and not places.create_new(f"{top}/mark", b"1")


def moved(top: str) -> bool:
    """a move can be repeated"""
    places.write_bytes(f"{top}/from", b"1")
    for _ in range(2):
        places.move(f"{top}/from", f"{top}/to")
    return places.read_bytes(f"{top}/from") is None and places.read_bytes(f"{top}/to") == b"1"


def listed(top: str) -> bool:
    """three pages of names are listed as soon as they are written"""
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda n: places.write_bytes(f"{top}/many/{n:05d}", b"1"), range(2_100)))
    return len(places.list_files(f"{top}/many")) == 2_100 and "many" in places.list_folders(top)


def large(top: str) -> bool:
    """a large stream is written and read in pieces"""
    content = os.urandom(2 * CHUNK_BYTES + 13)
    with places.open_new(f"{top}/large") as out:
        for start in range(0, len(content), 1 << 20):
            out.write(content[start : start + (1 << 20)])
    with places.open_read(f"{top}/large") as file:
        return b"".join(iter(lambda: file.read(1 << 20), b"")) == content


def one_generation(top: str) -> bool:
    """a reader of a file that is replaced gets no mixture"""
    places.write_bytes(f"{top}/replaced", b"1" * (3 * BLOCK_BYTES))
    with places.open_read(f"{top}/replaced") as file:
        file.read(10)
        places.write_bytes(f"{top}/replaced", b"2" * (3 * BLOCK_BYTES))
        try:
            return set(file.read()) == {ord("1")}  # a bucket with versioning or soft delete may still have it
        except FileNotFoundError:
            return True


def one_object_often(top: str) -> bool:
    """writes of one object faster than the service allows are slowed down, not lost"""
    for number in range(8):
        places.write_bytes(f"{top}/often", str(number).encode())
    return places.read_bytes(f"{top}/often") == b"7"


def by_sql(top: str) -> bool:
    """DuckDB reads it"""
    places.write_bytes(f"{top}/sql/a.jsonl", b'{"a": 1}\n{"a": 2}\n')
    return reading(duckdb.connect(), top).sql(f"SELECT sum(a) FROM read_json('{top}/sql/*.jsonl')").fetchall() == [(3,)]


def no_bucket(_: str) -> bool:
    """a missing bucket is said to be missing"""
    missing = f"gs://beam-pipelines-none-{uuid.uuid4().hex}/x"
    try:
        places.write_bytes(missing, b"1")
    except SinkError as error:
        return "there is no bucket" in str(error) or "403" in str(error)  # a name that others own is forbidden
    return False


CHECKS: tuple[Check, ...] = (one_winner, own_mark, moved, listed, large, one_generation, one_object_often, by_sql, no_bucket)


def check(bucket: str) -> Iterator[tuple[str, bool, float]]:
    """Each promise, whether it held, and the seconds it took."""
    top = f"gs://{bucket}/beam-pipelines-check-{uuid.uuid4().hex[:6]}"
    try:
        for promise in CHECKS:
            began = time.monotonic()
            held = promise(top)
            yield str(promise.__doc__), held, time.monotonic() - began
    finally:
        places.delete_tree(top)


def main() -> int:
    broken = 0
    for promise, held, seconds in check(os.environ["BUCKET"]):
        print(f"{'held  ' if held else 'BROKEN'} {seconds:6.2f} s  {promise}", flush=True)
        broken += not held
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
