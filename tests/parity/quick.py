"""What makes jobs of a few rows quick without changing what they do: this runner makes every DoFn anew for every bundle.

one DuckDB connection per thread, not per DoFn and bundle          23 ms each, and what is prepared on it
the state that a class of DoFns has looked up once                 Beam inspects all methods of a DoFn several times per bundle
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from apache_beam.transforms import userstate

from beam_pipelines.arrow.engine import Engine, local_engine


@contextmanager
def quick() -> Iterator[None]:
    """Within it jobs are quick."""
    select = Engine.select

    def of_thread(self: Engine, *arguments: Any, **options: Any) -> Any:
        return select(local_engine(), *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "select", of_thread)
        patch.setattr(userstate, "get_dofn_specs", _once(userstate.get_dofn_specs))
        yield


def _once(ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[type, Any] = {}

    def specs(dofn: Any) -> Any:
        if type(dofn) not in known:
            known[type(dofn)] = ask(dofn)
        return known[type(dofn)]

    return specs
