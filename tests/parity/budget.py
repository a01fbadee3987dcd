"""How many timelines are tried: few and always the same in the everyday tests, as many as `PARITY_EXAMPLES` says at night, and new ones each time."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from zlib import crc32

from hypothesis import HealthCheck, Phase, seed, settings

EXAMPLES = int(os.environ.get("PARITY_EXAMPLES", "0"))
"""Timelines per kind of window in the nightly run; 0: the everyday number."""
BUNDLES = 12 if EXAMPLES else 6
"""The longest timelines: a bundle costs a fifth of a second on the graph."""


def tried(everyday: int, name: str, *, shrink: bool = True) -> Callable[[Any], Any]:
    """Settings of a property over timelines; put it above `given`. By day its examples are fixed, by its `name`."""
    phases = [Phase.explicit, Phase.generate, Phase.target, *([Phase.shrink] if shrink else [])]
    how = settings(
        max_examples=EXAMPLES or everyday,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        report_multiple_bugs=False,
    )
    return how if EXAMPLES else (lambda test: seed(crc32(name.encode()))(how(test)))
