"""Keyed state decoded once per process: what a key holds stays as Python objects between bundles, valid while a token in state says so.

Beam hands state over as bytes at every bundle; decoding a large state each time would cost more than the work on it. So a stage keeps

    in state    a bag of Arrow blobs, appended to, and a random token
    in memory   (token, the decoded value)

and trusts its memory only where both tokens are equal: a retried bundle, another worker, a restored checkpoint bring another token, and
the value is read from the bag again. The token is random, never a counter: two histories could count alike.

Prism keeps state in memory, in a process that ends with this one, tries no bundle again and gives a key to no other worker: what it would hold
is a copy of what is here. There (`resident(True)`) memory is the state, and neither bag nor token is written.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Any

import pyarrow as pa

from beam_pipelines.arrow.keys import MOST_SHARDS
from beam_pipelines.coders import Handed, forget_handed
from beam_pipelines.errors import SpecError

KEYED_ROWS = 60_000
"""Rows of a bundle that go to keyed state together: a bucket or shard has fixed costs for each batch, a SELECT among them."""

_MOST = 1_024  # keys remembered by a process; a key that falls out is read from its state again
_lock = threading.Lock()
_known: OrderedDict[tuple[str, Any], tuple[bytes, Any]] = OrderedDict()
_resident = threading.Event()


def resident(on: bool) -> None:
    """Whether memory is the state from now on; forgets all. One such job at a time in a process."""
    forget()
    forget_handed()
    if on:
        _resident.set()
    else:
        _resident.clear()


def is_resident() -> bool:
    """Whether what is remembered is all there is, and nothing needs to be written."""
    return _resident.is_set()


def checked_shards(where: str, shards: int) -> int:
    """`shards` as a number of keys of state. Raises SpecError where it is none."""
    if not 1 <= shards <= MOST_SHARDS:
        raise SpecError(f"{where}: shards is {shards}; expected 1 to {MOST_SHARDS}.")
    return shards


def keyed_batches() -> Any:
    """The type of (key, batch) elements that exactly one transform takes, asked when a graph is made. Where memory is not the state it is `RecordBatchCoder`'s: that is
    part of what a cluster saves."""
    return tuple[int, Handed] if is_resident() else tuple[int, pa.RecordBatch]


def recall(stage: str, key: Any, token: Any) -> Any | None:
    """The value remembered for `key` of `stage` if `token` (a ReadModifyWrite state of bytes) still names it, or memory is the state; else None.

    The caller owns what it gets: it may change it, and must `remember` it again, or a failed bundle's changes would stay.
    """
    named = b"" if is_resident() else token.read()
    with _lock:
        found = _known.pop((stage, key), None)
    return found[1] if found is not None and found[0] == named else None


def remember(stage: str, key: Any, token: Any, value: Any) -> None:
    """Remembers `value` under a new token, which it writes to state, but where memory is the state; call it after the bag was written."""
    ours = is_resident()
    named = b"" if ours else secrets.token_bytes(8)
    if not ours:
        token.write(named)
    with _lock:
        _known[(stage, key)] = (named, value)
        _known.move_to_end((stage, key))
        while not ours and len(_known) > _MOST:
            _known.popitem(last=False)


def forget(stage: str | None = None) -> None:
    """Forgets the values of a stage, or of all: only memory, never state."""
    with _lock:
        for known in [k for k in _known if stage is None or k[0] == stage]:
            del _known[known]
