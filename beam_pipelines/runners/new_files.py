"""Batch runs over what is new: files that came, changed or went since the last runs, and the ranges of time that these touch.

    nothing known, other code, other outputs     ─▶ everything
    new, changed or gone files                   ─▶ a run over one range, which reads them and learns what they touch ─▶ a run over each range that is owed
    none                                         ─▶ nothing to do

Which ranges are owed is part of every commit, so a series that is killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from beam_pipelines.arrow.ranges import Range, show_range, widened
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.intake import code_of, cut_of, known_files, listed_files
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.sinks.inventory import FileState, Inventory
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sources import TableSource

_MOST_RUNS = 1_000


@dataclass(frozen=True)
class News:
    """What differs from the files that count in the outputs: paths."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)

    def __str__(self) -> str:
        words = ((self.new, "new"), (self.changed, "changed"), (self.gone, "gone"))
        return ", ".join(f"{len(paths)} {word}" for paths, word in words if paths) or "no"


def run_new_files(loaded: LoadedSpec, call: Call, *, say: Callable[[str], None] = lambda sentence: None) -> Iterator[RunResults]:
    """The records of the runs that bring the outputs up to date with the files, one after the other; none where they are.

    A run that fails ends the series. Raises what `run_batch` raises.
    """
    _check_sources(loaded)
    for number in range(_MOST_RUNS):
        where, why = _next(loaded, first=number == 0)
        say(why)
        if where is None:
            return
        run_id = f"{call.run_id}-{number + 1}" if call.run_id else None
        done = run_batch(loaded, replace(call, run_id=run_id, range=where if isinstance(where, Range) else None))
        yield done
        if done.status != "success" or where is EVERY_FILE:
            return
    raise RunError(
        f"--new-files: after {_MOST_RUNS} runs there is still something new.",
        hint="Are files written all the time? Run again when they rest.",
    )


def _check_sources(loaded: LoadedSpec) -> None:
    for number, source in enumerate(loaded.spec.sources.batch):
        if isinstance(source, TableSource):
            raise SpecError(
                f"--new-files: sources.batch[{number}] is the table {source.name}, which does not tell what is new in it; expected files.",
                hint="Run without --new-files, or over a range: --from and --to.",
            )


class _EveryFile:
    """A run over all time."""


EVERY_FILE = _EveryFile()


def news(known: Inventory, listed: dict[str, FileState]) -> News:
    """The files that differ."""
    changed = tuple(path for path, state in listed.items() if path in known.files and not known.files[path].same_as(state))
    return News(
        tuple(path for path in listed if path not in known.files), changed, tuple(path for path in known.files if path not in listed)
    )


def _next(loaded: LoadedSpec, *, first: bool) -> tuple[Range | _EveryFile | None, str]:
    """The next range to compute, and why; None where nothing is left."""
    spec = loaded.spec
    known, cut = known_files(loaded.state), cut_of(spec)
    if cut is None:
        return EVERY_FILE, "every file is read: the outputs cannot be replaced over a range of time (partition them by the event time)"
    if known is None:
        return EVERY_FILE, "every file is read: no run has noted which files it read"
    if known.code != code_of(spec):
        return EVERY_FILE, "every file is read: the spec, a lookup or a place of an output has changed since"
    found = news(known, listed_files(spec))
    if known.undated or any(known.files[path].undated for path in (*found.changed, *found.gone)):
        return EVERY_FILE, "every file is read: rows without an event time came or went, and they lie in no range"
    if found:
        where = _learning(known, found, cut.units)
        return where, f"{found} files; they are read for {show_range(where)}"
    if known.owed:
        where = Range(*known.owed[0])
        return where, f"{show_range(where)} has rows of them"
    return None, "no new files" if first else "the outputs are up to date"


def _learning(known: Inventory, found: News, units: tuple[str, ...]) -> Range:
    """A range for the run that reads the new files, before anybody knows what they touch: what is owed already, else where old rows of changed files lie,
    else the newest partition."""
    if known.owed:
        return Range(*known.owed[0])
    touched = [span for path in (*found.changed, *found.gone) for span in known.files[path].spans]
    newest = max(touched or [span for state in known.files.values() for span in state.spans], default=(0, 1))
    last = Range(newest[1] - 1, newest[1])
    for unit in units:
        last = widened(last, unit)
    return last
