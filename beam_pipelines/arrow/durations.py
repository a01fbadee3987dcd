"""Durations as people write them: `90s`, `15m`, `1h`, `2d`, `1w`, `250ms`. A day is 24 hours; calendar days are a window type."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from beam_pipelines.errors import SpecError

_MICROS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}
WRITTEN = {"durations": "written"}
"""Validation context of what people write, where a number has a unit; Python code gives microseconds."""
PATTERN = r"^(\d+(us|ms|s|m|h|d|w))+$"


def parse_duration(text: str) -> int:
    """Microseconds in `text`.

    Raises SpecError for anything but numbers with units.

    >>> parse_duration('1h30m') // 1_000_000
    5400
    """
    parts = re.findall(r"(\d+)(us|ms|[smhdw])", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise SpecError(f"duration {text!r} is not a number with a unit.", hint="Write 30s, 15m, 1h, 2d, 1w or 1h30m.")
    return sum(int(n) * _MICROS[u] for n, u in parts)


def format_duration(micros: int) -> str:
    """The shortest text that `parse_duration` reads back as `micros`.

    >>> format_duration(5_400_000_000)
    '1h30m'
    """
    text = ""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, micros = divmod(micros, _MICROS[unit])
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _coerce(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except SpecError as error:
            raise ValueError(str(error)) from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a duration is text with a unit, such as 30s or 2d; got {value!r}")
    if value and info.context == WRITTEN:
        raise ValueError(f"a duration is text with a unit, such as {value}s or {value}d; got the number {value}")
    return value


Micros = Annotated[
    int,
    BeforeValidator(_coerce),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": PATTERN, "examples": ["30s", "1h", "2d"]}),
]
"""A field that holds microseconds and is written as a duration."""
