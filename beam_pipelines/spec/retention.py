"""How long what a pipeline keeps is kept; `beam-pipelines compact` applies it, and no run does."""

from __future__ import annotations

from pydantic import Field

from beam_pipelines.arrow.durations import Micros
from beam_pipelines.arrow.model import Model

_HOUR = 3_600_000_000  # no less: a plain number, which would be microseconds, is a slip of the pen


class Retention(Model):
    """How long things are kept. `beam-pipelines compact` deletes what is older, and says what; runs and streams delete nothing.

    Each field left out keeps for ever; an hour is the least. Age is measured against the newest message of the stream, or this machine's clock where that is earlier.
    """

    archive: Micros | None = Field(
        None, ge=_HOUR, description="Raw messages, by whole hours of arrival. At least what a stream that starts again may need."
    )
    speed: Micros | None = Field(
        None, ge=_HOUR, description="What a stream has stored of rows, panes and doors, where a batch run has committed the answer since."
    )
    dead_letters: Micros | None = Field(None, ge=_HOUR, description="Dead letters of batch runs, by run, and of the stream, by arrival.")
    runs: Micros | None = Field(
        None, ge=_HOUR, description="Records of runs. The newest 20 stay, and those of runs that outputs still hold."
    )
