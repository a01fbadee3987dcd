"""How a run ended: good, good with warnings, or failed; in a sentence; and whether every row that it read left by exactly one door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from beam_pipelines.serving.report.markup import counted, number, share
from beam_pipelines.sinks.ledger import DEAD_AT_SINK
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.sinks import ROWS

_AT_SINK = DEAD_AT_SINK.rstrip("@")
_AT_AGGREGATE = "aggregate:"
_USUAL = 10


@dataclass(frozen=True)
class Balance:
    """The ledger of one output of rows. `good` are rows written (of a failed run: fit to be written), `open` those a stream has
    not finished, `outside` those of other times than the range that the run was over.
    """

    output: str
    read: int
    good: int
    word: str
    refused: int
    dead: int
    duplicate: int
    filtered: int
    outside: int
    open: int
    balances: bool

    def doors(self) -> list[tuple[str, int, str]]:
        """Name, rows and kind of each door, those that every ledger has and those that this one needs."""
        always = [
            (self.word, self.good, "written"),
            ("dead", self.dead, "dead"),
            ("duplicate", self.duplicate, "duplicate"),
            ("filtered", self.filtered, "filtered"),
        ]
        more = [
            (f"refused by {self.output}", self.refused, "refused"),
            ("outside the range", self.outside, "outside"),
            ("still open", self.open, "open"),
        ]
        return always + [door for door in more if door[1]]

    @property
    def missing(self) -> int:
        """Rows read that left by no door; negative: rows too many."""
        return self.read - sum(rows for _, rows, _ in self.doors())


@dataclass(frozen=True)
class Usual:
    """Medians of the good runs before this one."""

    runs: int
    read: float
    dead_share: float
    elapsed_s: float


def streams(run: RunResults) -> bool:
    """Whether the run is a start of a stream: its ledger is of all starts."""
    return run.metadata.mode == "stream"


def read_by(run: RunResults) -> int:
    """Rows read from all sources."""
    return sum(line.read for line in run.ledger)


def dead_of(run: RunResults) -> int:
    """Rows that left as dead letters: before the outputs, or refused by one. Letters of aggregates are of rows that stay."""
    sinks = _outputs_of_rows(run)
    return sum(line.dead + max((line.refused.get(name, 0) for name in sinks), default=0) for line in run.ledger)


def late_of(run: RunResults) -> dict[str, int]:
    """Rows that came too late for an aggregate, by its name."""
    found: dict[str, int] = {}
    for line in run.ledger:
        for name, rows in line.late.items():
            found[name] = found.get(name, 0) + rows
    return dict(sorted(found.items()))


def reasons_before_outputs(run: RunResults) -> dict[str, int]:
    """Dead letters by `stage:REASON`, the most first, without those of aggregates and of single outputs: what the door `dead` consists of."""
    found = {name: n for name, n in run.dead_letters.items() if not name.startswith((_AT_AGGREGATE, _AT_SINK))}
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def balances(run: RunResults) -> tuple[Balance, ...]:
    """One for each output of rows; one for the run where it has none."""
    lines = run.ledger
    read, dead = sum(i.read for i in lines), sum(i.dead for i in lines)
    duplicate, filtered, outside = sum(i.duplicate for i in lines), sum(i.filtered for i in lines), sum(i.outside for i in lines)
    word = "fit to be written" if run.status == "failed" and not streams(run) else "written"
    broken = any("balance" in failure for failure in run.failures)
    found = []
    for name in _outputs_of_rows(run) or [""]:
        refused = sum(i.refused.get(name, 0) for i in lines)
        rest = read - refused - dead - duplicate - filtered - outside
        good = sum(i.written.get(name, 0) for i in lines) if name else rest
        opened = max(0, rest - good) if streams(run) else 0
        fits = rest - good - opened == 0
        found.append(
            Balance(
                name, read, good, word if name else "passed on", refused, dead, duplicate, filtered, outside, opened, fits and not broken
            )
        )
    return tuple(found)


def _outputs_of_rows(run: RunResults) -> list[str]:
    of_rows = {o.name for o in run.outputs if o.of == ROWS}
    counted_at = {name for line in run.ledger for name in (*line.written, *line.refused)}
    return sorted({n for n in counted_at if n == "rows" or n.startswith("rows_") or n in of_rows})


def level(run: RunResults) -> tuple[str, str]:
    """The color and the word of the verdict."""
    if run.status == "failed" or not all(b.balances for b in balances(run)):
        return "bad", "Failed" if run.status == "failed" else "Does not balance"
    return ("warn", "Success, with warnings") if warnings_of(run) else ("good", "Success")


def warnings_of(run: RunResults) -> int:
    """Checks that found something without failing the run."""
    return sum(c.status == "warn" for c in run.checks)


def sentence(run: RunResults) -> str:
    """What the run did to the outputs, and what is worth a look."""
    read, dead, late = read_by(run), dead_of(run), sum(late_of(run).values())
    kept = [o for o in run.outputs if o.status != "untouched"]
    if run.status == "failed":
        said = (
            "What is stored stays; the next start goes on from there."
            if streams(run)
            else "Nothing was committed: the outputs are as they were."
        )
    elif streams(run):
        said = f"All starts of this stream together have read {counted(read, 'row')} and stored them in {counted(len(kept), 'output')}."
    else:
        said = (
            f"Read {counted(read, 'row')} and committed {counted(len(kept), 'output')}."
            if kept
            else f"Read {counted(read, 'row')}; no output was changed."
        )
    parts = [f"{number(dead)} ({share(dead, read)}) {'was' if dead == 1 else 'were'} refused"] if dead else []
    parts += [f"rows came too late for an aggregate {counted(late, 'time')}"] if late else []
    parts += [f"{counted(warnings_of(run), 'check')} {'warns' if warnings_of(run) == 1 else 'warn'}"] if warnings_of(run) else []
    more = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""
    return f"{said} {more[0].upper()}{more[1:]}." if more else said


def usual(run: RunResults, runs: Sequence[RunResults]) -> Usual | None:
    """Medians of the last good batch runs before this one; None where there are not three. Of a stream, whose ledger only grows, and of a run over a range nothing is usual."""
    if streams(run) or run.metadata.range is not None:
        return None
    before = sorted((r for r in runs if _before(r, run)), key=lambda r: r.metadata.started_at)[-_USUAL:]
    if len(before) < 3:
        return None
    shares = [dead_of(r) / read_by(r) if read_by(r) else 0.0 for r in before]
    return Usual(len(before), median(map(read_by, before)), median(shares), median(r.metadata.elapsed_s for r in before))


def _before(one: RunResults, run: RunResults) -> bool:
    """Whether one is a good run of the same kind that started earlier."""
    kinds = [(r.metadata.mode, r.metadata.range, r.metadata.input) for r in (one, run)]
    return one.status == "success" and kinds[0] == kinds[1] and one.metadata.started_at < run.metadata.started_at
