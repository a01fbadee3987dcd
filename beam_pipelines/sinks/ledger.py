"""The ledger: every row that was read left by exactly one door. A pure function of the counts; loads no Beam.

    rows            read = written + dead + duplicate + filtered + outside                 per source, for each output of rows
    an aggregate    read = aggregated + late + dead + duplicate + filtered + outside       per source
    dead letters    dead and late of all sources = letters written

`outside` is what a run over a range read and left alone: rows and letters of other times. An aggregate takes in rows near the range.

Counts are keyed by (unit, source, outcome, detail): a replayed bundle overwrites its first attempt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from beam_pipelines.arrow.counts import Count
from beam_pipelines.sinks.run import TOMBSTONES, Output
from beam_pipelines.spec.sinks import LETTERS, ROWS

DEAD_AT_SINK = "write:SINK@"
"""Prefix of the detail of rows that one sink refused; its name follows. Other sinks may have written them."""
_AT_AGGREGATE = "aggregate:"
_LATE = "aggregate:LATE"


@dataclass(frozen=True)
class Line:
    """What became of the rows of one source, in numbers of rows; `written` and `refused` by sink, `aggregated` and `late` by aggregate.

    `late` are all letters of an aggregate (LATE, FUTURE): the rows themselves stay in the output of rows. `outside` are rows outside a run's
    range, `beside` of these those that aggregates and the search for duplicates took in; `late_outside` letters of aggregates for such rows.
    """

    source: str
    read: int = 0
    dead: int = 0
    duplicate: int = 0
    filtered: int = 0
    written: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    aggregated: Mapping[str, int] = field(default_factory=dict)
    late: Mapping[str, int] = field(default_factory=dict)
    outside: int = 0
    beside: int = 0
    late_outside: Mapping[str, int] = field(default_factory=dict)

    def missing(self, output: Output) -> int:
        """Rows read that left by no door of `output`; negative: rows that left twice."""
        before = self.dead + self.duplicate + self.filtered + self.outside
        if output.of == ROWS:
            return self.read - before - self.written.get(output.name, 0) - self.refused.get(output.name, 0)
        late = self.late.get(output.of, 0) + self.late_outside.get(output.of, 0)
        return self.read - before + self.beside - self.aggregated.get(output.of, 0) - late


@dataclass(frozen=True)
class Imbalance:
    """Where the law is broken: `missing` rows of `source` for `output` (negative: too many)."""

    output: str
    source: str
    missing: int
    sentence: str


@dataclass(frozen=True)
class Ledger:
    """All lines of a run, its dead letters by `stage:REASON`, and rows failing each check."""

    lines: tuple[Line, ...]
    reasons: Mapping[str, int]
    failing: Mapping[str, int]
    imbalances: tuple[Imbalance, ...]

    @property
    def balanced(self) -> bool:
        return not self.imbalances

    @property
    def read(self) -> int:
        return sum(line.read for line in self.lines)

    @property
    def dead(self) -> int:
        """Dead letters of all stages."""
        return sum(self.reasons.values())

    @property
    def outside(self) -> int:
        """Rows outside the run's range."""
        return sum(line.outside for line in self.lines)

    def written(self, output: str) -> int:
        """Rows written to the output, whatever their source."""
        return sum(line.written.get(output, 0) for line in self.lines)

    def explain(self, most: int = 10) -> str:
        """Where the ledger does not balance, one sentence per line; "" if it does."""
        shown = [i.sentence for i in self.imbalances[:most]]
        rest = len(self.imbalances) - len(shown)
        return "\n".join(shown + ([f"... and {rest} more"] if rest else []))


def tally(counts: Iterable[Count], outputs: Sequence[Output]) -> Ledger:
    """The ledger of a run over its counts.

    Outcomes: read, filtered, duplicate; dead with detail `stage:REASON` (`write:SINK@output` for rows one sink refused); written with the
    output's name; aggregated and late with the aggregate's name (`aggregate:REASON@name` where it is dead for another reason); warn and failed with a check's name.
    """
    unique = {(unit, source, outcome, _placed(unit, outcome, detail)): rows for unit, source, outcome, detail, rows in counts}
    sums: dict[tuple[str, str, str], int] = defaultdict(int)
    for (_, source, outcome, detail), rows in unique.items():
        sums[source, outcome, detail] += rows
    by_source: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for (source, outcome, detail), rows in sums.items():
        by_source[source][outcome, detail] = rows
    lines = tuple(_line(source, entries) for source, entries in sorted(by_source.items()))
    reasons: dict[str, int] = defaultdict(int)
    for detail, rows in _sum(sums, "dead").items():
        reasons[detail.partition("@")[0]] += rows
    late = sum(_sum(sums, "late").values())
    if late:
        reasons[_LATE] += late
    for detail, rows in _sum(sums, "unwritten").items():
        reasons[detail.partition("@")[0]] -= rows
    reasons = {reason: rows for reason, rows in reasons.items() if rows}
    failing = {name: n for word in ("warn", "failed") for name, n in _sum(sums, word).items()}
    return Ledger(lines, dict(sorted(reasons.items())), failing, tuple(_imbalances(lines, outputs, sum(reasons.values()))))


