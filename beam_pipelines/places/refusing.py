"""What a user is told when a place refuses: what was refused, why, and what to do."""

from __future__ import annotations

import errno

from beam_pipelines.errors import RunError, SinkError, TransientError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free space, or choose another path"),
    errno.EDQUOT: ("the disk quota is used up", "Free space, or choose another path"),
    errno.EFBIG: ("a file would grow past the limit of this process or file system", "Lower `target_file_bytes`, or raise the limit (ulimit -f)"),
    errno.EACCES: ("permission denied", "Grant write permission, or choose another path"),
    errno.EPERM: ("operation not permitted", "Grant write permission, or choose another path"),
    errno.EROFS: ("the file system is read-only", "Choose another path"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "Choose another path"),
    errno.EEXIST: ("a file is in the way of a directory", "Choose another path"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Choose a shorter path"),
    errno.EMFILE: ("too many open files", "Lower `max_open_files`, or raise the limit (ulimit -n)"),
}  # fmt: skip


_READING = ("list", "read", "look for it")


class RefusedError(OSError):
    """A service refuses a file: `reason`, and what a user can do (`advice`). `passing`: the same call may succeed later."""

    def __init__(self, reason: str, advice: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.advice, self.passing = reason, advice, passing

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.reason, self.advice, self.passing))


class StagedFileGoneError(SinkError):
    """A commit cannot go on: what was to be moved to `target` is not there any more, and not there either."""

    def __init__(self, target: str, source: str) -> None:
        super().__init__(f"{target}: its staged file {source} is gone.", hint="Somebody deleted it while the run committed; run again.")
        self.target, self.source = target, source

    def __reduce__(self) -> tuple[object, ...]:
        return (StagedFileGoneError, (self.target, self.source))


def refused(path: str, error: OSError, *, doing: str = "write") -> RunError:
    """The error a user sees when the world refuses a write: a SinkError, or TransientError where waiting may help."""
    if isinstance(error, RefusedError):
        kind = TransientError if error.passing else SinkError
        after = ", then run again: nothing was committed." if doing == "write" else ", then try again."
        return kind(f"{path}: cannot {doing}: {error.reason}.", hint=error.advice + after)
    reason, advice = _REASONS.get(error.errno or 0, (str(error) or type(error).__name__, "Check the path and its permissions"))
    if doing in _READING:
        advice = advice.replace("write permission", "permission to read it")
        return SinkError(f"{path}: cannot {doing}: {reason}.", hint=f"{advice}, then try again.")
    return SinkError(f"{path}: cannot {doing}: {reason}.", hint=f"{advice}, then run again: nothing was committed.")


def advice(error: OSError) -> str:
    """What a user can do about it, where that is known."""
    return f"{error.advice}." if isinstance(error, RefusedError) else ""


def _rebuild(reason: str, advice: str, passing: bool) -> RefusedError:
    return RefusedError(reason, advice, passing=passing)
