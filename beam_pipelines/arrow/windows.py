"""Windows as columns: fixed, sliding, session and local-calendar windows over an event-time column."""

from __future__ import annotations

from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from beam_pipelines.arrow.durations import Micros, format_duration
from beam_pipelines.arrow.model import Model, refuse

_DAY = 86_400_000_000
_LONGEST = 2**59  # 18,000 years of microseconds
_MOST_WINDOWS = 1_440  # of a row: a day every minute


class WindowSpec(Model):
    """How event time is cut into windows, and how long late rows may still update them.

    On time: arrival <= window end + `watermark_delay`. Late pane: arrival <= window end + `allowed_lateness`. Later: dead letter
    `LATE`. Times are microseconds; windows are half-open [start, end).
    """

    type: Literal["fixed", "sliding", "sessions", "calendar"] = "fixed"
    size: Micros | None = Field(None, gt=0, description="fixed and sliding: the window's length.")
    period: Micros | None = Field(None, gt=0, description="sliding: a window starts every period.")
    offset: Micros = Field(0, description="fixed and sliding: windows start at the epoch plus this.")
    gap: Micros | None = Field(None, gt=0, description="sessions: a pause this long ends the session.")
    max_length: Micros | None = Field(
        None, gt=0, description="sessions: longer ones are cut at multiples of this since the epoch; default 24h."
    )
    unit: Literal["hour", "day", "week", "month", "quarter", "year"] | None = Field(
        None, description="calendar: what the clock says; weeks start on Monday."
    )
    time_zone: str | None = Field(None, description="calendar: whose clock; default: the spec's `time_zone`.")
    watermark_delay: Micros = Field(0, ge=0, description="How long after the window's end an arrival is still on time.")
    allowed_lateness: Micros = Field(0, ge=0, description="How long after the window's end a late arrival updates the window.")

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, zone: str | None) -> str | None:
        if zone is not None:
            try:
                ZoneInfo(zone)
            except (ValueError, OSError, LookupError):
                raise ValueError(f"unknown time zone {zone!r}; expected a name of the IANA database, such as Europe/Berlin") from None
        return zone

    @model_validator(mode="after")
    def _complete(self) -> WindowSpec:
        needs = {"fixed": ("size",), "sliding": ("size", "period"), "sessions": ("gap",), "calendar": ("unit",)}[self.type]
        takes = {"fixed": {"size", "offset"}, "sliding": {"size", "period", "offset"}, "sessions": {"gap", "max_length"},
                 "calendar": {"unit", "time_zone"}}[self.type]  # fmt: skip
        faults: list[tuple[tuple[str | int, ...], str]] = [
            ((), f"a {self.type} window needs '{name}'") for name in needs if getattr(self, name) is None
        ]
        others = ("size", "period", "offset", "gap", "max_length", "unit", "time_zone")
        wrong = [name for name in others if name not in takes and name in self.model_fields_set]
        faults += [((name,), f"a {self.type} window takes no '{name}'; it takes {', '.join(sorted(takes))}") for name in wrong]
        refuse(faults + self._senseless())
        return self

    def _senseless(self) -> list[tuple[tuple[str | int, ...], str]]:
        durations = ("size", "period", "offset", "gap", "max_length", "watermark_delay", "allowed_lateness")
        faults: list[tuple[tuple[str | int, ...], str]] = [
            ((name,), "longer than 18,000 years") for name in durations if abs(getattr(self, name) or 0) > _LONGEST
        ]
        if self.type == "sliding" and self.size and self.period:
            if self.period > self.size:
                faults.append(
                    (("period",), "a sliding window's period must not be longer than its size: rows between windows would vanish")
                )
            elif self.size > self.period * _MOST_WINDOWS:
                text = f"every row would be in {self.size // self.period} windows; expected at most {_MOST_WINDOWS}: a longer period or a shorter size"
                faults.append((("period",), text))
        if self.type == "sessions" and self.gap and self.gap > self.longest:
            text = (
                f"a session's max_length ({format_duration(self.longest)}) must not be shorter than its gap ({format_duration(self.gap)})"
            )
            faults.append((("max_length",), text))
        return faults

    @property
    def longest(self) -> int:
        """sessions: `max_length`, or its default."""
        return self.max_length or _DAY