def _placed(unit: str, outcome: str, detail: str) -> str:
    """Letters of an aggregate carry its name (`aggregate:FUTURE@hourly`), or their unit does (`...#hourly`)."""
    return f"{detail}@{unit.rpartition('#')[2]}" if outcome == "dead" and detail.startswith(_AT_AGGREGATE) and "@" not in detail else detail


def sources_read(ledger: Ledger) -> frozenset[str]:
    """The sources this run read (or tried to)."""
    return frozenset(line.source for line in ledger.lines if line.source)


def _line(source: str, entries: Mapping[tuple[str, str], int]) -> Line:
    def total(outcome: str) -> int:
        return sum(n for (o, _), n in entries.items() if o == outcome)

    def by(outcome: str) -> dict[str, int]:
        return {detail: n for (o, detail), n in entries.items() if o == outcome}

    dead = by("dead")
    refused = {detail.removeprefix(DEAD_AT_SINK): n for detail, n in dead.items() if detail.startswith(DEAD_AT_SINK)}
    early = sum(n for detail, n in dead.items() if not detail.startswith((DEAD_AT_SINK, _AT_AGGREGATE)))
    late = by("late")
    for detail, n in dead.items():
        if detail.startswith(_AT_AGGREGATE):
            name = detail.partition("@")[2]
            late[name] = late.get(name, 0) + n
    outside = total("outside") + total("beside")
    late_outside: dict[str, int] = {}
    for detail, n in by("unwritten").items():
        if detail.startswith(_AT_AGGREGATE):
            name = detail.partition("@")[2]
            late_outside[name] = late_outside.get(name, 0) + n
            late[name] -= n
        else:
            early -= n
            outside += n
    return Line(
        source, total("read"), early, total("duplicate"), total("filtered"), by("written"), refused, by("aggregated"), late, outside,
        total("beside"), late_outside,
    )  # fmt: skip


def _sum(sums: Mapping[tuple[str, str, str], int], outcome: str) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for (_, word, detail), rows in sums.items():
        if word == outcome:
            found[detail] += rows
    return dict(sorted(found.items()))


def _imbalances(lines: Sequence[Line], outputs: Sequence[Output], letters: int) -> Iterable[Imbalance]:
    for output in outputs:
        if output.of == TOMBSTONES:
            continue  # of rows that are counted as duplicates
        if output.of == LETTERS:
            stored = sum(line.written.get(output.name, 0) for line in lines)
            if stored != letters:
                yield Imbalance(
                    output.name, "", letters - stored, f"{output.name}: {letters} rows were rejected, {stored} dead letters written"
                )
            continue
        for line in lines:
            missing = line.missing(output)
            if missing and (line.source or line.read or output.of == ROWS):
                yield Imbalance(output.name, line.source, missing, _sentence(line, output, missing))


def _sentence(line: Line, output: Output, missing: int) -> str:
    doors = {"written": line.written.get(output.name, 0), "dead": line.dead + line.refused.get(output.name, 0)}
    if output.of != ROWS:
        doors = {"aggregated": line.aggregated.get(output.of, 0), "late": line.late.get(output.of, 0), "dead": line.dead}
    doors |= {"duplicate": line.duplicate, "filtered": line.filtered}
    if line.outside:
        doors["outside the range"] = line.outside - (0 if output.of == ROWS else line.beside - line.late_outside.get(output.of, 0))
    sums = " + ".join(f"{n} {word}" for word, n in doors.items())
    what = f"{missing} rows vanished" if missing > 0 else f"{-missing} rows too many"
    return f"{output.name}, source {line.source or '(none)'}: {line.read} read, but {sums}: {what}"
