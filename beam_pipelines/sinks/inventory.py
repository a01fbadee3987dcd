"""Which files the batch path has read, as they were, and of which times their rows are: so that a run reads only what it needs. Loads no Beam.

    {state}/inventory/00000007-{run}.json     after commit 7: every file's size and time of change, the hours or days of its rows; and what is owed

*Owed* are times that some file has given or taken rows of since they were computed: a file was read for one range and has rows of others, has
changed, or is gone. A run over everything owes nothing; a run over a range pays for that range.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from beam_pipelines.arrow.ranges import Range, minus, union, widened
from beam_pipelines.commit_elements import SourceSpans
from beam_pipelines.places import delete, join, list_files, read_bytes, write_bytes

_KEPT = 50


@dataclass(frozen=True)
class FileState:
    """A file as it was read: bytes, time of its last change (seconds), times of its rows (microseconds), and whether rows without a time were among them."""

    size: int
    modified: float
    spans: tuple[tuple[int, int], ...] = ()
    undated: bool = False

    def same_as(self, other: FileState) -> bool:
        """Whether it is the same file, by size and time of change."""
        return (self.size, self.modified) == (other.size, other.modified)


@dataclass(frozen=True)
class Inventory:
    """All files that count in the outputs. `code` names what computed them: another one computes all anew.

    `owed`: ranges to compute again; `undated`: rows without an event time are, which only a run over everything does.
    """

    code: str
    files: Mapping[str, FileState] = field(default_factory=dict)
    owed: tuple[tuple[int, int], ...] = ()
    undated: bool = False


@dataclass(frozen=True)
class Stock:
    """What a run tells of its input. `read` are the files it read; `gone` those it knows to be no more; a row touches outputs from `after` microseconds before
    it to `before` after it, in whole `units`. `where`: the run's range, None: everything."""

    code: str
    read: Mapping[str, FileState]
    gone: tuple[str, ...] = ()
    before: int = 0
    after: int = 0
    units: tuple[str, ...] = ()
    where: Range | None = None


def after_run(old: Inventory | None, stock: Stock) -> Inventory | None:
    """The inventory after a run; None where a run over a range by other code leaves nothing to stand on."""
    if stock.where is None:
        return Inventory(stock.code, stock.read)
    if old is None or old.code != stock.code:
        return old
    touched: list[tuple[int, int]] = list(old.owed)
    undated = old.undated
    for path in (*stock.read, *stock.gone):
        before, now = old.files.get(path), stock.read.get(path)
        if before is not None and now is not None and before.same_as(now):
            continue
        for state in (before, now):
            if state is not None:
                touched += [_touched(span, stock) for span in state.spans]
                undated |= state.undated
    owed = [left for one in union(touched) for left in minus(one, [stock.where])]
    kept = {path: state for path, state in old.files.items() if path not in stock.gone}
    return replace(old, files={**kept, **stock.read}, owed=tuple((r.start, r.end) for r in owed), undated=undated)


def _touched(span: tuple[int, int], stock: Stock) -> Range:
    found = Range(span[0] - stock.after, span[1] + stock.before)
    for unit in stock.units:
        found = widened(found, unit)
    return found


def needed(known: Inventory | None, listed: Mapping[str, FileState], code: str, near: Range) -> Collection[str]:
    """The files that a run depending on the times `near` must read: those with rows there, and those that are new or changed."""
    if known is None or known.code != code:
        return listed.keys()
    return {path for path, state in listed.items() if not _elsewhere(known.files.get(path), state, near)}


def _elsewhere(known: FileState | None, listed: FileState, near: Range) -> bool:
    return known is not None and known.same_as(listed) and not any(start < near.end and near.start < end for start, end in known.spans)


def with_spans(listed: Mapping[str, FileState], spans: Iterable[SourceSpans]) -> dict[str, FileState]:
    """The files with the times that were found in each."""
    found: dict[str, list[tuple[int, int]]] = {path: [] for path in listed}
    undated: set[str] = set()
    for of in spans:
        if of.source in found:
            found[of.source] += of.spans
            if of.undated:
                undated.add(of.source)
    return {
        path: replace(state, spans=tuple((r.start, r.end) for r in union(found[path])), undated=path in undated)
        for path, state in listed.items()
    }


def read_inventory(state: str, name: str) -> Inventory | None:
    """The inventory of that name, which a commit gives; None where none was kept."""
    content = read_bytes(_path(state, name)) if name else None
    return None if content is None else msgspec.json.decode(content, type=Inventory)


def write_inventory(state: str, number: int, run_id: str, inventory: Inventory) -> str:
    """Keeps the inventory of the commit `number` of a run, which is about to be decided; gives its name."""
    name = f"{number:08d}-{run_id}.json"
    write_bytes(_path(state, name), msgspec.json.encode(inventory))
    return name


def forget_inventories(state: str, number: int, name: str) -> None:
    """Deletes those of commits long before `number`, and never the current one."""
    for found in list_files(_folder(state)):
        if found != name and found[:8].isdigit() and int(found[:8]) < number - _KEPT:
            delete(_path(state, found))


def _folder(state: str) -> str:
    return join(state, "inventory")


def _path(state: str, name: str) -> str:
    return join(_folder(state), name)
