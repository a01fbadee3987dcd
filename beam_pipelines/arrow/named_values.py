"""A Python row as its names and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def named_values(row: Any) -> dict[Any, Any] | None:
    """The names and values of a mapping, `beam.Row`, NamedTuple or dataclass, shallow; None where a row has no names."""
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, type):
        return None
    if hasattr(row, "_asdict"):  # NamedTuple and beam.Row
        return dict(row._asdict())
    if dataclasses.is_dataclass(row):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return None
