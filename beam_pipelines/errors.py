"""The one exception family of beam_pipelines.

A message says where, what was found, what was expected, and what to do. Bad *rows* are never exceptions: they are dead
letters. These exceptions are for what a user wrote (a spec, a call, an expression) and for what the world refuses (a disk
that is full, a bucket that is not there).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BeamPipelinesError(Exception):
    """Base of every error this package raises on purpose.

    `retryable` says whether the same call may succeed later without anybody changing anything.
    """

    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


class SpecError(BeamPipelinesError):
    """What the user wrote is wrong: a spec, a contract, a parameter, an expression, a flag (exit code 2)."""


class RunError(BeamPipelinesError):
    """The run failed or passed a threshold the user set (exit code 1)."""


class SourceError(RunError):
    """A source cannot be opened at all: no such path, no match, no permission."""


class SinkError(RunError):
    """A destination refuses writes: not writable, full, or owned by another run."""


class TransientError(RunError):
    """The world said no for now: the same call may succeed later."""

    retryable = True


def _rebuild(kind: type[BeamPipelinesError], message: str, hint: str) -> BeamPipelinesError:
    return kind(message, hint=hint)


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause naming the closest known name and all known names, for errors about an unknown name.

    >>> nearest('tabel', ['table', 'mode'])
    "did you mean 'table'? Known: mode, table."
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return f"{guess}Known: {', '.join(names)}."
