"""Ranges of time, half-open [start, end), in microseconds since 1970-01-01 UTC, and those that hive partitions stand for.

day=2013-12-01         ├────────24 h────────┤
hour=2013-12-01-05     ├─1 h─┤
month=2013-12          ├────────31 days─────…
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

_CODE = {"year": "Y", "month": "M", "day": "D", "hour": "h"}


class Range(NamedTuple):
    """An instant is in it if start <= instant < end."""

    start: int
    end: int


def partition_range(directory: str, name: str, unit: str) -> Range | None:
    """The time that the partition `directory` (`origin=EWR/t_day=2013-12-01`) stands for by its level `name`; None for NULL, or without that level.

    >>> partition_range("origin=EWR/t_hour=2013-12-01-05", "t_hour", "hour") == Range(1385874000000000, 1385877600000000)
    True
    """
    value = next((v for n, _, v in (level.partition("=") for level in directory.split("/")) if n == name), None)
    if value is None:
        return None
    text = f"{value[:-3]}T{value[-2:]}" if unit == "hour" else value
    try:
        at = np.array(text, f"datetime64[{_CODE[unit]}]")
    except ValueError:  # the directory of NULLs
        return None
    return Range(_micros(at), _micros(at + 1))


def partition_value(at: int, unit: str) -> str:
    """The value, in the name of a directory, of the partition that the instant lies in. Values sort as instants do.

    >>> partition_value(1385874000000000, "hour")
    '2013-12-01-05'
    """
    return str(np.array(at, "datetime64[us]").astype(f"datetime64[{_CODE[unit]}]")).replace("T", "-")


def widened(asked: tuple[int, int], unit: str) -> Range:
    """The smallest range of whole UTC hours, days, months or years that holds `asked`.

    >>> widened((1, 2), "hour") == Range(0, 3600000000)
    True
    """
    code = f"datetime64[{_CODE[unit]}]"
    start, last = np.array(asked[0], "datetime64[us]").astype(code), np.array(asked[1] - 1, "datetime64[us]").astype(code)
    return Range(_micros(start), _micros(last + 1))


def union(ranges: Iterable[tuple[int, int]]) -> tuple[Range, ...]:
    """The same instants in as few ranges as can be, in order.

    >>> union([(3, 5), (0, 2), (2, 3), (9, 9)])
    (Range(start=0, end=5),)
    """
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if joined and start <= joined[-1].end:
            joined[-1] = Range(joined[-1].start, max(end, joined[-1].end))
        else:
            joined.append(Range(start, end))
    return tuple(joined)


def minus(one: tuple[int, int], cuts: Sequence[tuple[int, int]]) -> tuple[Range, ...]:
    """The instants of `one` that are in none of `cuts`, in order.

    >>> minus((0, 10), [(2, 3), (8, 20)])
    (Range(start=0, end=2), Range(start=3, end=8))
    """
    left, start = [], one[0]
    for cut in union(cuts):
        if cut.start > start:
            left.append(Range(start, min(cut.start, one[1])))
        start = max(start, cut.end)
        if start >= one[1]:
            break
    return tuple(r for r in (*left, Range(start, one[1])) if r.start < r.end)


def show_instant(at: int) -> str:
    """The instant as ISO 8601 in UTC.

    >>> show_instant(0)
    '1970-01-01T00:00:00Z'
    """
    text = str(np.array(at, "datetime64[us]"))
    return text.removesuffix(".000000") + "Z"


def show_range(shown: tuple[int, int]) -> str:
    """`[2013-12-01T00:00:00Z, 2013-12-08T00:00:00Z)`."""
    return f"[{show_instant(shown[0])}, {show_instant(shown[1])})"


def _micros(at: Any) -> int:
    return int(at.astype("datetime64[us]").astype(np.int64))
