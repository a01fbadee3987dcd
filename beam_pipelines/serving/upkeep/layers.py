"""Folders of small files, as `compact` sees them: how many there are, and passes that merge them until nothing is left to merge."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from beam_pipelines.formats.compaction import Files, Lying, Step, merged_all
from beam_pipelines.formats.named_files import Named, again, named, unreplaced
from beam_pipelines.places import size
from beam_pipelines.sinks.deletions import Of

_PASSES = 100  # each merges a full file at least


@dataclass(frozen=True)
class Layer:
    """Files that are merged: of which output or subscription (`name`), what they hold, where. `top` is the folder that `folders` lie in or are.

    `steps` is a pass over all folders (`compaction.compact_steps` without `folders` and `files`), `rows` counts those of a file.
    """

    name: str
    of: Of
    top: str
    folders: Callable[[], Iterable[str]]
    files: Files
    steps: Callable[..., Generator[Step, None, None]]
    rows: Callable[[str], int]


@dataclass(frozen=True)
class LayerSize:
    """What lies in a layer's folders: live files with their bytes and rows; `waiting` were merged and are deleted a minute later."""

    folders: int = 0
    files: int = 0
    bytes: int = 0
    rows: int = 0
    waiting: int = 0


def size_of(layer: Layer, without: frozenset[str] = frozenset()) -> LayerSize:
    """What lies there now, but for the files `without`."""
    found = LayerSize()
    for folder in layer.folders():
        every = _live(folder, layer)
        live = [file for file in every if file.path not in without]
        if live:
            rows, held = sum(_or_none(layer.rows, f.path) for f in live), sum(_or_none(_bytes, f.path) for f in live)
            waiting = max(0, len(named(folder)) - len(every))
            found = LayerSize(found.folders + 1, found.files + len(live), found.bytes + held, found.rows + rows, found.waiting + waiting)
    return found


def merge(layer: Layer, *, epoch: int, now: Callable[[], float], say: Callable[[str], None] = lambda path: None) -> dict[str, int]:
    """Passes until nothing is left to merge; how many files were merged, deleted, swept. `say` hears of each step's file."""
    acts = dict.fromkeys(("merged", "settled", "deleted", "swept"), 0)
    for _ in range(_PASSES):
        before = acts["merged"]
        for step in layer.steps(epoch=epoch, now=now, quiet_s=0.0):
            acts[step.act] += 1
            say(step.path)
        if acts["merged"] == before:
            break
    acts["merged"] += acts.pop("settled")
    return acts


def expected(layer: Layer, epoch: int, without: frozenset[str] = frozenset()) -> tuple[int, int]:
    """How many files `merge` would leave, merged or settled, and how many unfinished ones it would delete, as far as that can be known before."""
    left = swept = 0
    for folder in layer.folders():
        live = [file for file in _live(folder, layer) if file.path not in without]
        words = [layer.files.alike(f.path) for f in live]
        lying = [Lying(f.level, _or_none(_bytes, f.path), word) for f, word in zip(live, words, strict=True) if word is not None]
        settles = layer.files.settling is not None and layer.files.settling.unsettled(live)
        left += _settled(lying, layer.files) if settles else len(merged_all(lying, layer.files)) + words.count(None)
        swept += len(layer.files.swept(folder, max([epoch, *(f.epoch for f in named(folder))])))
    return left, swept


def _settled(lying: Sequence[Lying], files: Files) -> int:
    """In how many files these are settled, as far as their sizes tell."""
    return 1 if files.full_bytes is None else max(1, -(-sum(file.bytes for file in lying) // files.full_bytes))


def _live(folder: str, layer: Layer) -> list[Named]:
    return again(lambda: unreplaced(folder, layer.files.replaces))


def _bytes(path: str) -> int:
    return size([path])


def _or_none(count: Callable[[str], int], path: str) -> int:
    try:
        return count(path)
    except FileNotFoundError:  # merged and deleted since: its rows are in the file that replaces it
        return 0
