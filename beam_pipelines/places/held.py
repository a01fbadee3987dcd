"""A file as it was read, for whoever replaces only that."""

from __future__ import annotations

from typing import NamedTuple


class Held(NamedTuple):
    """Its content; `generation` is Cloud Storage's."""

    content: bytes
    generation: int | None = None
