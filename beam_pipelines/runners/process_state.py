"""What a process keeps of the stream that runs in it, all that a start begins without."""

from __future__ import annotations

from beam_pipelines import arrival_clock, back_pressure, draining, durable, metrics
from beam_pipelines.transforms import keyed_state


def begin_anew(*, most_waiting_bytes: int | None) -> None:
    """Forgets what an earlier start has left in this process; to be called before the graph is built.

    `most_waiting_bytes` is the bound of `back_pressure`, None where the runner has its own. That somebody has asked the stream to end stays: it holds for
    the starts that follow, too (`draining.reset`). A module that comes to keep something per process is refused by tests until it is reset here, or says there
    why it outlives a start.
    """
    draining.forget_ends()
    arrival_clock.reset()
    durable.reset()
    metrics.reset()
    back_pressure.limit(most_waiting_bytes)
    keyed_state.forget()
