"""`Deduplicate`: which copy of a thing stays, over all rows of the input.

A bounded input lays its rows aside and shuffles 6 bytes a row:

    rows ─▶ SpillRows ──(shard: hashes)──▶ FindCandidates ──(file: rows)──▶ DigestCandidates ──(shard: digests)──▶ FindDuplicates
                │ (file)                                                                                                │ (file: rows)
                └────────────────────────────────────────────▶ KeepRows ◀───────────────────────────────────────────────┘

Only rows whose 37 bits of key hash occur twice are looked at again, and only they are compared exactly. An endless input: `deduplicate_stream`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import uuid4

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from beam_pipelines.arrow.concat import Pending, concat, slices
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.counts import Count
from beam_pipelines.arrow.duplicates import KEY, Comparison, comparison, digests, duplicate_mask, first_byte, key_hash
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import ARRIVAL, KEY_HASH, SOURCE
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.stage_results import arriving, joined
from beam_pipelines.transforms.deduplicate_stream import unbounded
from beam_pipelines.transforms.given import batches, contract_of, piped
from beam_pipelines.transforms.keyed_state import checked_shards
from beam_pipelines.transforms.sliced_state import BUCKETS
from beam_pipelines.transforms.spill import SpillFolder, cleanup, sweep, temp_location_of
from beam_pipelines.transforms.stage import COUNTS

__all__ = ["Deduplicate", "Deduplicated", "DeduplicatedWithDead", "cleanup", "sweep"]

HASH_SHARDS = 32  # 5 bits of the hash; more shards cost elements, fewer cost memory: one shard is sorted at a time
DIGEST_SHARDS = 16
SPILLED, DROPPED = "spilled", "duplicates"
_FILE, _ROW = "_spill_file", "_spill_row"
_NEVER = MAX_TIMESTAMP.micros
_MIX = np.uint64(0x9E3779B97F4A7C15)

Rows = npt.NDArray[np.uint16]


class Deduplicated(NamedTuple):
    """`rows` without duplicates; `counts` for the ledger, those of the stage before included."""

    rows: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class DeduplicatedTold(NamedTuple):
    """`Deduplicated`, and the duplicates themselves, with all their columns."""

    rows: beam.PCollection
    duplicates: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class DeduplicatedWithDead(NamedTuple):
    """`Deduplicated` after a stage with rejects: `dead` are that stage's."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class Deduplicate(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Rows of which no better copy exists; see `arrow/duplicates.py` for the rule, which knows no order and no batches. NULL is a value like any
    other in a key: rows without a key are copies of each other, so reject them before (`required`).

    In a stream, where better copies may yet come, rows get a column `_change`: +1 a row that stays as far as known, -1 a row_id that is a
    duplicate, of which everything but provenance and event time is NULL. (+1) without the row_ids of (-1) is what stays. See below.

    Takes a PCollection of RecordBatch in the global window, or the NamedTuple of the stage before, whose `dead` and `counts` go on.
    Every row leaves by one door: `rows`, or a count `duplicate`. Rows are laid aside under `{temp_location}/{run_id}/spill/`, which
    all workers must share (default: `--temp_location`, else a folder of this machine): call `cleanup` when the run is committed.

    `_key_hash`, where the rows have it, is used and dropped. An output batch is stamped with the least timestamp of the
    batches it was made of; the arrival time of each row is its `_arrival_time`.

        rows | Deduplicate("id")
        validated | Deduplicate(DeduplicateRule(within="2d"), contract=contract)

    **Streams** need `within`, and rows with `_source` and `_position` (`FromRows` gives them). Element timestamps and the watermark are arrival
    times. A row is judged if it arrives at most `lateness` microseconds (default: `within`) after its event time, against all rows since
    `within` before; one that is later, or without an event time, passes as +1 and is counted (`unjudged`, `beyond_horizon`). A message that is
    delivered again tells nothing. State: about 100 bytes per row of the last `within` + `lateness`, in `shards` keys: so many workers can share it.

        stream | FromRows(contract) | Conform(contract) | Deduplicate(DeduplicateRule(within="2d"), contract=contract)

    `changes=False` takes nothing back: the first copy to arrive goes on at once, without `_change`, and later ones are dropped. That is the rule
    `keep="oldest"` by arrival time, and what a bounded input keeps too; it is no set of rows that decides in a stream, but the order in which they
    come. State is the same. A row that is later than `lateness` passes again when its message is delivered again: put `DropRedelivered(horizon=)`
    before it.

        stream | ... | Deduplicate(DeduplicateRule(within="2d"), contract=contract, changes=False)

    `tell`: a bounded input gives `DeduplicatedTold`, with the duplicates too.

    Raises SpecError for a stream without `within`, a negative `lateness`, another window than the global one, a key (given as text) that is no
    column of the contract, `shards` that are not 1 to 64, or `changes=False` with a rule that prefers another copy than the first.
    """

    def __init__(
        self,
        rule_or_key: DeduplicateRule | str | Iterable[str] | None = None,
        *,
        contract: Contract | Mapping[str, Any] | None = None,
        columns_of_content: Iterable[str] | None = None,
        event_time: str | None = None,
        within: int | None = None,
        temp_location: str | None = None,
        run_id: str | None = None,
        lateness: int | None = None,
        tell: bool = False,
        changes: bool = True,
        shards: int = BUCKETS,
    ) -> None:
        super().__init__()
        self._shards = checked_shards("Deduplicate", shards)
        self._tell, self._changes = tell, changes
        contract = None if contract is None else contract_of(contract, "Deduplicate")
        self._how = comparison(rule_or_key, contract=contract, content=columns_of_content, event_time=event_time, within=within)
        if contract is not None and not isinstance(rule_or_key, DeduplicateRule):
            _known(self._how.key, contract)
        if not changes:
            self._how = _first(self._how, rule_or_key)
        if lateness is not None and lateness < 0:
            raise SpecError(f"deduplicate: lateness is {lateness}; expected microseconds, 0 or more.")
        self._lateness = lateness
        self._temp_location = temp_location
        self._run_id = run_id or uuid4().hex

    def expand(self, stage: Any) -> Deduplicated | DeduplicatedTold | DeduplicatedWithDead:
        rows, dead, counted = arriving(batches(stage, "Deduplicate"))
        self._refuse(rows)
        if rows.is_bounded:
            folder = SpillFolder.of(self._temp_location or temp_location_of(rows.pipeline.options), self._run_id)
            done = _bounded(rows, self._how, folder, tell=self._tell)
            if self._tell and not dead:
                return DeduplicatedTold(done.rows, done[DROPPED], joined([*counted, done[COUNTS]], "Counts"))
            kept, counts = done.rows, done[COUNTS]
        else:
            lateness = self._lateness if self._lateness is not None else self._how.within or 0
            kept, counts = unbounded(rows, self._how, lateness, changes=self._changes, shards=self._shards)
        counts = joined([*counted, counts], "Counts")
        return DeduplicatedWithDead(kept, joined(dead, "Dead"), counts) if dead else Deduplicated(kept, counts)

    def _refuse(self, rows: beam.PCollection) -> None:
        if not rows.is_bounded and self._how.within is None:
            raise SpecError(
                f"{self.label}: deduplicate: a stream needs `within`; it cannot remember every key for ever.",
                hint="Write within: 2d, say: how far apart in event time copies still compete.",
            )
        if not isinstance(rows.windowing.windowfn, GlobalWindows):
            raise SpecError(
                f"{self.label}: the input is windowed by {rows.windowing.windowfn}; expected the global window.",
                hint="Deduplicate before WindowInto; `within` says how far apart copies compete.",
            )


def _known(key: Iterable[str], contract: Contract) -> None:
    for name in key:
        if name not in contract.columns:
            raise SpecError(
                f"deduplicate: key column {name!r} is not in the contract;",
                hint=f"{nearest(name, contract.columns)} A column that a step has added: DeduplicateRule(key=[...]).",
            )


def _first(how: Comparison, rule: object) -> Comparison:
    """The comparison by which the first copy to arrive stays. Raises SpecError where `rule` asks for another."""
    asked = rule.model_fields_set if isinstance(rule, DeduplicateRule) else ()
    if ("keep" in asked and how.keep != "oldest") or how.order_by != ARRIVAL:
        raise SpecError(
            f"deduplicate: changes=False keeps the first copy that arrives; got keep: {how.keep}, order_by: {how.order_by}.",
            hint="Leave both out; or leave out changes=False: to keep a better copy that comes later, the first must be taken back.",
        )
    return replace(how, keep="oldest")


def _bounded(rows: beam.PCollection, how: Comparison, folder: SpillFolder, *, tell: bool) -> Any:
    """Outputs `rows`, with `tell` DROPPED, and COUNTS."""
    spilled = rows | "SpillRows" >> beam.ParDo(SpillRows(how, folder)).with_output_types(
        tuple[int, tuple[str, bytes]], spilled=tuple[str, tuple[int, bytes]]
    ).with_outputs(SPILLED, main="hashes")
    duplicates = (
        spilled.hashes
        | "ByHash" >> beam.GroupByKey()
        | "FindCandidates" >> beam.ParDo(FindCandidates()).with_output_types(tuple[str, bytes])
        | "CandidatesByFile" >> beam.GroupByKey()
        | "DigestCandidates" >> beam.ParDo(DigestCandidates(how, folder)).with_output_types(tuple[int, pa.RecordBatch])
        | "ByDigest" >> beam.GroupByKey()
        | "FindDuplicates" >> beam.ParDo(FindDuplicates(how)).with_output_types(tuple[str, tuple[int, bytes]])
    )
    keep = beam.ParDo(KeepRows(folder, tell=tell)).with_output_types(pa.RecordBatch, duplicates=pa.RecordBatch, counts=Count)
    return (
        (spilled[SPILLED], duplicates)
        | "FilesAndDuplicates" >> beam.Flatten()
        | "ByFile" >> beam.GroupByKey()
        | "KeepRows" >> keep.with_outputs(DROPPED, COUNTS, main="rows")
    )


class SpillRows(beam.DoFn):  # type: ignore[misc]
    """Lays rows aside in files of up to 65,536 rows and emits, per shard of the key hash, (file, hashes and row numbers)."""

    def __init__(self, how: Comparison, folder: SpillFolder) -> None:
        self._how, self._folder = how, folder

    def setup(self) -> None:
        self._engine: Engine | None = None  # 20 ms that rows with `_key_hash` do not need

    def start_bundle(self) -> None:
        self._pending, self._since = Pending(), _NEVER

    def process(self, batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam) -> Iterator[Any]:
        for piece in slices(batch):
            if not self._pending.fits(piece):
                yield from self._spill()
            self._pending.add(piece)
            self._since = min(self._since, timestamp.micros)
            if self._pending.ripe:
                yield from self._spill()

    def finish_bundle(self) -> Iterator[Any]:
        if self._pending:
            yield from (_in_global_window(output) for output in self._spill())

    def _spill(self) -> Iterator[Any]:
        batch, since = self._pending.take(), self._since
        self._since = _NEVER
        if KEY_HASH not in batch.schema.names:
            self._engine = self._engine or Engine()
        hashes = key_hash(batch, self._how, engine=self._engine)
        name = self._folder.write(batch.drop_columns([KEY_HASH]) if KEY_HASH in batch.schema.names else batch)
        yield TaggedOutput(SPILLED, (name, (since, b"")))
        for shard, packed in pack_hashes(hashes):
            yield shard, (name, packed)


class FindCandidates(beam.DoFn):  # type: ignore[misc]
    """(shard, its hashes) -> (file, numbers of rows whose hash occurs more than once in the shard)."""

    def process(self, keyed: tuple[int, Iterable[tuple[str, bytes]]]) -> Iterator[tuple[str, bytes]]:
        names, packed = zip(*keyed[1], strict=True)
        for i, rows in repeated(packed):
            yield names[i], rows.tobytes()


class DigestCandidates(beam.DoFn):  # type: ignore[misc]
    """(file, candidate rows) -> (shard of the key digest, what is compared of each), many files in one batch."""

    def __init__(self, how: Comparison, folder: SpillFolder) -> None:
        self._how, self._folder = how, folder

    def setup(self) -> None:
        self._engine: Engine | None = None

    def start_bundle(self) -> None:
        self._pending = Pending()

    def process(self, keyed: tuple[str, Iterable[bytes]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        name, rows = keyed[0], np.sort(np.frombuffer(b"".join(keyed[1]), np.uint16))
        candidates = self._candidates(name, rows)
        if not self._pending.fits(candidates):
            yield from self._digest()
        self._pending.add(candidates)
        if self._pending.ripe:
            yield from self._digest()

    def finish_bundle(self) -> Iterator[Any]:
        if self._pending:
            yield from (_in_global_window(output) for output in self._digest())

    def _candidates(self, name: str, rows: Rows) -> pa.RecordBatch:
        batch = self._folder.read(name)
        taken = batch.select(self._how.needed(batch.schema.names)).take(pa.array(rows))
        file = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(rows)), pa.array([name]))
        return taken.append_column(_FILE, file).append_column(_ROW, pa.array(rows))

    def _digest(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        batch = self._pending.take()
        self._engine = self._engine or Engine()
        copies = digests(batch, self._how, engine=self._engine)
        copies = copies.append_column(_FILE, batch.column(_FILE)).append_column(_ROW, batch.column(_ROW))
        for shard, rows in _by_shard(first_byte(copies.column(KEY)) // (256 // DIGEST_SHARDS), DIGEST_SHARDS):
            yield shard, copies.take(pa.array(rows))


class FindDuplicates(beam.DoFn):  # type: ignore[misc]
    """(shard of the key digest, copies) -> (file, numbers of its duplicate rows)."""

    def __init__(self, how: Comparison) -> None:
        self._how = how

    def process(self, keyed: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[str, tuple[int, bytes]]]:
        copies = concat(list(keyed[1]))
        mask = duplicate_mask(copies, within=self._how.within, keep=self._how.keep)
        files, rows = copies.column(_FILE).filter(pa.array(mask)), copies.column(_ROW).to_numpy()[mask]
        for file, mine in _by_shard(files.indices.to_numpy(), len(files.dictionary)):
            yield files.dictionary[file].as_py(), (_NEVER, rows[mine].tobytes())


class KeepRows(beam.DoFn):  # type: ignore[misc]
    """(file, its timestamp and duplicate rows) -> the batch without them; with `tell` they themselves; how many of each source they were."""

    def __init__(self, folder: SpillFolder, *, tell: bool = False) -> None:
        self._folder, self._tell = folder, tell

    def process(self, keyed: tuple[str, Iterable[tuple[int, bytes]]]) -> Iterator[Any]:
        name, notes = keyed
        since, packed = zip(*notes, strict=True)
        batch = self._folder.read(name)
        drop = np.frombuffer(b"".join(packed), np.uint16)
        if len(drop):
            yield from (TaggedOutput(COUNTS, count) for count in _counts(name, batch, drop))
            keep = np.ones(batch.num_rows, bool)
            keep[drop] = False
            if self._tell:
                yield TaggedOutput(DROPPED, batch.take(pa.array(drop)))
            batch = batch.filter(pa.array(keep))
        if batch.num_rows:
            yield TimestampedValue(batch, Timestamp(micros=min(since)))


def pack_hashes(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, bytes]]:
    """(shard, 32 bits of hash per row, then the row numbers in 16 bits) for each shard that has rows."""
    mixed = hashes.astype(np.uint64) * _MIX  # the high bits depend on all bits, whatever hashed them
    shards = (mixed >> np.uint64(59)).astype(np.uint8)
    prints = (mixed >> np.uint64(27)).astype(np.uint32)
    for shard, rows in _by_shard(shards, HASH_SHARDS):
        yield shard, prints[rows].tobytes() + rows.astype(np.uint16).tobytes()


def repeated(packed: Iterable[bytes]) -> Iterator[tuple[int, Rows]]:
    """(number of the pack, row numbers) of the rows whose hash occurs more than once in all `packed` of one shard."""
    packs = list(packed)
    lengths = [len(p) // 6 for p in packs]
    places = _repeated_places(np.concatenate([np.frombuffer(p, np.uint32, n) for p, n in zip(packs, lengths, strict=True)]))
    ends = np.cumsum(lengths)
    for i, mine in _by_shard(np.searchsorted(ends, places, side="right"), len(packs)):
        start = int(ends[i]) - lengths[i]
        yield i, np.frombuffer(packs[i], np.uint16, lengths[i], 4 * lengths[i])[places[mine] - start]


def _repeated_places(prints: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """The places, ascending, of values that occur more than once. Most occur once: slots of a table sort those out before a sort."""
    bits = min(max(len(prints).bit_length() + 3, 10), 22)  # 8 to 16 slots a value, 4 M at most
    slots = prints >> np.uint32(32 - bits)
    places = np.arange(len(prints), dtype=np.uint32)
    owner = np.empty(1 << bits, np.uint32)
    owner[slots] = places  # one place per slot wins, whichever
    shared = np.zeros(1 << bits, bool)
    shared[slots[owner[slots] != places]] = True
    places = places[shared[slots]]
    ordered = prints[places].astype(np.uint64) << np.uint64(32) | places
    ordered.sort()  # value and place in one word: cheaper than an argsort
    same = (ordered[1:] ^ ordered[:-1]) >> np.uint64(32) == 0
    found = np.concatenate((same, [False])) | np.concatenate(([False], same))
    return np.sort((ordered[found[: len(ordered)]] & np.uint64(0xFFFFFFFF)).astype(np.int64))


def _by_shard(shards: npt.NDArray[Any], count: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """(shard, the places where it stands) for each shard that stands somewhere."""
    order = np.argsort(shards, kind="stable")
    ends = np.cumsum(np.bincount(shards, minlength=count)).tolist()
    start = 0
    for shard, end in enumerate(ends):
        if end > start:
            yield shard, order[start:end]
        start = end


def _counts(file: str, batch: pa.RecordBatch, drop: Rows) -> Iterator[Count]:
    if SOURCE not in batch.schema.names:
        yield f"deduplicate:{file}", "", "duplicate", "", len(drop)
        return
    for found in pc.value_counts(batch.column(SOURCE).take(pa.array(drop))).to_pylist():
        yield f"deduplicate:{file}", found["values"] or "", "duplicate", "", found["counts"]


def _in_global_window(output: Any) -> Any:
    if isinstance(output, TaggedOutput):
        return TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
    return GlobalWindows.windowed_value(output)
