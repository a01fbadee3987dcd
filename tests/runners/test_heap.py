"""The heap of a run: memory that was freed is there for the next block."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_BLOCKS = """
import resource
import numpy as np
from beam_pipelines.runners.heap import keep_memory

if {kept}:
    keep_memory()
for _ in range(3):
    [np.ones(6 << 20, np.uint8) for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    [np.ones(6 << 20, np.uint8) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(*, kept: bool) -> int:
    """Page faults of 20 rounds of four blocks of 6 MiB, which are freed after each."""
    program = [sys.executable, "-c", _BLOCKS.format(kept=kept)]
    return int(subprocess.run(program, check=True, capture_output=True, text=True, env={"NUMPY_MADVISE_HUGEPAGE": "0"}).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is set")
def test_memory_of_a_batch_is_not_fetched_anew() -> None:
    assert _faults(kept=True) * 10 < _faults(kept=False)
