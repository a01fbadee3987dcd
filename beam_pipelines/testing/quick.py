"""Jobs of tests are quick, and one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from beam_pipelines.runners import quick as of_runners

_one_at_a_time = threading.RLock()


@contextmanager
def quick() -> Iterator[None]:
    """Within it jobs of this process are quick; another thread that asks for it waits."""
    with _one_at_a_time, of_runners.quick():
        yield
