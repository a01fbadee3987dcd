"""The partitions that dead letters touch, which input answers each, and what may keep one from being computed anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from beam_pipelines.arrow.ranges import Range, show_range, widened
from beam_pipelines.runners.letter_records import Input
from beam_pipelines.runners.lost_inputs import Lost, named
from beam_pipelines.sinks.manifest import Snapshot

Why = Literal[
    "replay", "still refused", "crashes", "gone", "unreadable", "no record", "no event time", "beside a crash", "open in the stream", "other input",
    "input gone", "batch alone", "of a file", "for the batch", "no arrival", "not kept",
]  # fmt: skip
SENTENCES: Mapping[Why, str] = {
    "replay": "go through the graph again",
    "still refused": "would be refused again",
    "crashes": "bring down the process that works on them",
    "gone": "are no longer in the input: their files or archived hours are gone, or hold something else there",
    "unreadable": "cannot be read, or their files are gone: run again once they are repaired",
    "no record": "stand for no record: a pane, not a row, was refused",
    "no event time": "have no event time, so they lie in no range: a run over everything takes them in",
    "beside a crash": "lie in files with a record that crashes, and a batch over them would crash, too",
    "open in the stream": "lie in time whose windows the stream still holds open: replay them later, or --into stream",
    "other input": "lie in time that is answered from another input, which does not have their records",
    "input gone": "lie in time that cannot be computed again as it was, because input of it is gone",
    "batch alone": "are of a stream whose outputs are not partitioned by event time, where a batch would hide all that it has stored: use --into stream",
    "of a file": "are records of files: use --into batch",
    "for the batch": "are of windows that are closed, or of a sink, to which the stream gives a row once: use --into batch",
    "no arrival": "have no arrival time: use --into batch",
    "not kept": "have no bytes to send: neither the archive nor the letter has them, or the key does not open them",
}
"""Why a letter is replayed, or stays: what is said of many."""


@dataclass
class Partitions:
    """Whole partitions of every output, of `units`; `known` says from which input a batch computed each. Rows around a range matter by `reach` (microseconds
    before, after); windows of a stream are `closed` up to there (None: no matter); `streamed` says whether a stream has stored rows of a range.
    `claimed`: from which input each is computed by this replay."""

    units: Sequence[str]
    known: Mapping[str, Snapshot]
    reach: tuple[int, int]
    closed: int | None
    streamed: Callable[[Range], bool]
    claimed: dict[Range, Input] = field(default_factory=dict)

    def of(self, time: int) -> Range:
        """The partition in which this event time lies."""
        found = Range(time, time + 1)
        for unit in self.units:
            found = widened(found, unit)
        return found

    def answered(self, part: Range) -> Input | None:
        """From which input a batch has computed the partition last; None where none has."""
        ranges = [r for s in self.known.values() if s.clock is not None for r in s.ranges if r.start < part.end and part.start < r.end]
        return max(ranges, key=lambda r: r.as_of).input if ranges else None

    def touched(self, times: Sequence[int], input_: Input) -> list[Range]:
        """The partitions in which rows of these times, of one partition, can change anything: their own, and those around that the same input answers.

        Where nothing is there yet the row may bring the first pane of a window. What a stream has stored is corrected from its archive, never from files.
        """
        found = {self.of(times[0])}
        start, end = min(times) - self.reach[1], max(times) + 1 + self.reach[0]
        while start < end:
            part = self.of(start)
            answered = self.claimed.get(part, self.answered(part))
            if answered == input_ or (answered is None and (input_ == "archive" or not self.stream_answers(part))):
                found.add(part)
            start = part.end
        return sorted(found)

    def stream_answers(self, part: Range) -> bool:
        """Whether a stream has rows of the partition, or of windows that start in it."""
        return self.streamed(Range(part.start, part.end + self.reach[1]))

    def hindered(self, parts: Sequence[Range], lost: Sequence[Lost]) -> tuple[Why, str] | None:
        """Why these partitions may not be computed anew, and the first that is at fault."""
        for part in parts:
            if self.closed is not None and part.end > self.closed and self.answered(part) is None:
                return "open in the stream", show_range(part)
            gone = [one for one in lost if one.start < part.end and part.start < one.end]
            if gone:
                return "input gone", named(gone)
        return None


def last_input(known: Mapping[str, Snapshot]) -> Input | None:
    """The input of the newest batch; None before the first that kept account."""
    ranges = [r for s in known.values() for r in s.ranges]
    return max(ranges, key=lambda r: r.as_of).input if ranges else None
