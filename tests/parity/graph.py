"""A timeline through the product's own graph: as a batch on FnApiRunner over an archive, as a stream by TestStream; what both stored, as readers see it.

bundles ──▶ TestStream ──▶ the graph ──▶ lake/*.speed, archive ──▶ views        stream
                                                    └──▶ the graph ──▶ lake     batch, over what the stream archived
shuffled ──────────▶ archive ──▶ the graph ──▶ lake                             batch, over the same messages in another order
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from beam_pipelines import edges
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.testing import parity
from beam_pipelines.testing.outcomes import failed, ledger_of, letters_of, twice
from beam_pipelines.testing.stream import play, stored
from tests.parity.outcomes import DoorCounts, Outcome, Pane
from tests.parity.specs import MEASURES, NAME, SUBSCRIPTION, Setting
from tests.parity.timelines import Message, Timeline, delivered, steps

FAR = 100_000
"""Minutes after which every window has closed."""
_ROW = ("id", "at", "kind", "price", "n", "m", "version", "share")
_COUNTED: list[tuple[Any, ...]] = []


def spec_in(folder: Path, setting: Setting) -> LoadedSpec:
    """The setting's spec in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(setting.yaml, "utf-8")
    return load_spec(folder / "pipeline.yaml")


# ── batch ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_batch(loaded: LoadedSpec) -> Outcome:
    """What `run --mode batch --apply-lateness` makes of the archive beside the spec."""
    record = run_batch(loaded, Call(apply_lateness=True))
    return _outcome(loaded, ledger_of(record.ledger, record.dead_letters), "batch", failed(record))


def archive(folder: Path, batches: Sequence[Sequence[Message]]) -> None:
    """Puts messages where a batch finds them."""
    parity.archive(str(folder / "archive"), map(delivered, batches), SUBSCRIPTION)


# ── stream ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_stream(loaded: LoadedSpec, timeline: Timeline) -> Outcome:
    """What the stream makes of the timeline, in the end."""
    _COUNTED.clear()
    with _watched():
        ledger = play(loaded, steps(timeline))
    found = _outcome(loaded, ledger_of(ledger.lines, ledger.reasons), "speed", ledger.explain().splitlines())
    for start, n in (_stale(count) for count in _COUNTED if count[2] == "stale"):
        found.stale[start] += n
    return found


@contextmanager
def _watched() -> Iterator[None]:
    """Hears what aggregates count, which a stream keeps to itself."""
    left = edges.Stream.left

    def heard(self: edges.Stream, stage: Any) -> None:
        left(self, stage)
        if hasattr(stage, "panes"):
            _ = stage.counts | "Heard" >> beam.Map(_hear)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edges.Stream, "left", heard)
        yield


def _hear(count: tuple[Any, ...]) -> None:
    _COUNTED.append(count)


def _stale(count: tuple[Any, ...]) -> tuple[int, int]:
    """(window start, rows) of a count of stale rows."""
    start = dt.datetime.fromisoformat(count[3].partition("@")[2])
    return round(start.timestamp() * 1_000_000), count[4]


# ── what is stored ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _outcome(loaded: LoadedSpec, ledger: DoorCounts, layer: str, wrong: Sequence[str]) -> Outcome:
    """Everything readers see of a layer."""
    found = stored(loaded, layer=layer)
    spoken = letters_of(found["dead_letters"])
    doors = {number: tuple(s[0] for s in said) for number, said in spoken.items()}
    wrong = [*wrong, *twice(found, loaded.spec.aggregates)]
    return Outcome(rows_of(found["rows"]), doors, panes_of(found[NAME]), ledger, spoken, wrong)


def rows_of(rows: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """Stored rows by their number."""
    return {r["_position"]: tuple(_micros(r[n]) if n == "at" else r[n] for n in _ROW) for r in rows}


def panes_of(panes: Sequence[Mapping[str, Any]]) -> dict[Pane, dict[str, Any]]:
    """Measures of each pane."""
    return {((_at(p["_window_start"]), _at(p["_window_end"])), p["kind"]): {n: p[n] for n in MEASURES} for p in panes}


def _micros(at: dt.datetime | None) -> int | None:
    return None if at is None else _at(at)


def _at(at: dt.datetime) -> int:
    return round(at.timestamp()) * 1_000_000


def forget(folder: Path) -> None:
    """Removes an example's files."""
    shutil.rmtree(folder, ignore_errors=True)
