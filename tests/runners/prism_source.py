"""A stream of numbers and what the tests do with it. In a module of its own: workers find it by name, and its globals are the test's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.io.unbounded_source import CheckpointMark, ReadFromUnboundedSource, UnboundedReader, UnboundedSource
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from beam_pipelines.errors import SinkError


@dataclass
class Seen:
    """What happened in the workers, which are threads of the test's process."""

    finalized: list[int] = field(default_factory=list)
    fired: list[tuple[str, int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    torn_down: int = 0
    flowing: threading.Event = field(default_factory=threading.Event)
    together: threading.Event = field(default_factory=threading.Event)
    inside: int = 0


SEEN = Seen()
FAR_S = 10**9
_LOCK = threading.Lock()


def reset() -> Seen:
    """Forgets what was seen before; the same object from now on."""
    SEEN.__init__()  # type: ignore[misc]
    return SEEN


class _Mark(CheckpointMark):  # type: ignore[misc]
    def __init__(self, position: int) -> None:
        self.position = position

    def finalize_checkpoint(self) -> None:
        SEEN.finalized.append(self.position)


class _Reader(UnboundedReader):  # type: ignore[misc]
    """Numbers 0, 1, ...; number n has timestamp n. After the last one the stream ends, or rests for ever."""

    def __init__(self, count: int, position: int, endless: bool) -> None:
        self.count, self.position, self.endless = count, position, endless

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        more = self.position < self.count
        self.position += more
        return more

    def get_current(self) -> int:
        return self.position - 1

    def get_current_timestamp(self) -> Timestamp:
        return Timestamp(self.position - 1)

    def get_watermark(self) -> Timestamp:
        return MAX_TIMESTAMP if self.position == self.count and not self.endless else Timestamp(self.position)

    def get_checkpoint_mark(self) -> _Mark:
        return _Mark(self.position)


@dataclass(frozen=True)
class _Options:
    count: int
    endless: bool


class Numbers(UnboundedSource):  # type: ignore[misc]
    def __init__(self, count: int, *, endless: bool = False) -> None:
        self.options = _Options(count, endless)

    def split(self, desired_num_splits: int, options: Any = None) -> list[Numbers]:
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: _Mark | None) -> _Reader:
        return _Reader(self.options.count, checkpoint_mark.position if checkpoint_mark else 0, self.options.endless)

    def get_checkpoint_mark_coder(self) -> Any:
        return coders.PickleCoder()


def numbers(pipeline: beam.Pipeline, count: int, *, endless: bool = False) -> Any:
    return pipeline | "Numbers" >> ReadFromUnboundedSource(
        Numbers(count, endless=endless), poll_interval=0.05, max_records_per_bundle=5, max_read_time_seconds=0.5
    )


class See(beam.DoFn):  # type: ignore[misc]
    def process(self, number: int) -> Iterator[int]:
        SEEN.numbers.append(number)
        SEEN.flowing.set()
        yield number

    def teardown(self) -> None:
        SEEN.torn_down += 1


class Gather(beam.DoFn):  # type: ignore[misc]
    """Keeps a key's numbers, with a timer at the end of each ten, and one far ahead that gives them out."""

    KEPT = BagStateSpec("kept", coders.VarIntCoder())
    CLOSE = TimerSpec("close", TimeDomain.WATERMARK)
    FAR = TimerSpec("far", TimeDomain.WATERMARK)

    def process(
        self, pair: tuple[str, int], kept: Any = beam.DoFn.StateParam(KEPT), close: Any = beam.DoFn.TimerParam(CLOSE),
        far: Any = beam.DoFn.TimerParam(FAR),
    ) -> None:  # fmt: skip
        kept.add(pair[1])
        end = pair[1] // 10 * 10 + 10
        close.set(Timestamp(end), dynamic_timer_tag=str(end))
        far.set(Timestamp(FAR_S))

    @on_timer(CLOSE)
    def closing(self, key: str = beam.DoFn.KeyParam, at: Timestamp = beam.DoFn.TimestampParam) -> None:
        SEEN.fired.append((key, int(float(at))))

    @on_timer(FAR)
    def at_the_end(
        self, key: str = beam.DoFn.KeyParam, at: Timestamp = beam.DoFn.TimestampParam, kept: Any = beam.DoFn.StateParam(KEPT)
    ) -> None:
        SEEN.fired.append((key, int(float(at))))
        SEEN.numbers.extend(kept.read())


class Dwell(beam.DoFn):  # type: ignore[misc]
    """Keeps numbers of one key; the first stays inside until another thread works on the same key, or in vain for `patience_s`."""

    KEPT = BagStateSpec("kept", coders.VarIntCoder())
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s

    def process(self, pair: tuple[str, int], kept: Any = beam.DoFn.StateParam(KEPT), end: Any = beam.DoFn.TimerParam(END)) -> None:
        with _LOCK:
            SEEN.inside += 1
            if SEEN.inside > 1:
                SEEN.together.set()
        if pair[1] == 0:
            SEEN.together.wait(self.patience_s)
        kept.add(pair[1])
        end.set(Timestamp(1_000_000))
        with _LOCK:
            SEEN.inside -= 1

    @on_timer(END)
    def ended(self, kept: Any = beam.DoFn.StateParam(KEPT)) -> None:
        SEEN.numbers[:] = kept.read()  # the key's state as it is now


class Fail(beam.DoFn):  # type: ignore[misc]
    def __init__(self, how: str) -> None:
        self.how = how

    def process(self, number: int) -> None:
        if number == 7 and self.how == "ours":
            raise SinkError("sinks[0]: disk full.", hint="Make room.")
        if number == 7 and self.how == "row":
            raise ValueError("seven is no good")

    def finish_bundle(self) -> None:
        if self.how == "finish":
            raise OSError(28, "No space left on device")
