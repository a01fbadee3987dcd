"""What makes jobs in this process quick without changing what they do: the local runner makes DoFns anew, some for every bundle.

one DuckDB connection per thread, not per DoFn                     17 ms each, and what is prepared on it
the state that a class of DoFns has looked up once                 Beam inspects all methods of a DoFn eight times while a graph is built and run
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from apache_beam.transforms import userstate

from beam_pipelines.arrow.engine import engines_shared


@contextmanager
def quick() -> Iterator[None]:
    """Within it jobs of this process are quick. Several threads may be in it."""
    if not isinstance(userstate.get_dofn_specs, _Remembered):
        userstate.get_dofn_specs = _Remembered(userstate.get_dofn_specs)  # for good: what it says does not change
    with engines_shared():
        yield


class _Remembered:
    """`get_dofn_specs` that asks once for a class of ours, whose methods do not change; a user's DoFn is the user's affair."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        self._ask = ask
        self._known: dict[type, Any] = {}

    def __call__(self, dofn: Any) -> Any:
        kind = type(dofn)
        if not kind.__module__.startswith("beam_pipelines."):
            return self._ask(dofn)
        if kind not in self._known:
            self._known[kind] = self._ask(dofn)
        return self._known[kind]
