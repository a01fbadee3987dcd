"""What makes jobs of a few rows quick without changing what they do: this runner makes every DoFn anew for every bundle.

one DuckDB connection per thread, not per DoFn and bundle          23 ms each, and what is prepared on it
the state that a class of DoFns has looked up once                 Beam inspects all methods of a DoFn several times per bundle
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from apache_beam.transforms import userstate

from beam_pipelines.arrow.engine import Engine, local_engine

_one_at_a_time = threading.RLock()


@contextmanager
def quick() -> Iterator[None]:
    """Within it jobs of this process are quick; another thread that asks for it waits."""
    with _one_at_a_time, _patched():
        yield


@contextmanager
def _patched() -> Iterator[None]:
    select, ask = Engine.select, userstate.get_dofn_specs

    def of_thread(self: Engine, *arguments: Any, **options: Any) -> Any:
        return select(local_engine(), *arguments, **options)

    Engine.select, userstate.get_dofn_specs = of_thread, _once(ask)  # type: ignore[method-assign]  # for the time of the job
    try:
        yield
    finally:
        Engine.select, userstate.get_dofn_specs = select, ask  # type: ignore[method-assign]


def _once(ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[type, Any] = {}

    def specs(dofn: Any) -> Any:
        kind = type(dofn)
        if not kind.__module__.startswith("beam_pipelines."):  # those that wrap a function differ one by one
            return ask(dofn)
        if kind not in known:
            known[kind] = ask(dofn)
        return known[kind]

    return specs
